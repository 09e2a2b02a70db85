"""What an export is asked for, and where its outputs lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlfilter_core.annotating.annotated_format import provenance_path
from mlfilter_core.corpus.parquet_source import PARQUET_SUFFIX
from mlfilter_core.embedding_store.clusters_of_rows import Clusters
from mlfilter_core.exporting.columns import OF_CLUSTERS, OF_DUPLICATES, Column
from mlfilter_core.exporting.duplicates_of_rows import CorpusDuplicates
from mlfilter_core.files.task_files import TaskFile

NPY_SUFFIX = ".npy"


@dataclass(frozen=True)
class ExportRequest:
    """The settings of an export.

    Attributes:
        embeddings: Folder of the files of embeddings.
        output_dir: Folder of the exported files.
        annotated: Folder of the annotated files that were made from them; None exports no scores.
        columns: Names of columns, or patterns for them, in order; None takes ids, scores, clusters,
            duplicates and embeddings.
        format: `parquet`, or `npy`: embeddings as a NumPy array, the rest as Parquet.
        group: Name of the HDF5 group.
        glob_pattern: Glob of the files, relative to `embeddings`.
        overwrite: Whether to replace outputs of other settings or inputs.
        clusters: The clusters of the documents; None exports none.
        duplicates: The duplicates of the corpus; None exports none.
        source_dir: Folder of the sources, for the beginnings of texts; None where they have not moved since they were
            embedded.
    """

    embeddings: Path
    output_dir: Path
    annotated: Path | None = None
    columns: tuple[str, ...] | None = None
    format: Literal["parquet", "npy"] = "parquet"
    group: str = "train"
    glob_pattern: str = "**/*"
    overwrite: bool = False
    clusters: Clusters | None = None
    duplicates: CorpusDuplicates | None = None
    source_dir: Path | None = None

    @property
    def columns_of_others(self) -> Sequence[Column]:
        """The columns that come from the files of clusters and of duplicates."""
        return (
            *(OF_CLUSTERS if self.clusters is not None else ()),
            *(OF_DUPLICATES if self.duplicates is not None else ()),
        )

    def table(self, file: TaskFile) -> Path:
        """Returns the Parquet file that is made from a file; it states how it was made, also for the array."""
        return file.output(self.output_dir, PARQUET_SUFFIX)

    def array(self, file: TaskFile) -> Path | None:
        """Returns the NumPy file that is made from a file, if any."""
        return file.output(self.output_dir, NPY_SUFFIX) if self.format == "npy" else None

    @property
    def settings_file(self) -> Path:
        """The file that states the settings and the encoder of an output folder, and that it is one."""
        return provenance_path(self.output_dir, "export")

    def settings(self, columns: Mapping[str, str]) -> dict[str, Any]:
        """Returns what the content of an output depends on, beside its inputs.

        Args:
            columns: Type of each column, by its name.
        """
        others = {"clusters": self.clusters, "duplicates": self.duplicates}
        made = {name: of_corpus.provenance() for name, of_corpus in others.items() if of_corpus is not None}
        return {"format": self.format, "group": self.group, "columns": dict(columns), **made}
