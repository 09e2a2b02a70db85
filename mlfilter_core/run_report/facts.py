"""What a report says, as values: `report.json` is these."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlfilter_core.tallies.histogram import Histogram
from mlfilter_core.tallies.score_statistics import ScoreStatistics

FACTS_VERSION = 1

# Takes one head after another; how many documents it reads a second says nothing.
TRAINING = "train_head"

State = Literal["finished", "finished, some files failed", "ended by an error", "going on", "killed", "without an end"]


@dataclass(frozen=True)
class FileFacts:
    """What became of one file in one flow.

    Attributes:
        file: Its name: of the source for `embed`, of the embeddings for `annotate`.
        flow: That did it.
        run: Name of the run; empty where no record tells.
        status: `embedded`, `annotated`, `failed`, ..., or `on disk` where no record tells when it was made.
        documents: In its output.
        rejected: Lines.
        truncated: Documents.
        tokens: Encoded.
        seconds: That it took.
        documents_per_s: Without what an earlier run had done of it.
        started: Seconds since 1970, UTC; 0 where no record tells.
        worker: That did it.
        output: The file that was written, relative to the output folder where it lies in it.
        reason: Why it failed.
        resumed: Documents that an earlier run had done, which was interrupted.
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

    @property
    def n_new(self) -> int:
        """Documents that this run did itself."""
        return self.documents - self.resumed

    @property
    def n_new_tokens(self) -> int:
        """Tokens in them, as if documents were of one length."""
        return round(self.tokens * self.n_new / self.documents) if self.documents else 0


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker did in a run.

    Attributes:
        name: Of its process.
        files: That it finished.
        documents: That it did of them; what an earlier run had done is left out.
        tokens: In these documents.
        busy_s: Seconds that it was at them.
        first: When it began its first file, in seconds since 1970.
        last: When it finished its last.
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
        """Seconds from its first file to its last."""
        return self.last - self.first


@dataclass(frozen=True)
class Rates:
    """How fast the workers of a run were, over its time.

    Attributes:
        started: Of the first bin, in seconds since 1970.
        bin_s: Seconds that each bin lasts.
        documents: Documents a second, by worker, one number for each bin.
        tokens: Tokens a second; empty where the flow counts none.
    """

    started: float
    bin_s: float
    documents: Mapping[str, Sequence[float]]
    tokens: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class RunFacts:
    """One run.

    Attributes:
        name: Of its log folder, `embed-stony-beetle`.
        flow: `embed`, `annotate`, ...
        state: What became of it.
        started: Seconds since 1970, UTC; None where no record tells.
        seconds: Wall time, start of the workers included; without an end, until now or the last that it finished.
        files: That it was to do or had been done before.
        finished_before: Of these, before it.
        done: Files that it finished.
        failed: Files.
        documents: That it did of the files that it finished; what an earlier run had done of them is left out.
        tokens: In these documents.
        error: That ended it before its files; empty where none did.
        workers: That finished something.
        busy_s: By stage, seconds that it worked, in all files; empty where the flow has no stages.
        waited_s: By stage, seconds that it waited for another.
        encoders: Where and how they computed, in words.
        rates: Over its time; None where no record tells when.
        logs: Its folder.
        command: That makes it again.
        job: Its job file, YAML, with every default.
        versions: Of libraries.
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
    def uses_gpus(self) -> bool:
        return any("cuda" in encoder for encoder in self.encoders)

    @property
    def busy_worker_s(self) -> float:
        """Seconds that workers were at files, added up over the workers."""
        return sum(worker.busy_s for worker in self.workers)

    @property
    def held_worker_s(self) -> float:
        """Seconds from each worker's first file to its last, added up."""
        return sum(worker.held_s for worker in self.workers)

    @property
    def startup_s(self) -> float:
        """Seconds from the run's start to each worker's first file, on average: queue, start, loading.

        Of the first workers: those that replace others begin when these have ended.
        """
        if self.started is None or not self.workers:
            return 0.0
        first_end = min(worker.last for worker in self.workers)
        waits = [max(0.0, worker.first - self.started) for worker in self.workers if worker.first < first_end]
        return sum(waits) / len(waits) if waits else 0.0


@dataclass(frozen=True)
class RejectFacts:
    """The lines that were rejected for one reason.

    Attributes:
        reason: As in the rejects files.
        count: Lines.
        examples: `file`, `line`, `detail` and the beginning of the line as `text`, of the first few.
    """

    reason: str
    count: int
    examples: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Totals:
    """Sums over the output files: `lines = documents + rejected + blank`.

    Attributes:
        embedded_files: Source files whose counts are known.
        lines: Of them.
        documents: Embedded.
        rejected: Lines.
        blank: Lines.
        truncated: Documents cut to the encoder's maximum length.
        duplicate_ids: Documents whose id an earlier one of their file has.
        tokens: Encoded.
        output_bytes: Of embeddings and annotated files.
        annotated_files: Annotated files.
        annotated: Documents in them.
        unfinished_files: That killed or running jobs left.
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
class OutputFacts:
    """What lies in an output folder, and which runs made it.

    Attributes:
        output_dir: The folder.
        made: When this was found out, in seconds since 1970, UTC.
        notices: What a reader should know before anything else.
        totals: Over the output files.
        encoder: What was asked of it and what it is; of the most files.
        heads: Digest of each head's checkpoint; of the most files.
        document_tokens: How many tokens documents have, after they were cut.
        max_length: Tokens at which documents are cut; None where it is not known.
        rejects: By reason, the most frequent first.
        scores: None where there are no annotated files that say.
        runs: The latest first.
        files: Of all flows, by name.
        version: Of this format.
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

    def last_run(self, flow: str) -> RunFacts | None:
        """Returns the latest run of a flow that finished a file."""
        return next((run for run in self.runs if run.flow == flow and run.done), None)


def finite(value: float | None) -> float | None:
    """Returns a number, or None where JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None
