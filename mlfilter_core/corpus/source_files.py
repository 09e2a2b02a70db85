"""Names of source files."""

import os
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mlfilter_core.corpus.compression import COMPRESSIONS
from mlfilter_core.corpus.hive_tables import ARE_OWN, OWN_MARK, is_own_file
from mlfilter_core.corpus.own_outputs import outputs_below, outputs_listed
from mlfilter_core.corpus.parquet_source import PARQUET_SUFFIX
from mlfilter_core.corpus.sources import open_source, unread_content
from mlfilter_core.errors import ConfigError, SourceError
from mlfilter_core.files.stores import Listing
from mlfilter_core.files.task_files import TaskFiles, find_files
from mlfilter_core.files.urls import shown_path

_COMPRESSED = ("", *(suffix for each in COMPRESSIONS for suffix in each.suffixes))
# Suffixes of the files that jobs write and read: annotated files, labels, scores.
JSONL_SUFFIXES = tuple(f".jsonl{suffix}" for suffix in _COMPRESSED)
OTHER_LINES = (".json", ".ndjson")
SOURCE_SUFFIXES = (
    *JSONL_SUFFIXES,
    *(f"{name}{suffix}" for name in OTHER_LINES for suffix in _COMPRESSED),
    PARQUET_SUFFIX,
)


def find_sources(folder: Path, pattern: str, output_dir: Path, listing: Listing | None = None) -> TaskFiles:
    """Returns the source files of a job, sorted by path; outputs of jobs are left out.

    Args:
        folder: Folder of the corpus.
        pattern: Glob as for `find_files`. A pattern that spells names out, such as `*.txt.gz` or `part-*`, also finds
            files without one of `SOURCE_SUFFIXES` whose content is a source's. Only one with a name that begins with
            `_` finds files that do, or that lie in such folders: tables of Spark and Hive have them.
        output_dir: Output folder of the job, or its URL.
        listing: Files of the corpus, where it is in a store and `folder` its mirror.

    Raises:
        ConfigError: As `find_files`.
    """
    content = unread_content if _spells_names_out(pattern) else None
    if listing is None:
        of_outputs = outputs_below(folder, output_dir)
    else:
        of_outputs = outputs_listed(listing.url, shown_path(output_dir), listing.files)
    takes_own = any(name.startswith(OWN_MARK) for name in PurePosixPath(pattern).parts)

    def reason_against(relative: str) -> str | None:
        return ARE_OWN if not takes_own and is_own_file(relative) else of_outputs(relative)

    return find_files(
        *(folder, pattern, SOURCE_SUFFIXES, content),
        tells_hidden_folders=True,
        reason_against=reason_against,
        listing=listing,
    )


def find_jsonl(folder: Path, *stems: str) -> list[Path]:
    """Returns the files below a folder whose names without `JSONL_SUFFIXES` match a pattern, sorted by path.

    Hidden files and folders are left out, as runs keep their own files there.

    Raises:
        ConfigError: The folder, or one below it, is missing or not readable, or a name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise ConfigError(f"the folder {error.filename} cannot be read ({error.strerror}); fix its path or permissions")

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent) / name for name in names if name.endswith(JSONL_SUFFIXES) and not name.startswith(".")]
        found += [path for path in paths if any(fnmatchcase(stem_of(path), pattern) for pattern in stems)]
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raw = str(path).encode(errors="surrogateescape")
            raise ConfigError(f"the name of {raw!r} is not UTF-8; rename it, for example with convmv") from None
    return sorted(found)


def most_parts(path: Path) -> int:
    """Returns into how many parts a source can usefully be divided; 1 where it cannot be read, which its task reports.

    Each part of JSON lines reads what precedes it, to count lines, and decompresses that.
    """
    try:
        with open_source(path) as source:
            return source.most_parts
    except (SourceError, OSError):
        return 1


def stem_of(path: Path) -> str:
    """Returns a file's name without `SOURCE_SUFFIXES`: `x` for `a/x.jsonl.gz`."""
    suffix = next((suffix for suffix in SOURCE_SUFFIXES if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def _spells_names_out(pattern: str) -> bool:
    """Returns whether a pattern says more of names than a suffix of sources: `part-*`, not `*` or `*.jsonl*`."""
    name = PurePosixPath(pattern).name.strip("*")
    return bool(name.strip(".")) and not name.endswith(SOURCE_SUFFIXES)
