"""One source file to one annotated file in one step, with or without keeping its embeddings."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_request import AnnotateRequest, finished_annotation, read_annotation
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import MODEL_NAMES, EmbedRequest, finished_embedding
from mlfilter_core.errors import OutputConflictError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.same_request import REPLACE, check_same_request

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head


@dataclass(frozen=True)
class InlineAnnotation:
    """The annotation of each file of an embedding run.

    Attributes:
        request: Request of the annotated file.
        keep_embeddings: Whether to keep the HDF5 file.
    """

    request: AnnotateRequest
    keep_embeddings: bool


def annotate_embedded(
    embedded: EmbedReport, embeddings: TaskFile, annotation: InlineAnnotation, heads: list["Head"]
) -> EmbedReport:
    """Scores an embedded file as an annotation job would, and then removes its embeddings unless they are kept.

    After a kill in between, the next call uses the finished embeddings.

    Args:
        embedded: Report of the embedding.
        embeddings: The HDF5 file.
        annotation: The annotation.
        heads: Heads of `annotation.request`, on the device to use.

    Returns:
        The same report; its output is the annotated file where the embeddings are removed.

    Raises:
        HeadError, AnnotationError, OSError: As `annotate_file`.
    """
    annotate_file(embeddings, annotation.request, heads)
    if annotation.keep_embeddings:
        return embedded
    embeddings.path.unlink()
    return replace(embedded, output=str(annotation.request.output(embeddings)))


def finished_embedding_and_annotation(
    source: TaskFile,
    embeddings: TaskFile,
    request: EmbedRequest,
    annotation: InlineAnnotation,
    read_content: bool = True,
) -> EmbedReport | None:
    """Returns the report of finished outputs, or None where one is missing.

    Raises:
        OutputConflictError: An output was made from another source, by another request or another tool.
    """
    if annotation.keep_embeddings:
        report = finished_embedding(source, embeddings.path, request, read_content)
        if report is not None:
            return report if finished_annotation(embeddings, annotation.request, read_content) else None
    made = read_annotation(embeddings, annotation.request, read_content)
    if made is None:
        return None
    output = annotation.request.output(embeddings)
    if made["source"] is None:
        raise OutputConflictError(f"{output} was made from embeddings of another tool; {REPLACE}")
    check_same_request(output, made["embeddings"]["request"], request.provenance(), ignored=MODEL_NAMES)
    is_same = is_same_file(source.path, made["source"], read_content)
    if is_same is False:
        raise OutputConflictError(f"{output} was made from another version of {source.path}; {REPLACE}")
    if is_same is None or annotation.keep_embeddings:
        return None
    return EmbedReport(source.relative, str(output), "skipped", **made["counts"])
