"""The deduplication job: embeddings in which to find near-duplicates, what to keep of each group, and output."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import Written

DUPLICATES_DIR, DEDUPLICATED_DIR = "duplicates", "deduplicated"
SUMMARY_FILE = f"{DUPLICATES_DIR}.json"
GROUPS_FILE = f"{DUPLICATES_DIR}.arrow"
EXACT = "exact"


class DeduplicationParameters(Written):
    """The parameters of a deduplication job."""

    embeddings_directory: Path = Field(description="Folder of the HDF5 files, searched recursively.")
    glob_pattern: str = Field(
        "**/*", min_length=1, description="Pattern of .h5 or .hdf5 files below embeddings_directory."
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    threshold: Literal["exact"] | Annotated[float, Field(gt=0, le=1)] = Field(
        description="Lowest cosine of two embeddings whose documents are duplicates, such as 0.9; equal texts always "
        "are. exact: equal texts only."
    )
    clusters_directory: Path | None = Field(
        None,
        description="Folder of the files of clusters that a cluster job made from the same embeddings: a document is "
        "compared with those of its cell, a part of the space that is smaller than most clusters, and of others near "
        "it. Not used with threshold: exact.",
    )
    centroids: Path | None = Field(
        None,
        description="File of the centroids of these clusters, if the cluster job named one as centroids. Unset: "
        "clusters.safetensors beside the folder clusters.",
    )
    neighbours: int = Field(
        8,
        ge=0,
        description="Most cells beside its own that a document is compared with; they are the nearest ones, as far as "
        "their border is within the reach of threshold. The run states the share of pairs that it finds.",
    )
    prefer: Literal["first", "longest", "best"] = Field(
        "longest",
        description="Document to keep of each group: first in order of files and rows, longest in tokens, or best in "
        "score. The first of several equal ones.",
    )
    score: str | None = Field(None, description="Score of prefer: best, by its name with or without `score_`.")
    annotated_directory: Path | None = Field(
        None,
        description="Folder of the annotated files that were made from the embeddings. Set: their lines are written. "
        "Unset: whole source documents are.",
    )
    source_dir: Path | None = Field(
        None, description="Folder of the source files, if they have moved since they were embedded."
    )
    output_dir: Path = Field(
        description=f"Output folder; kept documents go to {DEDUPLICATED_DIR}/ in it, the duplicates of each file to "
        f"{DUPLICATES_DIR}/."
    )
    write_documents: bool = Field(True, description="Write the kept documents; otherwise only the list of duplicates.")
    compression: Literal["gzip", "zstd"] | None = Field(None, description="Compression of the written documents.")
    memory_gb: float = Field(4, gt=0, description="Most memory for the embeddings that a worker compares, in GB.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the sample that shows the share of pairs found.")
    device: str = Field("auto", description="auto (CUDA, then MPS, then CPU), cpu, mps, cuda or cuda:<n>.")
    overwrite: bool = Field(False, description="Replace finished files that were made with other settings.")

    @model_validator(mode="after")
    def _fits_together(self) -> "DeduplicationParameters":
        if self.threshold != EXACT and self.clusters_directory is None:
            raise ValueError(
                "a search for near-duplicates needs clusters; set clusters_directory to those of a cluster job, or "
                "threshold: exact"
            )
        if self.centroids is not None and self.clusters_directory is None:
            raise ValueError("centroids are those of clusters_directory, which is not set; set it, or remove centroids")
        if (self.prefer == "best") != (self.score is not None):
            raise ValueError("prefer: best goes with score, the name of the score that decides; set both or neither")
        if self.score is not None and self.annotated_directory is None:
            raise ValueError("score needs annotated_directory, whose lines have it")
        return self

    @property
    def duplicates_dir(self) -> Path:
        """Folder of the files with the duplicates of each file."""
        return self.output_dir / DUPLICATES_DIR

    @property
    def deduplicated_dir(self) -> Path:
        """Folder of the kept documents."""
        return self.output_dir / DEDUPLICATED_DIR

    @property
    def groups_file(self) -> Path:
        """File of the duplicates of the corpus, with the document that is kept of each group."""
        return self.output_dir / GROUPS_FILE

    @property
    def summary_file(self) -> Path:
        """File of counts and the largest groups."""
        return self.output_dir / SUMMARY_FILE


class DeduplicationJob(Job):
    """A run that removes near-duplicates."""

    one_per_core: ClassVar[bool] = False

    params: DeduplicationParameters = Field(description="Embeddings, what to keep of each group, and output.")

    @property
    def device(self) -> str:
        return self.params.device

    @property
    def about(self) -> str:
        return f"{self.params.embeddings_directory}, to {self.params.output_dir}"
