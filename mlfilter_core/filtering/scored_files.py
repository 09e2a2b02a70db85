"""The files of an output folder that a filter job of the same folder may have read."""

from pathlib import Path

from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.config.deduplication import DEDUPLICATED_DIR
from mlfilter_core.corpus.source_files import JSONL_SUFFIXES


def scored_files(output_dir: Path, stem: str) -> list[Path]:
    """Returns the files of this name, without suffix, that annotation and deduplication jobs have written."""
    folders = (output_dir / name for name in (ANNOTATED_DIR, DEDUPLICATED_DIR))
    paths = (folder / f"{stem}{suffix}" for folder in folders for suffix in JSONL_SUFFIXES)
    return [path for path in paths if path.exists()]
