"""The content of a report as values, which `report.json` contains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlfilter_core.config.filtering import SCORE_PREFIX
from mlfilter_core.embedding.bottleneck import advice, bottleneck
from mlfilter_core.job_kinds import kind_of_flow
from mlfilter_core.tallies.histogram import Histogram
from mlfilter_core.tallies.score_statistics import ScoreStatistics
from mlfilter_core.wording import share

FACTS_VERSION = 1


State = Literal["finished", "finished, some files failed", "ended by an error", "running", "killed", "without an end"]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Result of one file in one flow.

    Attributes:
        file: Name of the task's file: the source for `embed`, the embeddings for `annotate`.
        flow: Name of the flow.
        run: Name of the run; empty where there is no record.
        status: `embedded`, `annotated`, `failed`, ..., or `on disk` where there is no record.
        documents: Documents in the output.
        rejected: Rejected lines.
        truncated: Truncated documents.
        tokens: Encoded tokens.
        seconds: Wall time.
        documents_per_s: Speed, without the documents that an earlier run had processed.
        started: Start, in seconds since 1970, UTC; 0 where there is no record.
        worker: Name of the worker.
        output: Output file, relative to the output folder where it lies there.
        reason: Why the file failed.
        resumed: Documents that an earlier, interrupted run had processed.
        kept: Documents that a filter kept; None in other flows.
    """

    file: str
    flow: str
    run: str
    status: str
    documents: int = 0
    rejected: int = 0
    truncated: int = 0
    tokens: int = 0
    seconds: float = 0.0
    documents_per_s: float | None = None
    started: float = 0.0
    worker: str = ""
    output: str = ""
    reason: str = ""
    resumed: int = 0
    kept: int | None = None

    @property
    def n_new(self) -> int:
        """Documents processed in this run."""
        return self.documents - self.resumed

    @property
    def n_new_tokens(self) -> int:
        """Tokens of these documents, as if all documents had the same length."""
        return round(self.tokens * self.n_new / self.documents) if self.documents else 0


@dataclass(frozen=True)
class WorkerFacts:
    """Work of one worker in a run.

    Attributes:
        name: Name of the worker process.
        files: Files finished.
        documents: Documents of these files processed in this run.
        tokens: Tokens of these documents.
        busy_s: Seconds spent on files.
        first: Start of the first file, in seconds since 1970.
        last: End of the last file.
    """

    name: str
    files: int
    documents: int
    tokens: int
    busy_s: float
    first: float
    last: float

    @property
    def held_s(self) -> float:
        """Seconds from the start of the first file to the end of the last."""
        return self.last - self.first


