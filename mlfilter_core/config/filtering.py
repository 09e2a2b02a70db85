"""The filter job: documents to keep, and output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mlfilter_core.config.execution import Job
from mlfilter_core.config.group_weights import weights_by_group
from mlfilter_core.config.written import SPLIT, Split, Written

SCORE_PREFIX = "score_"
FILTERED_DIR, DROPPED_DIR = "filtered", "dropped"
DEFAULT_PERCENTILE = 70.0
Weights = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class Bound(Written):
    """The threshold of one score, in one of three ways. Unset: `percentile: 70`."""

    percentile: Annotated[float, Field(ge=0, lt=100)] | None = Field(
        None,
        description="Percentage of the documents to drop: 70 keeps the best 30 %. It means the same for every head and "
        "corpus, unlike threshold.",
    )
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = Field(None, description="Lowest score to keep.")
    best_tokens: Annotated[int, Field(ge=1, le=2**62)] | None = Field(
        None, description="Number of tokens to keep: the best documents, as many as fit completely."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "Bound":
        if len(self.model_dump(exclude_none=True)) > 1:
            raise ValueError("percentile, threshold and best_tokens exclude each other; give one")
        return self

    def describe(self, has_weights: bool = False) -> str:
        """Returns the bound as text: `percentile 70`.

        Args:
            has_weights: Whether tokens are divided among groups by weights.
        """
        if self.threshold is not None:
            return f"threshold {self.threshold:g}"
        if self.best_tokens is not None:
            return f"best {self.best_tokens:,} tokens{' by weights' if has_weights else ''}"
        return f"percentile {self.percentile_or_default:g}"

    @property
    def percentile_or_default(self) -> float:
        return DEFAULT_PERCENTILE if self.percentile is None else self.percentile


class Selection(Written):
    """The documents to keep: those with enough scores that reach their thresholds."""

    scores: dict[str, Bound] = Field(
        min_length=1,
        description="Limit of each score, by its name with or without `score_`: `percentile`, `threshold` or "
        "`best_tokens`. Empty: `percentile: 70`.",
    )
    at_least: int | None = Field(None, ge=1, description="Number of scores that must reach their limits. Unset: all.")
    per: str | None = Field(
        None,
        description="Key to group documents by, such as language; percentile and best_tokens apply within each group. "
        "A key of the annotated lines, or of the index in the embeddings.",
    )

    weights: Weights | None = Field(
        None,
        description="Weight of each group, by its value of per, or a YAML or JSON file with them. best_tokens is then "
        "the total, of which each group gets a share; a group without a weight gets none.",
    )

    @field_validator("weights", mode="before", json_schema_input_type=Weights | Path | None)
    @classmethod
    def _weights_may_be_in_a_file(cls, value: Any) -> Any:
        return weights_by_group(value)

    @field_validator("scores", mode="before")
    @classmethod
    def _bounds_may_be_left_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, Mapping):
            return {name: {} if bound is None else bound for name, bound in value.items()}
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "Selection":
        twice = [name for name in self.scores if f"{SCORE_PREFIX}{name}" in self.scores]
        if twice:
            raise ValueError(f'scores "{twice[0]}" and "{SCORE_PREFIX}{twice[0]}" are the same one; give it once')
        if self.at_least is not None and self.at_least > len(self.scores):
            raise ValueError(f"at_least is {self.at_least}, and there are {len(self.scores)} scores")
        if self.weights is not None:
            if self.per is None or all(bound.best_tokens is None for bound in self.scores.values()):
                raise ValueError("weights divide best_tokens among the groups of per; set both, or remove weights")
            if not any(self.weights.values()):
                raise ValueError("no weight is above 0, so that no group gets tokens; give one a higher weight")
        return self

    @property
    def n_needed(self) -> int:
        """Scores that must be good enough."""
        return len(self.scores) if self.at_least is None else self.at_least


class FilterParameters(Written):
    """The parameters of a filter job."""

    annotated_directory: Path = Field(description="Folder of the annotated files, searched recursively.")
    glob_pattern: str = Field("**/*", min_length=1, description="Pattern of .jsonl files below it, compressed or not.")
    keep: Selection = Field(description="Documents to keep: the fields of a selection.")
    embeddings_directory: Path | None = Field(
        None,
        description="Folder of the HDF5 files that were scored. Set: write whole source documents with their scores. "
        "Unset: write the lines of the annotated files unchanged.",
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    source_dir: Path | None = Field(
        None, description="Folder of the source files, if they have moved since they were embedded."
    )
    output_dir: Path = Field(description=f"Output folder; kept documents go to {FILTERED_DIR}/ in it.")
    write_dropped: bool = Field(False, description=f"Also write the dropped documents, to {DROPPED_DIR}/.")
    output_format: Literal["jsonl", "parquet"] = Field("jsonl", description="Format of the written documents.")
    compression: Literal["gzip", "zstd"] | None = Field(
        None, description="Compression of JSON lines. Parquet is always compressed with zstd."
    )
    split: Split = Field("auto", description=SPLIT.format(work="filter", limit="rows allow"))
    overwrite: bool = Field(False, description="Replace finished files that were made with other settings.")

    @model_validator(mode="after")
    def _fits_together(self) -> "FilterParameters":
        if self.output_format == "parquet" and self.compression == "gzip":
            raise ValueError("output_format: parquet is compressed with zstd; leave compression out")
        return self

    @property
    def filtered_dir(self) -> Path:
        """Folder of the kept documents."""
        return self.output_dir / FILTERED_DIR

    @property
    def dropped_dir(self) -> Path:
        """Folder of the dropped documents, with `write_dropped`."""
        return self.output_dir / DROPPED_DIR


class FilterJob(Job):
    """A run that filters a corpus."""

    params: FilterParameters = Field(description="Documents to keep, and output.")

    @property
    def about(self) -> str:
        return f"{self.params.annotated_directory}, to {self.params.output_dir}"
