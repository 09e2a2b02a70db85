"""Shared fixtures: files are found, embedded and annotated as in a job; lists of the files that remain."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.annotating.annotate_request import AnnotateRequest, finished_annotation
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.files.task_files import find_files
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import Head
from tests.conftest import TINY_DIM

MAX_LINE_BYTES = 4096
Embed = Callable[[Path], EmbedReport]
Annotate = Callable[..., AnnotateReport]


@pytest.fixture
def embed(tiny_files: ModelFiles, tiny_encoder: Encoder, tmp_path: Path) -> Embed:
    """Finds the one source in a folder and embeds it to out/embeddings."""
    schema = DocumentSchema(("text",), index_keys=("text",))
    request = EmbedRequest(tiny_files, tiny_encoder.settings, schema, max_line_bytes=MAX_LINE_BYTES)

    def run(folder: Path) -> EmbedReport:
        (source,) = find_files(folder, "**/*", SOURCE_SUFFIXES)
        output, rejects = source.output(tmp_path / "out/embeddings", ".h5"), tmp_path / "out/rejected.jsonl"
        return embed_file(source, output, rejects, request, tiny_encoder)

    return run


@pytest.fixture
def heads(tmp_path: Path) -> list[Head]:
    torch.save({"weight": torch.ones(1, TINY_DIM)}, tmp_path / "head.pt")
    return [load_head("quality", tmp_path / "head.pt")]


@pytest.fixture
def annotate(tmp_path: Path, heads: list[Head]) -> Annotate:
    """Finds the one file of embeddings in a folder and annotates it to out/annotated_data."""

    def run(folder: Path, *output_keys: str, source_dir: Path | None = None) -> AnnotateReport:
        (file,) = find_files(folder, "**/*", EMBEDDING_SUFFIXES)
        sha256 = {head.name: "0" * 64 for head in heads}
        request = AnnotateRequest(tmp_path / "out/annotated_data", sha256, output_keys, source_dir=source_dir)
        assert finished_annotation(file, request) is None
        return annotate_file(file, request, heads)

    return run


def outputs(tmp_path: Path) -> list[str]:
    """Names of the written files, including incomplete ones."""
    return [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