@dataclass(frozen=True)
class Rates:
    """Speed of each worker over the time of a run.

    Attributes:
        started: Start of the first bin, in seconds since 1970.
        bin_s: Length of a bin in seconds.
        documents: Documents per second in each bin, by worker.
        tokens: Tokens per second; empty where the flow counts none.
    """

    started: float
    bin_s: float
    documents: Mapping[str, Sequence[float]]
    tokens: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class RunFacts:
    """One run.

    Attributes:
        name: Name of the log folder: `embed-stony-beetle`.
        flow: `embed`, `annotate`, ...
        state: State of the run: how it ended, or that it is running.
        started: Seconds since 1970, UTC; None where there is no record.
        seconds: Wall time, including the start of the workers. Without a recorded end: until now, or until the last
            finished file.
        files: Files of the job, finished or not.
        finished_before: Files that were finished before this run.
        done: Files finished by this run.
        failed: Failed files.
        documents: Documents of finished files processed in this run.
        tokens: Tokens of these documents.
        error: Error that ended the run before all files were processed; empty where there was none.
        workers: Workers that finished a file.
        busy_s: Seconds of work in each stage, over all files; empty where the flow has no stages.
        waited_s: Seconds in which each stage waited for another.
        encoders: Devices and settings of the encoder, as text.
        rates: Speed over time; None where the times are unknown.
        logs: Log folder.
        command: Command that repeats the run.
        job: Job file, YAML, with every default.
        versions: Versions of libraries.
    """

    name: str
    flow: str
    state: State
    started: float | None
    seconds: float
    files: int
    finished_before: int
    done: int
    failed: int
    documents: int
    tokens: int
    error: str
    workers: Sequence[WorkerFacts]
    busy_s: Mapping[str, float]
    waited_s: Mapping[str, float]
    encoders: Sequence[str]
    rates: Rates | None
    logs: str
    command: str
    job: str
    versions: Mapping[str, str]

    @property
    def has_speed(self) -> bool:
        """Whether documents per second say how fast the run is."""
        kind = kind_of_flow(self.flow)
        return kind is None or kind.has_speed

    @property
    def uses_gpus(self) -> bool:
        return any("cuda" in encoder for encoder in self.encoders)

    @property
    def bottleneck(self) -> str | None:
        """The stage that waited least; None where the flow has no stages."""
        return bottleneck(self.waited_s)

    @property
    def advice(self) -> str:
        """What to change where the encoder waited for the tokenizer; otherwise nothing."""
        return advice(self.waited_s, self.busy_s.get("encoding", 0.0) + self.waited_s.get("encoding", 0.0))

    @property
    def busy_worker_s(self) -> float:
        """Seconds spent on files, summed over the workers."""
        return sum(worker.busy_s for worker in self.workers)

    @property
    def held_worker_s(self) -> float:
        """Seconds from each worker's first file to its last, summed over the workers."""
        return sum(worker.held_s for worker in self.workers)

    @property
    def startup_s(self) -> float:
        """Average seconds from the start of the run to a worker's first file: queue, start, loading.

        Workers that replace others start later and are left out.
        """
        if self.started is None or not self.workers:
            return 0.0
        first_end = min(worker.last for worker in self.workers)
        waits = [max(0.0, worker.first - self.started) for worker in self.workers if worker.first < first_end]
        return sum(waits) / len(waits) if waits else 0.0

    def notice(self) -> str | None:
        """Returns the notice about the run; None where it finished."""
        return {
            "running": f"{self.name} is still running: this report shows what is finished; make it again later",
            "killed": f"{self.name} was killed before its end; run it again to continue",
            "without an end": f"{self.name} has no recorded end: it runs on another machine, or was killed",
            "ended by an error": f"{self.name} ended by an error: {self.error}",
        }.get(self.state)


@dataclass(frozen=True)
class RejectFacts:
    """Lines that were rejected for one reason.

    Attributes:
        reason: Reason, as in the rejects files.
        count: Number of lines.
        examples: `file`, `line`, `detail`, and the beginning of the line as `text`, of the first few.
    """

    reason: str
    count: int
    examples: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Totals:
    """Sums over the output files: `lines = documents + rejected + blank`.

    Attributes:
        embedded_files: Source files with known counts.
        lines: Lines of these files.
        documents: Embedded documents.
        rejected: Rejected lines.
        blank: Blank lines.
        truncated: Documents truncated to the encoder's maximum length.
        duplicate_ids: Documents with the id of an earlier document of their file.
        tokens: Encoded tokens.
        output_bytes: Size of embeddings and annotated files.
        annotated_files: Annotated files.
        annotated: Documents in the annotated files.
        unfinished_files: Files left by killed or running jobs.
    """

    embedded_files: int = 0
    lines: int = 0
    documents: int = 0
    rejected: int = 0
    blank: int = 0
    truncated: int = 0
    duplicate_ids: int = 0
    tokens: int = 0
    output_bytes: int = 0
    annotated_files: int = 0
    annotated: int = 0
    unfinished_files: int = 0

    @property
    def add_up(self) -> bool:
        return self.lines == self.documents + self.rejected + self.blank


@dataclass(frozen=True)
class HeadFacts:
    """A head that was trained in this folder.

    Attributes:
        name: Name of the head.
        task: Kind of labels: `regression`, `binary`, `multiclass` or `multilabel`.
        documents: Documents with a valid label.
        trained_on: Documents it was trained on.
        held_out: Documents held out for evaluation.
        epochs: Epoch that the head is taken from.
        metrics: Metrics on the held-out documents; None for an undefined one.
        left_out: Rows and labels that were not used, by reason.
        remarks: Warnings.
        picture: SVG file of its training, relative to the output folder; empty where it is missing.
    """

    name: str
    task: str
    documents: int
    trained_on: int
    held_out: int
    epochs: int
    metrics: Mapping[str, float | None]
    left_out: Mapping[str, int]
    remarks: Sequence[str]
    picture: str


@dataclass(frozen=True)
class LimitExample:
    """A document whose score is just above or just below a limit.

    Attributes:
        score: Name of the score.
        group: Group of the document; empty without groups.
        value: Its score.
        reaches: Whether it reaches the limit.
        file: Annotated file, relative to its folder.
        id: Id of the document; its line in the annotated file where it has none.
        text: Beginning of its text; of its annotated line where the source is not here.
    """

    score: str
    group: str
    value: float
    reaches: bool
    file: str
    id: str
    text: str


