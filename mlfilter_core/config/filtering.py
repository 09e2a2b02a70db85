"""A filter job: which documents of annotated files to keep, and what to write of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import Written

SCORE_PREFIX = "score_"
FILTERED_DIR, DROPPED_DIR = "filtered", "dropped"
DEFAULT_PERCENTILE = 70.0


class Bound(Written):
    """From where on a score is good enough: one of the three. Without any: `percentile: 70`."""

    percentile: Annotated[float, Field(ge=0, lt=100)] | None = Field(
        None,
        description="Percentage of the documents that are below: 70 keeps the best 30 %. Means the same for every head "
        "and corpus, as a threshold does not.",
    )
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="Lowest score that is kept."
    )
    best_tokens: Annotated[int, Field(ge=1, le=2**62)] | None = Field(
        None, description="Tokens to keep, of the best documents; as many whole documents as fit."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "Bound":
        if len(self.model_dump(exclude_none=True)) > 1:
            raise ValueError("percentile, threshold and best_tokens exclude one another; give one")
        return self

    def describe(self) -> str:
        """Returns it in words."""
        if self.threshold is not None:
            return f"threshold {self.threshold:g}"
        if self.best_tokens is not None:
            return f"best {self.best_tokens:,} tokens"
        return f"percentile {self.percentile_or_default:g}"

    @property
    def percentile_or_default(self) -> float:
        return DEFAULT_PERCENTILE if self.percentile is None else self.percentile


class Selection(Written):
    """Which documents are kept: those with enough scores that are good enough."""

    scores: dict[str, Bound] = Field(
        min_length=1,
        description="Name of each score, with or without `score_`, and from where on it is good enough: `percentile`, "
        "`threshold` or `best_tokens`; nothing is `percentile: 70`.",
    )
    at_least: int | None = Field(None, ge=1, description="So many scores must be good enough. Unset: all.")
    per: str | None = Field(
        None,
        description="Key of which each value has percentiles and tokens of its own, such as language: a key of the "
        "annotated lines, or of the index of the embeddings.",
    )

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
        return self

    @property
    def n_needed(self) -> int:
        """Scores that must be good enough."""
        return len(self.scores) if self.at_least is None else self.at_least


class FilterParameters(Written):
    """Which documents of annotated files to keep, and what to write of them."""

    annotated_directory: Path = Field(description="Folder of the annotated files, searched recursively.")
    glob_pattern: str = Field("**/*", min_length=1, description="Which .jsonl, .jsonl.gz or .jsonl.zst files below it.")
    keep: Selection = Field(description="Which documents are kept: the fields of a selection.")
    embeddings_directory: Path | None = Field(
        None,
        description="Folder of the HDF5 files that were scored: the whole source documents are written, with their "
        "scores. Unset: the lines of the annotated files as they are.",
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    source_dir: Path | None = Field(
        None, description="Where the source files lie now, if not where they were embedded from."
    )
    output_dir: Path = Field(description=f"Kept documents go to {FILTERED_DIR}/ in it.")
    write_dropped: bool = Field(False, description=f"Write the others, too, to {DROPPED_DIR}/.")
    output_format: Literal["jsonl", "parquet"] = Field("jsonl", description="Of the written documents.")
    compression: Literal["gzip", "zstd"] | None = Field(None, description="Of JSON lines; Parquet has its own, zstd.")
    overwrite: bool = Field(False, description="Replace finished files that another request made.")

    @model_validator(mode="after")
    def _fits_together(self) -> "FilterParameters":
        if self.output_format == "parquet" and self.compression == "gzip":
            raise ValueError("output_format: parquet is compressed with zstd; leave compression out")
        return self

    @property
    def filtered_dir(self) -> Path:
        """Where the kept documents lie."""
        return self.output_dir / FILTERED_DIR

    @property
    def dropped_dir(self) -> Path:
        """Where the others lie, with `write_dropped`."""
        return self.output_dir / DROPPED_DIR


class FilterJob(Job):
    """A run that filters a corpus."""

    params: FilterParameters = Field(description="What to keep, of what, and where to.")
