"""What the output files of a folder say of themselves.

Reads metadata alone: of thousands of files, the report is to be there in seconds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.tallies.histogram import Histogram, read_histogram
from mlfilter_core.tallies.score_statistics import ScoreStatistics, read_score_statistics
from mlfilter_core.verification.annotated_files import provenance_of

COUNTS = ("lines", "documents", "rejected", "blank", "truncated", "duplicate_ids", "tokens")


@dataclass(frozen=True)
class OutputFile:
    """One output.

    Attributes:
        relative: Its path below the output folder.
        n_bytes: Its size.
        n_rows: Documents in it.
        source: Path of the source, and its digest; None where another tool made the embeddings.
        counts: Of the source, `COUNTS` and `rejected_by_reason`; empty where they are not known.
        encoder: What was asked of it, and what it is; empty where it is not known.
        document_tokens: None where the file does not say, as those of earlier releases.
        scores: Of an annotated file; None where it does not say.
        heads: Digests, by name; of an annotated file.
    """

    relative: str
    n_bytes: int
    n_rows: int
    source: tuple[str, str] | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    document_tokens: Histogram | None = None
    scores: ScoreStatistics | None = None
    heads: Mapping[str, str] = field(default_factory=dict)


class UnreadableOutputError(Exception):
    """An output does not say what it is; its message says why."""


def read_embeddings(output_dir: Path, relative: str, group: str) -> OutputFile:
    """Returns what a file of embeddings says.

    Raises:
        UnreadableOutputError: It is none, or broken.
    """
    path = output_dir / relative
    try:
        with EmbeddingFile(path, group) as file:
            n_bytes = path.stat().st_size
            made = file.provenance
            if made is None:
                return OutputFile(relative, n_bytes, file.n_rows)
            return OutputFile(
                relative,
                n_bytes,
                file.n_rows,
                (made.source["path"], made.source["sha256"]),
                made.counts,
                {**made.request, **made.encoder},
                _document_tokens(made.statistics),
            )
    except (EmbeddingFileError, OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableOutputError(str(error)) from error


def read_annotated(output_dir: Path, relative: str) -> OutputFile:
    """Returns what an annotated file says.

    Raises:
        UnreadableOutputError: It is missing, or does not say anything.
    """
    path, provenance = output_dir / relative, output_dir / provenance_of(relative)
    try:
        n_bytes = path.stat().st_size
        made = json.loads(provenance.read_bytes())
        statistics, counts, source = made.get("statistics") or {}, made.get("counts") or {}, made.get("source")
        return OutputFile(
            relative,
            n_bytes,
            int(made["documents"]),
            (source["path"], source["sha256"]) if source else None,
            counts,
            {**made["embeddings"].get("request", {}), **(made.get("encoder") or {})},
            _document_tokens(statistics),
            read_score_statistics(statistics["scores"]) if "scores" in statistics else None,
            dict(made["request"]["heads"]),
        )
    except OSError as error:
        raise UnreadableOutputError(f"{error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableOutputError(f"{provenance} is broken ({type(error).__name__}: {error})") from error


def is_annotated(relative: str) -> bool:
    return relative.startswith(f"{ANNOTATED_DIR}/")


def _document_tokens(statistics: Mapping[str, Any]) -> Histogram | None:
    written = statistics.get("document_tokens")
    return read_histogram(written) if written is not None else None
