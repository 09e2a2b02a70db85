"""Real outputs of both pipelines, made by the tiny encoder."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.annotate_inline import InlineAnnotation, annotate_embedded
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.heads.head import Head
from tests.conftest import WriteLines


@dataclasses.dataclass
class Outputs:
    """An output folder that jobs have filled."""

    corpus: Path
    folder: Path
    write_lines: WriteLines
    heads: list[Head]
    request: EmbedRequest
    encoder: Encoder

    def embed(
        self,
        name: str,
        records: Iterable[Any] | None,
        embedding_dir: str = "embeddings",
        rejected_dir: str = "rejected",
        encoder: Encoder | None = None,
        **changes: Any,
    ) -> tuple[TaskFile, EmbedReport]:
        """Writes a source, or keeps it for None, and embeds it; keywords change the request."""
        if records is not None:
            self.write_lines(f"corpus/{name}", records)
        (source,) = find_files(self.corpus, name, SOURCE_SUFFIXES)
        encoder = encoder or self.encoder
        request = dataclasses.replace(self.request, encoder=encoder.settings, **changes)
        rejects = source.output(self.folder / rejected_dir, ".jsonl")
        file = TaskFile(f"{source.stem}.h5", source.stem, self.folder / embedding_dir)
        return file, embed_file(source, file.path, rejects, request, encoder)

    def annotate_request(self, **changes: Any) -> AnnotateRequest:
        sha256 = {head.name: "0" * 64 for head in self.heads}
        return dataclasses.replace(AnnotateRequest(self.folder / "annotated_data", sha256), **changes)

    def annotate(self, file: TaskFile, **changes: Any) -> None:
        """Scores a file with a linear head of one target and an MLP of two; keywords change the request."""
        annotate_file(file, self.annotate_request(**changes), self.heads)

    def embed_and_annotate(self, name: str, records: Iterable[Any], **changes: Any) -> None:
        """Removes the embeddings, like a job with `keep_embeddings: false`."""
        file, report = self.embed(name, records, embedding_dir=".embeddings", **changes)
        annotate_embedded(report, file, InlineAnnotation(self.annotate_request(), keep_embeddings=False), self.heads)


@pytest.fixture
def outputs(
    tmp_path: Path, write_lines: WriteLines, tiny_files: ModelFiles, tiny_encoder: Encoder, heads: list[Head]
) -> Outputs:
    """Sources go to corpus/, outputs to out/; lines above 2048 bytes are rejected."""
    request = EmbedRequest(tiny_files, tiny_encoder.settings, DocumentSchema(("text",)), max_line_bytes=2048)
    return Outputs(tmp_path / "corpus", tmp_path / "out", write_lines, heads, request, tiny_encoder)
