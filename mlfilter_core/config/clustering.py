"""The cluster job: embeddings to group by topic, number of clusters, and output."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import Written

CLUSTERS_DIR = "clusters"
LIST_FILE = f"{CLUSTERS_DIR}.jsonl"


class ClusterParameters(Written):
    """The parameters of a cluster job."""

    embeddings_directory: Path = Field(description="Folder of the HDF5 files, searched recursively.")
    glob_pattern: str = Field(
        "**/*", min_length=1, description="Pattern of .h5 or .hdf5 files below embeddings_directory."
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    source_dir: Path | None = Field(
        None, description="Folder of the source files, if they have moved since they were embedded."
    )
    n_clusters: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        description="Number of clusters. auto: half the square root of the number of documents; 500 for a million."
    )
    describe_by: tuple[str, ...] | None = Field(
        None,
        description="Keys in the index of the embeddings, whose most frequent values in the sample describe each "
        "cluster. Unset: language, where it is stored.",
    )
    centroids: Path | None = Field(
        None,
        description="File of centroids of an earlier run, to assign documents to instead of finding new ones: for a "
        "corpus that grew, or for another corpus of the same encoder.",
    )
    output_dir: Path = Field(
        description=f"Output folder; the cluster of each document goes to {CLUSTERS_DIR}/ in it, the list of clusters "
        f"to {LIST_FILE}."
    )
    memory_gb: float = Field(
        4,
        gt=0,
        description="Most memory for the sample of embeddings that centroids are found on, in GB. Names take some "
        "30 kB for each cluster beside it.",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the sample and of the first centroids.")
    device: str = Field("auto", description="auto (CUDA, then MPS, then CPU), cpu, mps, cuda or cuda:<n>.")
    overwrite: bool = Field(
        False,
        description="Replace finished files that were made with other settings, and find new centroids where the "
        "settings or the corpus changed.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "ClusterParameters":
        if self.centroids is not None and self.n_clusters != "auto":
            raise ValueError("centroids says how many clusters there are; set n_clusters: auto")
        return self

    @property
    def clusters_dir(self) -> Path:
        """Folder of the files with the cluster of each document."""
        return self.output_dir / CLUSTERS_DIR

    @property
    def list_file(self) -> Path:
        """File of the list of clusters."""
        return self.output_dir / LIST_FILE

    @property
    def centroids_file(self) -> Path:
        """File of the centroids that documents are assigned to."""
        return self.output_dir / f"{CLUSTERS_DIR}.safetensors" if self.centroids is None else self.centroids


class ClusterJob(Job):
    """A run that clusters a corpus."""

    one_per_core: ClassVar[bool] = False

    params: ClusterParameters = Field(description="Embeddings to cluster, number of clusters, and output.")

    @property
    def device(self) -> str:
        return self.params.device

    @property
    def about(self) -> str:
        return f"{self.params.embeddings_directory}, to {self.params.output_dir}"
