"""The annotation job: embeddings to score, heads, and output fields."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import SPLIT, Split, Written
from mlfilter_core.embedding_store.layout import CLUSTER_KEYS
from mlfilter_core.files.urls import check_url, shown_path, url_of

HEAD_NAME = re.compile(r"[A-Za-z0-9_.-]+")
ANNOTATED_DIR = "annotated_data"


class Ensemble(Written):
    """A score that combines several scores."""

    heads: tuple[str, ...] = Field(
        min_length=2, description="Scores to combine, without prefix: names of heads, or <head>_<target>."
    )
    combine: Literal["mean", "median", "min", "max", "weighted", "agreement"] = Field(
        "mean", description="How to combine them. agreement: the number of scores that reach their thresholds."
    )
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="Weight of each score, with combine: weighted."
    )
    thresholds: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="Lowest value of each score that counts as agreement, with combine: agreement.",
    )
    at_least: int | None = Field(
        None,
        ge=1,
        description="Number of scores that must reach their thresholds for label_<name> to be true. Unset: all.",
    )

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> "Ensemble":
        for name, way, values in (("weights", "weighted", self.weights), ("thresholds", "agreement", self.thresholds)):
            if self.combine == way and set(values) != set(self.heads):
                raise ValueError(f"combine: {way} needs {name} of {', '.join(self.heads)}, and of no others")
            if self.combine != way and values:
                raise ValueError(f"{name} go with combine: {way}")
        if self.at_least is not None and (self.combine != "agreement" or self.at_least > len(self.heads)):
            raise ValueError(f"at_least goes with combine: agreement, and is {len(self.heads)} at most")
        if len(set(self.heads)) < len(self.heads):
            raise ValueError("a score is named twice")
        return self


class Scoring(Written):
    """Heads to score with, and output fields."""

    regression_head_checkpoints: dict[str, str] = Field(
        min_length=1, description="Checkpoint of the head for each score, by the score's name; may be a URL."
    )
    output_keys: tuple[str, ...] = Field(
        ("document_id",),
        description="Fields to write beside the scores: names in the HDF5 file, otherwise keys of the source document. "
        '"*" is the whole source document; score_education_chunks lists the scores of a document\'s chunks.',
    )
    score_prefix: str = Field("score_", description="Prefix of a head's name in the output.")
    ensembles: dict[str, Ensemble] = Field(
        default_factory=dict, description="Scores that combine other scores, by name."
    )
    integer_scales: dict[str, tuple[int, int]] = Field(
        default_factory=dict,
        description="Range of a score as whole numbers, as in {education: [0, 5]}: int_score_education is the score, "
        "rounded and clipped to the range.",
    )
    score_combine: Literal["mean", "max", "top_k_mean", "first"] = Field(
        "mean",
        description="How the scores of a document's chunks become its score, where the embedding job divided documents "
        "into chunks. top_k_mean: the mean of the score_top_k highest.",
    )
    score_top_k: int = Field(3, ge=1, description="Number of scores of score_combine: top_k_mean.")
    batch_size: int = Field(2048, ge=1, description="Embeddings per forward pass of the heads.")
    device: str = Field("cpu", description="Device of the heads: cpu, cuda, mps or auto.")
    model_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Precision of the heads.")
    compression: Literal["gzip", "zstd"] | None = Field(None, description="Compression of the annotated files.")
    allow_mismatched_head: bool = Field(
        False, description="Score with heads that were trained on another encoder's embeddings; the files record it."
    )

    @field_validator("regression_head_checkpoints", "ensembles")
    @classmethod
    def _usable_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not HEAD_NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may have letters, digits, _, . and - only")
        return value

    @field_validator("regression_head_checkpoints")
    @classmethod
    def _urls_can_be_read(cls, value: dict[str, str]) -> dict[str, str]:
        for name, checkpoint in value.items():
            try:
                if (url := url_of(checkpoint)) is not None:
                    check_url(url, is_written=False)
            except ValueError as error:
                raise ValueError(f"the checkpoint of {name}: {error}") from error
        return value

    @field_validator("integer_scales")
    @classmethod
    def _have_numbers(cls, value: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        for name, (lowest, highest) in value.items():
            if lowest >= highest:
                raise ValueError(f"{name}: the scale from {lowest} to {highest} is empty; write the lower first")
        return value


class AnnotationPipelineParameters(Scoring):
    """The parameters of an annotation job."""

    URLS: ClassVar[Mapping[str, bool]] = {"embeddings_directory": False, "source_dir": False, "output_dir": True}

    embeddings_directory: Path = Field(description="Folder of the HDF5 files, searched recursively; may be a URL.")
    glob_pattern: str = Field(
        "**/*", min_length=1, description="Pattern of .h5 or .hdf5 files below embeddings_directory."
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    source_dir: Path | None = Field(
        None, description="Folder or URL of the source files, if they have moved since they were embedded."
    )
    clusters_directory: Path | None = Field(
        None,
        description="Folder of the files of clusters that a cluster job made from the same embeddings. output_keys may "
        f"then have {', '.join(CLUSTER_KEYS)}.",
    )
    centroids: Path | None = Field(
        None,
        description="File of the centroids of these clusters, if the cluster job named one as centroids. Unset: "
        "clusters.safetensors beside the folder clusters.",
    )
    output_dir: Path = Field(description="Output folder or URL; annotated files go to annotated_data/ in it.")
    overwrite: bool = Field(False, description="Replace finished files that were made with other settings.")
    split: Split = Field("auto", description=SPLIT.format(work="score", limit="batches of rows allow"))
    embedding_dtype: str | None = Field(
        None, description="Ignored; accepted from older job files. Embeddings are read as stored."
    )
    label_dtype: str | None = Field(None, description="Ignored; accepted from older job files.")

    @model_validator(mode="after")
    def _uses_clusters(self) -> "AnnotationPipelineParameters":
        if self.clusters_directory is not None and not set(CLUSTER_KEYS) & set(self.output_keys):
            raise ValueError(f"clusters_directory goes with {', '.join(CLUSTER_KEYS)} in output_keys; add one of them")
        if self.centroids is not None and self.clusters_directory is None:
            raise ValueError("centroids are those of clusters_directory, which is not set; set it, or remove centroids")
        return self

    @property
    def annotated_output_dir(self) -> Path:
        return self.output_dir / ANNOTATED_DIR


class AnnotationJob(Job):
    """A run of the annotation pipeline."""

    params: AnnotationPipelineParameters = Field(description="Embeddings to score, heads, and output fields.")

    @property
    def device(self) -> str:
        return self.params.device

    @property
    def about(self) -> str:
        heads = ", ".join(self.params.regression_head_checkpoints)
        return f"{shown_path(self.params.embeddings_directory)} with {heads}, to {shown_path(self.params.output_dir)}"
