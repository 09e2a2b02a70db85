"""The report of an embedded source file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from mlfilter_core.embedding.bottleneck import advice, bottleneck
from mlfilter_core.wording import plural
from mlfilter_core.work.workload import ReportDefaults, made_in_this_run, time_of_parts


@dataclass(frozen=True)
class EmbedReport(ReportDefaults):
    """The result of embedding one source file: `lines = documents + rejected + blank`.

    Attributes:
        source: Path relative to the corpus folder.
        output: Path of the output.
        status: `embedded`, or `skipped` where the output was finished before.
        lines: Number of lines of the source.
        documents: Number of rows of the output.
        rejected: Number of lines in the rejects file.
        blank: Number of lines without content.
        truncated: Number of documents truncated to the encoder's maximum length.
        duplicate_ids: Number of documents with the id of an earlier document of the file.
        tokens: Number of encoded tokens, with special tokens.
        out_of_memory: Number of batches that did not fit in memory and were divided.
        resumed: Number of documents taken from an interrupted run.
        rejected_by_reason: Number of rejected lines by reason.
        seconds: Wall time; 0 where skipped.
        waited: Seconds that each stage waited for another; empty where skipped.
        encoder: Device and settings of the encoder as text; empty where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
        chunks: Number of embeddings, where long documents are divided into chunks; otherwise 0.
    """

    PRINTED: ClassVar[Sequence[str]] = (
        *("lines", "documents", "rejected", "truncated"),
        *("tokens", "seconds", "documents/s"),
    )
    SUMMED: ClassVar[Sequence[str]] = (
        *("lines", "documents", "rejected", "truncated"),
        *("duplicate_ids", "tokens", "out_of_memory", "resumed"),
    )
    NO_COLUMNS: ClassVar[Sequence[str]] = ("rejected_by_reason",)

    source: str
    output: str
    status: Literal["embedded", "skipped"]
    lines: int
    documents: int
    rejected: int
    blank: int
    truncated: int
    duplicate_ids: int
    tokens: int
    out_of_memory: int = 0
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    seconds: float = 0.0
    waited: dict[str, float] = field(default_factory=dict)
    encoder: str = ""
    worker: str = ""
    started: float = 0.0
    chunks: int = 0

    def with_parts(self, parts: "Sequence[EmbedReport]") -> Self:
        """Returns the report of a joined file, with what its parts took in this run."""
        new = made_in_this_run(parts)
        if not new:
            return self
        waited: Counter[str] = Counter()
        for part in new:
            waited.update(part.waited)
        return replace(
            self,
            resumed=self.documents - sum(part.documents - part.resumed for part in new),
            waited=dict(waited),
            **time_of_parts(new),
        )

    @staticmethod
    def remarks_on(reports: "Sequence[EmbedReport]") -> list[str]:
        """Returns remarks on the speed of a run."""
        encoders: set[str] = set()
        waited: Counter[str] = Counter()
        n: Counter[str] = Counter()
        total_s = 0.0
        for report in reports:  # of a million files
            total_s += report.seconds
            if report.waited:
                encoders.add(report.encoder)
                waited.update(report.waited)
                for count in ("chunks", "documents", "resumed", "out_of_memory"):
                    n[count] += getattr(report, count)
        remarks = [f"encoder: {encoder}" for encoder in sorted(encoders)]
        if n["chunks"]:
            remarks.append(f"{plural(n['documents'], 'document')} have {plural(n['chunks'], 'chunk')}")
        if n["resumed"]:
            remarks.append(f"{plural(n['resumed'], 'document')} had been encoded by a run that was interrupted")
        if n["out_of_memory"]:
            n_times = plural(n["out_of_memory"], "time")
            remarks.append(f"memory ran out {n_times}, and batches were divided: set max_batch_tokens lower")
        if waited:
            seconds = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in waited.items())
            words = f"seconds that each stage waited for another: {seconds}; {bottleneck(waited)} is the bottleneck"
            remarks += [words, *filter(None, [advice(waited, total_s)])]
        return remarks
