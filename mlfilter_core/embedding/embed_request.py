"""The request of an embedding run, and the check of finished files against it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES
from mlfilter_core.corpus.windows import DEFAULT_COMMIT_DOCUMENTS
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.writer import EmbeddingWriter
from mlfilter_core.errors import EmbeddingFileError, OutputConflictError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.same_request import check_same_request

if TYPE_CHECKING:
    from mlfilter_core.encoder.model_files import ModelFiles
    from mlfilter_core.encoder.settings import EncoderSettings

# Names of an encoder, which may change; the digests beside them identify it.
MODEL_NAMES = ("model", "revision")


@dataclass(frozen=True)
class EmbedRequest:
    """The settings for every file of an embedding run.

    Attributes:
        model: Files of the encoder.
        encoder: Encoder settings that change embeddings.
        schema: Keys of the text, id, index values and labels.
        group: Name of the HDF5 group.
        embedding_dtype: Dtype in the file: `float32`, `float16` or `int8`.
        batch_size: Most documents in one forward pass; None for no limit beside that of tokens.
        writer_batch_size: Rows per write to HDF5.
        commit_documents: Documents between checkpoints that survive a crash of the machine.
        fail_on_bad_record: Whether the first bad line fails its file.
        max_rejected_fraction: Share of rejected lines above which a file fails.
        max_line_bytes: Most bytes of a line; a longer line is rejected.
    """

    model: "ModelFiles"
    encoder: "EncoderSettings"
    schema: DocumentSchema
    group: str = "train"
    embedding_dtype: str = "float32"
    batch_size: int | None = None
    writer_batch_size: int = 1024
    commit_documents: int = DEFAULT_COMMIT_DOCUMENTS
    fail_on_bad_record: bool = False
    max_rejected_fraction: float = 1.0
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that change the content of the output."""
        return {
            **self.model.provenance(),
            **self.encoder.provenance(),
            **asdict(self.schema),
            "group": self.group,
            "embedding_dtype": self.embedding_dtype,
            "max_line_bytes": self.max_line_bytes,
        }

    @property
    def rows_dtype(self) -> str:
        """Dtype of embeddings until they are written, also in a checkpoint: int8 is made by the writer."""
        return "float32" if self.embedding_dtype == "int8" else self.embedding_dtype

    def open_writer(self, path: Path, dim: int) -> EmbeddingWriter:
        """Returns a writer of a file of embeddings of this width; the caller closes it."""
        return EmbeddingWriter(
            path,
            self.group,
            dim=dim,
            embedding_dtype=self.embedding_dtype,
            label_shape=self.schema.label_shape,
            label_dtype=self.schema.label_dtype,
            index_keys=self.schema.index_keys,
            slice_rows=self.writer_batch_size,
            has_chunks=self.encoder.chunks is not None,
        )


def finished_embedding(
    source: TaskFile, output: Path, request: EmbedRequest, read_content: bool = True
) -> EmbedReport | None:
    """Returns the report of a finished output, or None where the file is not finished.

    Args:
        source: The source file.
        output: Its HDF5 file, which need not exist.
        request: The request of this run.
        read_content: Whether to read a source whose modification time differs; otherwise it counts as not finished.

    Raises:
        OutputConflictError: The output was made from another source or by another request; names the differences.
    """
    if not output.exists():
        return None
    try:
        with EmbeddingFile(output, request.group) as file:
            made = file.provenance
    except EmbeddingFileError as error:
        raise OutputConflictError(f"{error}; or set params.overwrite: true to replace it") from error
    if made is None:
        raise OutputConflictError(
            f"{output} was made by another tool; move it away, or set params.overwrite: true to replace it"
        )
    check_same_request(output, made.request, request.provenance(), ignored=MODEL_NAMES, field="embedding_dir")
    is_same = is_same_file(source.path, made.source, read_content)
    if is_same is None:
        return None
    if not is_same:
        raise OutputConflictError(
            f"{output} was made from another version of {source.path}; set params.overwrite: true to embed it again"
        )
    return EmbedReport(source.relative, str(output), "skipped", **made.counts)
