"""The outputs of a filter run for an annotated file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlfilter_core.annotating.annotated_format import SUFFIXES, Compression, provenance_path
from mlfilter_core.config.filtering import FilterParameters
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.survey import SurveyRequest
from mlfilter_core.filtering.thresholds import Thresholds

PARQUET_SUFFIX = ".parquet"
OUTPUT_SUFFIXES = (*SUFFIXES.values(), PARQUET_SUFFIX)


@dataclass(frozen=True)
class FilterRequest:
    """The settings of a filter run for every file.

    Attributes:
        thresholds: Thresholds that a document must reach to be kept.
        survey: Request of the surveys.
        output_dir: Folder of the kept documents.
        dropped_dir: Folder of the dropped documents.
        write_dropped: Whether to write the dropped documents.
        output_format: Format of the written files.
        compression: Compression of JSON lines.
        source_dir: Current folder of the source files; None where they have not moved since they were embedded.
    """

    thresholds: Thresholds
    survey: SurveyRequest
    output_dir: Path
    dropped_dir: Path
    write_dropped: bool = False
    output_format: Literal["jsonl", "parquet"] = "jsonl"
    compression: Compression = None
    source_dir: Path | None = None

    @staticmethod
    def of(params: FilterParameters, thresholds: Thresholds) -> "FilterRequest":
        """Returns the request of a job."""
        return FilterRequest(
            thresholds,
            SurveyRequest.of(params),
            params.filtered_dir,
            params.dropped_dir,
            write_dropped=params.write_dropped,
            output_format=params.output_format,
            compression=params.compression,
            source_dir=params.source_dir,
        )

    @property
    def suffix(self) -> str:
        return PARQUET_SUFFIX if self.output_format == "parquet" else SUFFIXES[self.compression]

    def outputs(self, file: TaskFile) -> list[Path]:
        """Returns the files that are written for a file, the kept documents first."""
        folders = (self.output_dir, self.dropped_dir) if self.write_dropped else (self.output_dir,)
        return [file.output(folder, self.suffix) for folder in folders]

    def stale(self, file: TaskFile) -> list[Path]:
        """Returns the existing outputs of a file that this request does not write."""
        return [path for path in self.others(file) if path.exists()]

    def others(self, file: TaskFile) -> list[Path]:
        """Returns the files that other requests write for a file, and this one does not."""
        folders, wanted = (self.output_dir, self.dropped_dir), self.outputs(file)
        written = [file.output(folder, suffix) for folder in folders for suffix in OUTPUT_SUFFIXES]
        return [path for path in written if path not in wanted]

    def provenance_file(self, file: TaskFile) -> Path:
        return provenance_path(self.output_dir, f"{file.stem}{self.suffix}")

    def stale_provenance(self, file: TaskFile) -> list[Path]:
        """Returns where the provenance of outputs with other suffixes would lie."""
        return [provenance_path(self.output_dir, f"{file.stem}{end}") for end in OUTPUT_SUFFIXES if end != self.suffix]

    def criteria(self) -> tuple[str, ...]:
        """Returns the thresholds as text."""
        return tuple(thresholds.describe() for thresholds in self.thresholds.of_scores)

    def provenance(self, groups: Iterable[str]) -> dict[str, Any]:
        """Returns what the content of an output depends on besides the annotated file.

        Args:
            groups: Groups of the annotated file. The thresholds and shares of other groups do not affect it.
        """
        of_scores = self.thresholds.of_scores
        shares = [{group: each.shares[group] for group in groups if group in each.shares} for each in of_scores]
        return {
            "keep": [each.bound.model_dump(exclude_none=True) | {"score": each.score} for each in of_scores],
            "at_least": self.thresholds.n_needed,
            "per": self.survey.per,
            "cuts": [{group: each.ranks[group] for group in groups if group in each.ranks} for each in of_scores],
            "whole_documents": self.survey.embeddings is not None,
            "write_dropped": self.write_dropped,
            **({"shares": shares} if any(each.shares for each in of_scores) else {}),
        }
