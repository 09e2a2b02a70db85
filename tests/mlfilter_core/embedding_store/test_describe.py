from pathlib import Path

import h5py
import numpy as np
import pytest

from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding_store.describe import describe
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.files.task_files import find_files
from tests.conftest import WriteLines


def test_a_file_is_described_by_its_datasets_counts_source_and_encoder(
    write_lines: WriteLines, tiny_files: ModelFiles, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    write_lines("corpus/x.jsonl", [{"id": f"doc {i}", "text": "a"} for i in range(7)] + [b"not JSON"])
    (source,) = find_files(tmp_path / "corpus", "*", SOURCE_SUFFIXES)
    request = EmbedRequest(tiny_files, tiny_encoder.settings, DocumentSchema(("text",)))
    embed_file(source, tmp_path / "x.h5", tmp_path / "rejected.jsonl", request, tiny_encoder)
    text = describe(tmp_path / "x.h5", "train")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == str(tmp_path / "x.h5")
    assert "embeddings 7 x 32, all finite" in lines
    assert {
        "documents 7",
        "rejected 1",
        "path x.jsonl",
        "pooling mean",
        f"weights_sha256 {tiny_files.weights_sha256}",
    } <= set(lines)
    assert lines[-1] == "first ids doc 0, doc 1, doc 2, doc 3, doc 4"


def test_a_file_of_another_tool_is_said_to_be_one(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.ones((3, 4))
    assert describe(tmp_path / "x.h5", "train").splitlines() == [
        str(tmp_path / "x.h5"),
        "group       train: embeddings",
        "embeddings  3 x 4, all finite",
        "provenance  none: made by another tool",
    ]


def test_an_embedding_that_is_not_sound_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.full((3, 4), np.nan)
    with pytest.raises(EmbeddingFileError, match="the embedding of row 0 has length nan"):
        describe(tmp_path / "x.h5", "train")
