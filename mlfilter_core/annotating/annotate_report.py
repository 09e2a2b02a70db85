"""The report of an annotated file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from mlfilter_core.annotating.annotated_format import first_lines
from mlfilter_core.files.urls import url_of
from mlfilter_core.work.workload import ReportDefaults


@dataclass(frozen=True)
class AnnotateReport(ReportDefaults):
    """The result of annotating one file of embeddings.

    Attributes:
        embeddings: Path relative to the folder of embeddings.
        output: The annotated file.
        status: `annotated`, or `skipped` where the output was finished before.
        documents: Number of rows of the HDF5 file, which are the lines of the output.
        missing_values: Number of documents that lack an output key, by key; the value is written as null.
        mismatched_heads: Differences between the encoders of head and embeddings, by head.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = ("documents", "seconds", "documents/s")
    SUMMED: ClassVar[Sequence[str]] = ("documents",)
    NO_COLUMNS: ClassVar[Sequence[str]] = ("mismatched_heads",)

    embeddings: str
    output: str
    status: Literal["annotated", "skipped"]
    documents: int
    missing_values: dict[str, int]
    mismatched_heads: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0

    @staticmethod
    def remarks_on(reports: "Sequence[AnnotateReport]") -> list[str]:
        """Returns the heads that were trained on another encoder."""
        mismatched = {item for report in reports for item in report.mismatched_heads.items()}
        return [
            f"head {name} was trained on the embeddings of another encoder: {differences}"
            for name, differences in sorted(mismatched)
        ]

    @staticmethod
    def sample_of(reports: "Sequence[AnnotateReport]") -> list[str]:
        """Returns the first documents of the first file on this machine, with long strings cut."""
        if url_of(reports[0].output) is not None:
            return []
        first = Path(reports[0].output)
        return [f"first documents of {first}:", *(f"  {line}" for line in first_lines(first))]
