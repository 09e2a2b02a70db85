"""What outputs state, remembered, so that a report on a million of them need not open each.

A ledger in the output folder, as that of finished files: an entry counts as long as every file that it was read from
has the size and times of then. What many outputs have in common is an entry of its own.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mlfilter_core.files.ledger import Entry, Ledger, LedgerSegment, Versions, known_versions
from mlfilter_core.tallies.histogram import Histogram
from mlfilter_core.tallies.score_statistics import ScoreStatistics, statistics_of_none
from mlfilter_core.verification.output_kinds import OutputKind, VerifyRequest
from mlfilter_core.verification.stated_facts import StatedClusters, StatedDuplicates, StatedFacts, StatedFilter
from mlfilter_core.work.finished_files import FOLDER
from mlfilter_core.work.run_log import writable

# Evenly spaced outputs of a kind that are opened for their statistics, even if the rest is known. Arbitrary: enough
# documents for a histogram.
MOST_SAMPLED = 1000
DEFAULT_GROUP = "train"  # of HDF5 files, where no job names one
KNOWN_DIR = f"{FOLDER}/report"
COMMON = "\0"  # begins the names of entries of what outputs have in common
DIGEST_BYTES = 8
MOST_COMMON = 10_000  # in memory, arbitrary: one for each worker, or for each set of groups in a file


@dataclass(frozen=True)
class KnownOutput:
    """What an output states.

    Attributes:
        path: The output, relative to the output folder.
        versions: Versions of the files that it was read from; empty where one changed meanwhile, or is unknown.
        stated: What they state, without statistics.
    """

    path: str
    versions: Versions
    stated: StatedFacts


def read_output(kind: OutputKind, path: str, request: VerifyRequest) -> tuple[StatedFacts, KnownOutput | None]:
    """Returns what an output states, and the same for the ledger; None for a kind that has no place there.

    Raises:
        UnreadableOutputError: As `OutputKind.read`.
    """
    if kind.evidence is None:
        return kind.read(path, request), None
    evidence = _in_folder(request.output_dir, kind.evidence(path))
    before = known_versions(evidence)
    stated = kind.read(path, request)
    versions = before if known_versions(evidence) == before else ()
    return stated, KnownOutput(path, versions, stated.without_statistics())


class NewlyKnownOutputs:
    """Remembers what outputs state, for later reports."""

    def __init__(self, segment: LedgerSegment | Ledger, group: str) -> None:
        """Takes where to write, and the HDF5 group that was read."""
        self._segment = segment
        self._group = group
        self._written: set[str] = set()

    @staticmethod
    @contextmanager
    def in_folder(output_dir: Path, group: str) -> Iterator["NewlyKnownOutputs"]:
        """Gives what remembers the outputs of a folder."""
        with LedgerSegment(output_dir / KNOWN_DIR) as segment:
            yield NewlyKnownOutputs(segment, group)

    def add(self, output: KnownOutput) -> None:
        """Remembers an output, unless its versions are unknown, or what it states is not all text and numbers."""
        if output.versions and writable(output.path) == output.path:
            with suppress(TypeError):  # of orjson
                self._add(output)

    def _add(self, output: KnownOutput) -> None:
        stated = output.stated
        common = {
            "counts": list(stated.counts),
            "encoder": stated.encoder,
            "has_lengths": stated.document_tokens is not None,
            "scores": None if stated.scores is None else stated.scores.names,
            "heads": stated.heads,
            "filter": None if stated.filtered is None else stated.filtered.request,
            "centroids": None if stated.clusters is None else stated.clusters.centroids_sha256,
            "groups": None if stated.duplicates is None else stated.duplicates.groups_sha256,
        }
        digest = hashlib.blake2b(orjson.dumps(common), digest_size=DIGEST_BYTES).hexdigest()
        if digest not in self._written:
            self._written.add(digest)
            self._segment.add(Entry(COMMON + digest, self._group, (), common))
        report = None if stated.filtered is None else stated.filtered.report
        no_direction = None if stated.clusters is None else stated.clusters.no_direction
        counts = list(stated.counts.values())
        marked = stated.duplicates
        kept = None if marked is None else [marked.kept, marked.tokens, marked.kept_tokens]
        own = [stated.n_bytes, stated.n_rows, stated.source, stated.rejects, counts, report, no_direction, kept]
        self._segment.add(Entry(output.path, self._group, output.versions, {"common": digest, "own": own}))


class KnownOutputs:
    """The outputs of a folder of which it is known what they state."""

    def __init__(self, output_dir: Path, group: str) -> None:
        """Opens the ledger of an output folder, which need not exist; entries of another HDF5 group do not count."""
        self._folder = output_dir
        self._group = group
        self._ledger = Ledger(output_dir / KNOWN_DIR)
        self._new = NewlyKnownOutputs(self._ledger, group)
        self._common = functools.lru_cache(maxsize=MOST_COMMON)(self._find_common)

    def __len__(self) -> int:
        """Returns the approximate number of outputs."""
        return len(self._ledger)

    def find(self, kind: OutputKind, path: str) -> StatedFacts | None:
        """Returns what an output states, without statistics; None where that is not known."""
        entry = self._ledger.find(path) if kind.evidence is not None and len(self) else None
        if entry is None or kind.evidence is None or entry.request != self._group:
            return None
        if entry.versions != known_versions(_in_folder(self._folder, kind.evidence(path))):
            return None
        try:
            common = self._common(entry.facts["common"])
            return None if common is None else common.stated(entry.facts["own"])
        except (KeyError, TypeError, ValueError):  # of another release
            return None

    def add(self, output: KnownOutput) -> None:
        """Remembers an output, as `NewlyKnownOutputs.add`."""
        self._new.add(output)

    def close(self, merges: bool) -> None:
        """Writes what was added.

        Args:
            merges: Whether to merge what ended processes have written.
        """
        self._ledger.flush()
        if merges:
            self._ledger.merge()
        self._ledger.close()

    def _find_common(self, digest: str) -> "_Common | None":
        entry = self._ledger.find(COMMON + digest)
        return None if entry is None else _Common.of(entry.facts)


@dataclass(frozen=True)
class _Common:
    """What outputs have in common; attributes as in `StatedFacts`, `counts` are names."""

    counts: Sequence[str]
    encoder: Mapping[str, Any]
    document_tokens: Histogram | None
    scores: ScoreStatistics | None
    heads: Mapping[str, str] | None
    filter: Mapping[str, Any] | None
    centroids: str | None
    groups: str | None

    @staticmethod
    def of(facts: Mapping[str, Any]) -> "_Common":
        return _Common(
            facts["counts"],
            facts["encoder"],
            Histogram() if facts["has_lengths"] else None,
            None if facts["scores"] is None else statistics_of_none(tuple(facts["scores"])),
            facts["heads"],
            facts["filter"],
            facts["centroids"],
            facts["groups"],
        )

    def stated(self, own: Sequence[Any]) -> StatedFacts:
        n_bytes, n_rows, source, rejects, counts, report, no_direction, kept = own
        return StatedFacts(
            n_bytes,
            n_rows,
            None if source is None else (source[0], source[1]),
            dict(zip(self.counts, counts, strict=True)),
            rejects,
            self.encoder,
            self.document_tokens,
            self.scores,
            self.heads,
            None if self.filter is None else StatedFilter(self.filter, report),
            clusters=None if self.centroids is None else StatedClusters(self.centroids, no_direction),
            duplicates=None if self.groups is None else StatedDuplicates(self.groups, *kept),
        )


def _in_folder(folder: Path, names: Sequence[str]) -> list[str]:
    return [f"{folder}/{name}" for name in names]
