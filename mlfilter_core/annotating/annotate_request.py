"""The request of an annotation run, and the check of finished files against it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.annotated_format import SUFFIXES, Compression, provenance_path
from mlfilter_core.config.annotation import Ensemble
from mlfilter_core.embedding_store.clusters_of_rows import Clusters, ValuesOf
from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import OutputConflictError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.heads.chunk_scores import DEFAULT, ChunkCombination
from mlfilter_core.work.same_request import REPLACE, are_same_embeddings, check_same_request


@dataclass(frozen=True)
class AnnotateRequest:
    """The settings for every file of an annotation run.

    Attributes:
        output_dir: Folder of the annotated files.
        head_sha256: Digest of each head's checkpoint, by the head's name, in output order.
        output_keys: Names in the HDF5 file, otherwise keys of the source document; `*` is all of it. With `clusters`,
            `CLUSTER_KEYS` are theirs.
        score_prefix: Prefix of a head's name in the output.
        ensembles: Scores that combine other scores, by name.
        integer_scales: Lowest and highest whole number of a score, by its name.
        combine: How the scores of a document's chunks become its score.
        clusters: The clusters of the documents, for the output keys of clusters; None without them.
        group: Name of the HDF5 group.
        batch_size: Embeddings per forward pass of the heads.
        model_dtype: torch name of the heads' dtype.
        compression: Compression of the annotated files.
        source_dir: Folder of the sources; None where they have not moved since they were embedded.
        allow_mismatched_head: Whether to score with heads that were trained on another encoder.
    """

    output_dir: Path
    head_sha256: dict[str, str]
    output_keys: tuple[str, ...] = (DOCUMENT_ID,)
    score_prefix: str = "score_"
    group: str = "train"
    batch_size: int = 2048
    model_dtype: str = "float32"
    compression: Compression = None
    source_dir: Path | None = None
    allow_mismatched_head: bool = False
    ensembles: Mapping[str, Ensemble] = field(default_factory=dict)
    integer_scales: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    combine: ChunkCombination = DEFAULT
    clusters: Clusters | None = None

    def output(self, embeddings: TaskFile) -> Path:
        return embeddings.output(self.output_dir, SUFFIXES[self.compression])

    def provenance_file(self, embeddings: TaskFile) -> Path:
        return provenance_path(self.output_dir, f"{embeddings.stem}{SUFFIXES[self.compression]}")

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that change the content of the output; unset and later ones are left out."""
        ensembles = {name: ensemble.model_dump() for name, ensemble in self.ensembles.items()}
        return {
            "heads": self.head_sha256,
            "output_keys": list(self.output_keys),
            "score_prefix": self.score_prefix,
            "group": self.group,
            "model_dtype": self.model_dtype,
            **({"ensembles": ensembles} if ensembles else {}),
            **({"integer_scales": dict(self.integer_scales)} if self.integer_scales else {}),
            **self.combine.provenance(),
            **({"clusters": self.clusters.provenance()} if self.clusters is not None else {}),
        }

    def cluster_values(self, embeddings: TaskFile, file: EmbeddingFile) -> dict[str, ValuesOf]:
        """Returns functions from rows of a file to the output keys that come from its clusters.

        Args:
            embeddings: The HDF5 file.
            file: The same, open.

        Raises:
            ClusterFileError: The file of clusters is missing, broken, or belongs to other embeddings or centroids.
            ConfigError: The file of centroids was changed.
        """
        return {} if self.clusters is None else self.clusters.values(embeddings, file, self.output_keys)


def finished_annotation(
    embeddings: TaskFile, request: AnnotateRequest, read_content: bool = True
) -> AnnotateReport | None:
    """Returns the report of a finished output, or None where the file is not finished.

    Args:
        embeddings: The HDF5 file.
        request: The request of this run.
        read_content: Whether to read a file whose modification time differs; otherwise it counts as not finished.

    Raises:
        OutputConflictError: The output was made from other embeddings, by another request or another tool.
    """
    made = read_annotation(embeddings, request, read_content)
    if made is None:
        return None
    output = request.output(embeddings)
    if not are_same_embeddings(output, embeddings.path, request.group, made["embeddings"], read_content):
        return None
    return AnnotateReport(
        *(embeddings.relative, str(output), "skipped", made["documents"], made["missing_values"]),
        made.get("mismatched_heads", {}),
    )


def read_annotation(embeddings: TaskFile, request: AnnotateRequest, read_content: bool) -> dict[str, Any] | None:
    """Returns the provenance of an output; None where the output is missing, or would have to be read and is not.

    Args:
        embeddings: The HDF5 file that it was made from, which need not exist any more.
        request: The request of this run.
        read_content: Whether to read an output whose modification time differs.

    Raises:
        OutputConflictError: The output was made by another request or another tool, or was changed.
    """
    output = request.output(embeddings)
    if not output.exists():
        return None
    try:
        made: dict[str, Any] = json.loads(request.provenance_file(embeddings).read_text())
    except (FileNotFoundError, ValueError):
        raise OutputConflictError(f"{output} does not say which heads and embeddings made it; {REPLACE}") from None
    check_same_request(output, made["request"], request.provenance())
    is_same_output = is_same_file(output, made["output"], read_content)
    if is_same_output is False:
        raise OutputConflictError(f"{output} was changed since it was annotated; {REPLACE}")
    return made if is_same_output else None