@dataclass(frozen=True)
class FilterFacts:
    """What a filter kept, over all filtered files.

    Attributes:
        asked: Limit that the job asked for, as text, by score.
        needed: Number of limits that a document must reach.
        per: Key that groups documents; None without groups.
        limits: Lowest score that is kept, by score and group; None where none is (`limits_as_text` tells why).
        limits_as_text: The same as text.
        reached: Documents that reach the limit, by score.
        counts: `documents`, `kept`, `tokens` and `kept_tokens`.
        by_group: The same, by group.
        mean_scores: Mean of each score over all documents with it, by score and group; without groups that have none.
        without_score: Documents that lack one of the scores.
        files: Number of filtered files.
        shares: Token budget of each group by score, for those that are divided by weights.
        notes: What a person should know about these shares.
        examples: Documents near the limits.
    """

    asked: Mapping[str, str]
    needed: int
    per: str | None
    limits: Mapping[str, Mapping[str, float | None]]
    limits_as_text: Mapping[str, Mapping[str, str]]
    reached: Mapping[str, int]
    counts: Mapping[str, int]
    by_group: Mapping[str, Mapping[str, int]]
    without_score: int
    files: int
    mean_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    shares: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    examples: Sequence[LimitExample] = ()

    def limits_of(self, field: str) -> list[float]:
        """Returns the limits of the score in a field of annotated lines, of all groups, the lowest first."""
        own = self.limits.get(field) or self.limits.get(field.removeprefix(SCORE_PREFIX)) or {}
        return sorted({limit for limit in own.values() if limit is not None})


@dataclass(frozen=True)
class ClusterFacts:
    """One cluster, with long texts cut.

    Attributes:
        cluster: Its number.
        name: Its name.
        words: Words that tell it from the others, the most telling first.
        documents: Number of its documents.
        tokens: Number of their tokens; 0 where the embeddings do not state them.
        mean_distance: Mean of their distances from its centre; None where it has no documents.
        nearest: `document_id`, `distance` and beginning of the `text` of the sampled documents nearest its centre.
        values: Shares of the most frequent values in the sample, by key and value.
    """

    cluster: int
    name: str
    words: Sequence[str]
    documents: int
    tokens: int
    mean_distance: float | None
    nearest: Sequence[Mapping[str, Any]]
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class ClusteredFacts:
    """The clusters of a corpus, over all files of clusters.

    Attributes:
        files: Number of files of clusters.
        documents: Number of their documents.
        no_direction: Documents in no cluster, as their embeddings are zeros.
        centroids: Number of files by the digest of their centroids, that of most files first.
        clusters: Number of clusters; 0 where their list is missing or broken.
        in_clusters: Documents in these clusters, by the list.
        tokens: Their tokens.
        largest: The largest clusters, the largest first.
    """

    files: int
    documents: int
    no_direction: int
    centroids: Mapping[str, int]
    clusters: int = 0
    in_clusters: int = 0
    tokens: int = 0
    largest: Sequence[ClusterFacts] = ()

    @property
    def listed(self) -> int:
        """Documents in the clusters of the list, and in none: what shares are of."""
        return self.in_clusters + self.no_direction

    @property
    def in_others(self) -> int:
        """Documents in the clusters other than the largest."""
        return self.in_clusters - sum(cluster.documents for cluster in self.largest)

    def notices(self) -> list[str]:
        """Returns the notices about the clusters."""
        notices = []
        if len(self.centroids) > 1:
            notices.append(
                f"the files of clusters were made with {len(self.centroids)} sets of centres: the same number means "
                "another cluster in each; set overwrite: true and cluster again"
            )
        if not self.clusters:
            notices.append(
                "the list of clusters is missing or broken, as while a cluster job runs or has failed files: "
                "`ml_filter cluster` writes it when all files are finished"
            )
        elif self.listed != self.documents:
            notices.append(
                f"the list of clusters is of other files: it has {self.listed:,} documents, and the files of clusters "
                f"{self.documents:,}; remove it, and `ml_filter cluster` writes it again"
            )
        return notices


