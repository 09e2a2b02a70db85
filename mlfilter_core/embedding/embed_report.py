"""What became of a source file that was embedded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mlfilter_core.work.workload import ReportDefaults


@dataclass(frozen=True)
class EmbedReport(ReportDefaults):
    """What became of one source file: `lines = documents + rejected + blank`.

    Attributes:
        source: Path relative to the corpus folder.
        output: The HDF5 file.
        status: `embedded` now, or `skipped` because it was finished.
        lines: Lines of the source.
        documents: Rows of the output.
        rejected: Lines in the rejects file.
        blank: Lines without content.
        truncated: Documents cut to the encoder's maximum length.
        duplicate_ids: Documents whose id an earlier one has.
        tokens: Tokens encoded, special tokens included.
        out_of_memory: How often a batch did not fit in memory and was divided.
        resumed: Documents that an earlier run had encoded before it was interrupted.
        rejected_by_reason: Lines for each reason.
        seconds: Wall time; 0 where skipped.
        waited: Seconds that each stage waited for another; empty where skipped.
        encoder: Where and how the encoder computed, in words; empty where skipped.
        worker: The process that did it; empty where skipped.
        started: When that began, in seconds since 1970, UTC; 0 where skipped.
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

    @staticmethod
    def remarks_on(reports: "Sequence[EmbedReport]") -> list[str]:
        """Returns what a person who wants the run to be faster should know."""
        embedded = [report for report in reports if report.waited]
        remarks = [f"encoder: {encoder}" for encoder in sorted({report.encoder for report in embedded})]
        n_resumed = sum(report.resumed for report in embedded)
        if n_resumed:
            remarks.append(f"{n_resumed} documents had been encoded by a run that was interrupted")
        n_out_of_memory = sum(report.out_of_memory for report in embedded)
        if n_out_of_memory:
            remarks.append(
                f"memory ran out {n_out_of_memory} times, and batches were divided: set max_batch_tokens lower"
            )
        if embedded:
            waited = {stage: sum(report.waited[stage] for report in embedded) for stage in embedded[0].waited}
            seconds = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in waited.items())
            busiest = min(waited, key=lambda stage: waited[stage])
            remarks.append(f"seconds that each stage waited for another: {seconds}; {busiest} is the limit")
        return remarks
