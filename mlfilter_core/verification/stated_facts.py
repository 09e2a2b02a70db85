"""The facts that an output states in its metadata."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlfilter_core.tallies.histogram import Histogram, read_histogram
from mlfilter_core.tallies.score_statistics import ScoreStatistics, read_score_statistics, statistics_of_none

COUNTS = ("lines", "documents", "rejected", "blank", "truncated", "duplicate_ids", "tokens")


class UnreadableOutputError(Exception):
    """The metadata of an output are missing or broken; the message says why."""


@contextmanager
def reading(provenance: Path) -> Iterator[None]:
    """Turns errors of reading an output or its provenance, a JSON file, into `UnreadableOutputError`."""
    try:
        yield
    except OSError as error:
        raise UnreadableOutputError(f"{error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableOutputError(f"{provenance} is broken ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class StatedFilter:
    """The facts that a filtered file states.

    Attributes:
        request: `keep`, `at_least`, `per`, the limits as ranks, and the shares of the groups where there are any.
        report: Counts of documents and tokens, by group and by score.
    """

    request: Mapping[str, Any]
    report: Mapping[str, Any]


@dataclass(frozen=True)
class StatedClusters:
    """The facts that a file of clusters states, without the sizes of its clusters: each file may have all clusters.

    Attributes:
        centroids_sha256: Digest of the centroids.
        no_direction: Documents in no cluster.
    """

    centroids_sha256: str
    no_direction: int


@dataclass(frozen=True)
class StatedDuplicates:
    """The facts that a file of duplicates states.

    Attributes:
        groups_sha256: Digest of the duplicates of the corpus.
        kept: Documents that are kept.
        tokens: Tokens of all documents; 0 where the embeddings do not state them.
        kept_tokens: Tokens of the kept documents.
    """

    groups_sha256: str
    kept: int
    tokens: int
    kept_tokens: int


@dataclass(frozen=True)
class StatedFacts:
    """The facts that one output states.

    Attributes:
        n_bytes: Size of the file.
        n_rows: Documents in the file.
        source: Path and digest of the source file; None where the output does not state them.
        counts: Counts of the source, `COUNTS` and `rejected_by_reason`. Without `lines` where another tool embedded it;
            empty where the output embeds nothing, or states none.
        rejects: Rejects file, relative to the output folder; None where its place is unknown.
        encoder: Request and properties of the encoder; empty where they are unknown.
        document_tokens: Histogram of the documents' lengths; None in files of earlier releases.
        scores: Statistics of the scores; None where the output has no scores or does not state them.
        heads: Digest of each head by its name; None where the output has no scores.
        filtered: Limits and counts of a filtered file.
        training: Record of the training of a head.
        clusters: Centroids and counts of a file of clusters.
        duplicates: Counts of a file of duplicates.
    """

    n_bytes: int
    n_rows: int
    source: tuple[str, str] | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    rejects: str | None = None
    encoder: Mapping[str, Any] = field(default_factory=dict)
    document_tokens: Histogram | None = None
    scores: ScoreStatistics | None = None
    heads: Mapping[str, str] | None = None
    filtered: StatedFilter | None = None
    training: Mapping[str, Any] | None = None
    clusters: StatedClusters | None = None
    duplicates: StatedDuplicates | None = None

    def without_statistics(self) -> "StatedFacts":
        """Returns the facts with the statistics of no documents, where there are any: they are most of the bytes."""
        return replace(
            self,
            document_tokens=None if self.document_tokens is None else Histogram(),
            scores=None if self.scores is None else statistics_of_none(self.scores.names),
        )


def stated_lengths(statistics: Mapping[str, Any]) -> Histogram | None:
    """Returns the histogram of the documents' lengths among the statistics of an output."""
    return read_histogram(statistics["document_tokens"]) if "document_tokens" in statistics else None


def stated_scores(statistics: Mapping[str, Any]) -> ScoreStatistics | None:
    """Returns the statistics of the scores among the statistics of an output."""
    return read_score_statistics(statistics["scores"]) if "scores" in statistics else None