@dataclass(frozen=True)
class DeduplicatedFacts:
    """The duplicates of a corpus, over all files of duplicates.

    Attributes:
        files: Number of files of duplicates.
        documents: Number of their documents.
        kept: Documents that are kept.
        tokens: Tokens of all documents; 0 where the embeddings do not state them.
        kept_tokens: Tokens of the kept documents.
        found: Number of files by the digest of the duplicates of the corpus, that of most files first.
        summarized: Documents of the summary of the corpus; 0 where it is missing or broken. The attributes below come
            from it.
        threshold: Lowest cosine of duplicates, or `exact`.
        groups: Number of groups of duplicates.
        recall: Number of `pairs` of similar documents in a sample, and how many the search `found`; None where it was
            not tried.
        largest: The largest groups: number of `documents`, and those `shown`, the kept one first, then the least
            similar ones, each with `file`, `row`, `document_id`, `cosine` and beginning of the `text`.
    """

    files: int
    documents: int
    kept: int
    tokens: int
    kept_tokens: int
    found: Mapping[str, int]
    summarized: int = 0
    threshold: float | str | None = None
    groups: int = 0
    recall: Mapping[str, int] | None = None
    largest: Sequence[Mapping[str, Any]] = ()

    @property
    def duplicates(self) -> int:
        """Documents that are not kept."""
        return self.documents - self.kept

    @property
    def pairs_found(self) -> str:
        """Share of the pairs of similar documents that the search found; empty where it is unknown."""
        return share(self.recall["found"], self.recall["pairs"]) if self.recall and self.recall["pairs"] else ""

    def notices(self) -> list[str]:
        """Returns the notices about the duplicates."""
        notices = []
        if len(self.found) > 1:
            notices.append(
                f"the files of duplicates were made from {len(self.found)} searches, which may keep different "
                "documents of a group; set overwrite: true and deduplicate again"
            )
        if not self.summarized:
            notices.append(
                "the summary of the duplicates, duplicates.json, is missing or broken; remove it and deduplicate again"
            )
        elif self.summarized != self.documents:
            notices.append(
                f"duplicates.json has {self.summarized:,} documents, and the files of duplicates {self.documents:,}: a "
                "deduplication job is running or has failed files; run it again"
            )
        return notices


@dataclass(frozen=True)
class Sample:
    """Evenly spaced files that stand for very many.

    Attributes:
        files: Number of files in the sample.
        of: Number of files that they stand for.
    """

    files: int
    of: int

    def __str__(self) -> str:
        return f"{self.files:,} of {self.of:,} files"


@dataclass(frozen=True)
class OutputFacts:
    """Content of an output folder, and the runs that made it.

    Attributes:
        output_dir: The folder.
        made: Time of this report, in seconds since 1970, UTC.
        notices: Notices for the top of the report.
        totals: Sums over the output files.
        encoder: Request and properties of the encoder of most files.
        heads: Digest of each head's checkpoint, of most files.
        document_tokens: Histogram of the documents' lengths after truncation.
        max_length: Tokens at which documents are truncated, in all their chunks; None where it is unknown.
        rejects: Rejected lines by reason, the most frequent first.
        scores: Statistics of the scores; None where no annotated file has them.
        runs: Runs, the latest first.
        files: Files of all flows, by name. Very many are read from the logs whenever they are asked for.
        version: Version of this format.
        trained: Heads that were trained in this folder, by name.
        filtered: What a filter kept; None where there are no filtered files.
        clustered: Clusters of the corpus; None where there are no files of clusters.
        deduplicated: Duplicates of the corpus; None where there are no files of duplicates.
        n_truncated: Truncated documents among those of `document_tokens`.
        samples: What `document_tokens` and `scores` are of, where it is not all files.
        n_files: Number of all files; `report.json` has the most telling ones of very many.
    """

    output_dir: str
    made: float
    notices: Sequence[str]
    totals: Totals
    encoder: Mapping[str, Any]
    heads: Mapping[str, str]
    document_tokens: Histogram
    max_length: int | None
    rejects: Sequence[RejectFacts]
    scores: ScoreStatistics | None
    runs: Sequence[RunFacts]
    files: Sequence[FileFacts] = field(default_factory=tuple)
    version: int = FACTS_VERSION
    trained: Sequence[HeadFacts] = field(default_factory=tuple)
    filtered: FilterFacts | None = None
    clustered: ClusteredFacts | None = None
    deduplicated: DeduplicatedFacts | None = None
    n_truncated: int = 0
    samples: Mapping[str, Sample] = field(default_factory=dict)
    n_files: int = 0

    def last_run(self, flow: str) -> RunFacts | None:
        """Returns the latest run of a flow that finished a file; None if there is none."""
        return next((run for run in self.runs if run.flow == flow and run.done), None)
