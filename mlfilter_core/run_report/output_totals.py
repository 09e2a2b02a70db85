"""Sums over the outputs of a folder, from what they state; histograms of single files are not kept."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlfilter_core.config.training import HEADS_DIR
from mlfilter_core.embedding_store.fingerprint import CHUNKS, FIELDS
from mlfilter_core.run_report.cluster_totals import ClusterTotals
from mlfilter_core.run_report.duplicate_totals import DuplicateTotals
from mlfilter_core.run_report.facts import HeadFacts, Sample, Totals
from mlfilter_core.run_report.filter_totals import FilterTotals
from mlfilter_core.run_report.shared_objects import OncePerObject
from mlfilter_core.tallies.histogram import Histogram
from mlfilter_core.tallies.score_statistics import ScoreStatistics
from mlfilter_core.training.train_request import FIGURE_SUFFIX
from mlfilter_core.verification.stated_facts import COUNTS, StatedFacts
from mlfilter_core.wording import plural

# For each reason; the first few of them give its examples.
MOST_REJECTS_FILES = 2000


@dataclass
class Variant:
    """Files that were made in one way.

    Attributes:
        made_by: Description of the encoder, or digests of the heads.
        n_files: Number of files.
        n_read: Number of files whose statistics were read.
        scores: Statistics over these; None where they have no scores.
    """

    made_by: Mapping[str, Any]
    n_files: int = 0
    n_read: int = 0
    scores: ScoreStatistics | None = None


class OutputTotals:
    """Adds up outputs, one after another.

    Attributes:
        document_tokens: Lengths of the documents.
        n_truncated: How many of these documents were truncated.
        rejected_by_reason: Rejected lines for each reason.
        rejects_files: First rejects files that may exist, and their lines for each reason.
        filtered: Sums over the filtered files.
        clustered: Sums over the files of clusters.
        deduplicated: Sums over the files of duplicates.
        trained: The heads that were trained here.
    """

    def __init__(self, n_unfinished: int = 0) -> None:
        """Takes the number of unfinished files, which are not read."""
        self.document_tokens = Histogram()
        self.n_truncated = 0
        self.rejected_by_reason: Counter[str] = Counter()
        self.rejects_files: list[tuple[str, Mapping[str, int]]] = []
        self._sums = Counter(unfinished_files=n_unfinished)
        self._encoders: dict[str, Variant] = {}
        self._heads: dict[str, Variant] = {}
        self._encoder_of = OncePerObject(self._find_encoder)
        self._heads_of = OncePerObject(self._find_heads)
        self._n_rejects_files: Counter[str] = Counter()
        self._lengths = Sample(0, 0)
        self._n_by_other_tools = 0
        self._n_without_tokens = 0
        self._n_without_scores = 0
        self.filtered = FilterTotals()
        self.clustered = ClusterTotals()
        self.deduplicated = DuplicateTotals()
        self.trained: list[HeadFacts] = []

    @property
    def totals(self) -> Totals:
        return Totals(**self._sums)

    @property
    def encoder(self) -> Variant | None:
        """The encoder of most files."""
        return _most_frequent(self._encoders)

    @property
    def heads(self) -> Variant | None:
        """The heads of most files, and their scores."""
        return _most_frequent(self._heads)

    @property
    def samples(self) -> dict[str, Sample]:
        """What the statistics are of, where it is not all files."""
        scores = Sample(self.heads.n_read, self.heads.n_files) if self.heads else Sample(0, 0)
        found = {"document_tokens": self._lengths, "scores": scores}
        return {name: sample for name, sample in found.items() if sample.files < sample.of}

    def add(self, name: str, output: StatedFacts, is_counted: bool, is_sampled: bool = True) -> None:
        """Adds an output.

        Args:
            name: Its name.
            output: What it states.
            is_counted: Whether an earlier kind of output has counted its source, which is then not counted again.
            is_sampled: Whether its statistics were read.
        """
        self._sums["output_bytes"] += output.n_bytes
        if output.filtered is not None:
            self.filtered.add(output.filtered)
        if output.clusters is not None:
            self.clustered.add(output.clusters, output.n_rows)
        if output.duplicates is not None:
            self.deduplicated.add(output.duplicates, output.n_rows)
        if output.training is not None:
            self.trained.append(_head(name, output.training))
        if output.heads is not None:
            self._sums.update(annotated_files=1, annotated=output.n_rows)
            self._add_scores(output, is_sampled)
        if output.counts and not is_counted:
            self._add_source(output, is_sampled)

    def notices(self) -> list[str]:
        """Returns the notices about the sums."""
        notices = []
        if len(self._encoders) > 1:
            notices.append(
                f"the embeddings were made by {len(self._encoders)} encoders or settings: totals include all of them; "
                "the encoder shown is the one of most files"
            )
        if self.heads is not None and len(self._heads) > 1:
            n_others = sum(heads.n_files for heads in self._heads.values()) - self.heads.n_files
            notices.append(
                f"the annotated files were scored by {len(self._heads)} sets of heads: the scores shown are those of "
                f"most files; {plural(n_others, 'file')} left out"
            )
        for n, what in (
            (self._n_by_other_tools, "of embeddings made by another tool: the lines of its source are unknown"),
            (
                self._n_without_tokens,
                "made by an earlier release, without the lengths of documents, missing in the plot of lengths",
            ),
            (
                self._n_without_scores,
                "annotated by an earlier release, without statistics of scores, missing in the plots of scores",
            ),
        ):
            notices += [f"{plural(n, 'file')} {what}"] if n else []
        for name, what in (("document_tokens", "lengths of documents"), ("scores", "statistics of scores")):
            if name in self.samples:
                notices.append(f"the {what} are those of {self.samples[name]}, evenly spaced; counts are of all files")
        if not (self._sums["annotated_files"] or self.clustered.n_files or self.deduplicated.n_files):
            notices.append("there are no annotated files yet")
        notices += self.filtered.notices()
        if n := self._sums["unfinished_files"]:
            notices.append(f"{plural(n, 'file')} unfinished: their runs are still running or were killed")
        return notices

    def _add_source(self, output: StatedFacts, is_sampled: bool) -> None:
        for name in COUNTS:
            self._sums[name] += int(output.counts.get(name, 0))
        if "lines" not in output.counts:
            self._n_by_other_tools += 1
            return
        self._sums["embedded_files"] += 1
        by_reason = output.counts.get("rejected_by_reason") or {}
        self.rejected_by_reason.update(by_reason)
        if output.rejects is not None and any(self._n_rejects_files[each] < MOST_REJECTS_FILES for each in by_reason):
            self.rejects_files.append((output.rejects, by_reason))
            self._n_rejects_files.update(by_reason.keys())
        if output.document_tokens is None:
            self._n_without_tokens += 1
        else:
            self._lengths = Sample(self._lengths.files + is_sampled, self._lengths.of + 1)
            if is_sampled:
                self.document_tokens += output.document_tokens
                self.n_truncated += int(output.counts.get("truncated", 0))
        self._encoder_of(output.encoder).n_files += 1

    def _add_scores(self, output: StatedFacts, is_sampled: bool) -> None:
        if output.scores is None:
            self._n_without_scores += 1
            return
        variant = self._heads_of(output.heads, output.scores.names)
        variant.n_files += 1
        variant.n_read += is_sampled
        if is_sampled or variant.scores is None:
            variant.scores = output.scores if variant.scores is None else variant.scores + output.scores

    def _find_encoder(self, encoder: Mapping[str, Any]) -> Variant:
        key = json.dumps({name: encoder.get(name) for name in (*FIELDS, CHUNKS)}, sort_keys=True)
        return self._encoders.setdefault(key, Variant(encoder))

    def _find_heads(self, heads: Mapping[str, str], names: Sequence[str]) -> Variant:
        return self._heads.setdefault(json.dumps([heads, names], sort_keys=True), Variant(heads))


def _head(name: str, training: Mapping[str, Any]) -> HeadFacts:
    return HeadFacts(
        name=name,
        task=str(training.get("request", {}).get("task", "")),
        documents=int(training["documents"]),
        trained_on=int(training["trained_on"]),
        held_out=int(training["held_out"]),
        epochs=int(training["epochs"]),
        metrics=training["metrics"],
        left_out=training.get("left_out", {}),
        remarks=tuple(training.get("remarks", ())),
        picture=f"{HEADS_DIR}/{name}{FIGURE_SUFFIX}",
    )


def _most_frequent(variants: Mapping[str, Variant]) -> Variant | None:
    return max(variants.values(), key=lambda variant: variant.n_files, default=None)
