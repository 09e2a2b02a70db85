import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import Document, hash_text
from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.writer import EmbeddingWriter
from mlfilter_core.errors import EmbeddingFileError
from mlfilter_core.versions import library_versions
from tests.mlfilter_core.conftest import flip_a_bit

ALL = slice(None)
INDEX_KEYS = ("url", "meta/lang")
OTHER_COUNTS = ("lines", "rejected", "blank", "truncated", "duplicate_ids", "tokens")
Write = Callable[..., Path]


def provenance(n_documents: int, is_normalized: bool = False) -> Provenance:
    return Provenance(
        source={"path": "ä.jsonl", "folder": "/corpus", "bytes": 3, "mtime_ns": 4, "sha256": "a" * 64},
        request={"text_keys": ["text"], "id_key": None, "max_line_bytes": 5},
        encoder={"is_normalized": is_normalized},
        counts={"documents": n_documents, **dict.fromkeys(OTHER_COUNTS, 0)},
        versions=library_versions(),
    )


def make_documents(n: int, n_labels: int = 0) -> list[Document]:
    return [
        Document(i + 1, 100 * i, f"id-{i}-ä", "text", (f"url {i}", f"lang {i}"), tuple(range(i, i + n_labels)))
        for i in range(n)
    ]


def make_embeddings(n: int, dim: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((n, dim), np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes n documents, in portions, with embeddings of `make_embeddings`."""

    def write_file(*portions: int, n_labels: int = 0, dim: int = 6, dtype: str = "float32", **other: Any) -> Path:
        other.setdefault("label_shape", (n_labels,) if n_labels else None)
        settings = {"label_dtype": "float32", "index_keys": INDEX_KEYS, "slice_rows": 3, **other}
        n_rows = sum(portions)
        documents, embeddings = make_documents(n_rows, n_labels), make_embeddings(n_rows, dim)
        path = tmp_path / "x.h5"
        with EmbeddingWriter(path, "train", dim=dim, embedding_dtype=dtype, **settings) as writer:
            start = 0
            for portion in portions:
                rows = slice(start, start + portion)
                writer.append(documents[rows], embeddings[rows], np.arange(rows.start, rows.stop, dtype=np.int32))
                start += portion
            writer.finish(provenance(n_rows))
        return path

    return write_file


PORTIONS = [(10,), (1,), (4, 5, 1), (3, 3), (), (4095, 1), (4096, 1), (4000, 4000)]


@pytest.mark.parametrize("portions", PORTIONS, ids=str)
def test_every_dataset_is_read_as_it_was_written(write: Write, portions: tuple[int, ...]) -> None:
    n_rows = sum(portions)
    documents = make_documents(n_rows, 1)
    with EmbeddingFile(write(*portions, n_labels=1, label_shape=()), "train") as file:
        assert (file.n_rows, file.dim) == (n_rows, 6)
        np.testing.assert_array_equal(file.embeddings(ALL), make_embeddings(n_rows))
        assert file.embeddings(ALL).dtype == np.float32
        assert file.column("document_id", ALL) == [document.id for document in documents]
        assert file.column("index/url", ALL) == [document.index[0] for document in documents]
        assert file.column("index/meta_lang", ALL) == [document.index[1] for document in documents]
        assert list(file.column("labels", ALL)) == [float(i) for i in range(n_rows)]
        assert file.array("text_hash", ALL).tolist() == [hash_text("text")] * n_rows
        assert file.array("source_line", ALL).tolist() == [document.line for document in documents]
        assert file.array("source_offset", ALL).tolist() == [document.offset for document in documents]
        assert file.array("n_tokens", ALL).tolist() == list(range(n_rows))
        assert set(file.names()) == {
            *("embeddings", "document_id", "labels", "index/url", "index/meta_lang"),
            *("source_line", "source_offset", "n_tokens", "text_hash"),
        }
        assert file.provenance == provenance(n_rows)


def test_rows_are_read_in_slices(write: Write) -> None:
    with EmbeddingFile(write(10), "train") as file:
        slices = list(file.slices(4))
        assert slices == [slice(0, 4), slice(4, 8), slice(8, 10)]
        np.testing.assert_array_equal(np.concatenate([file.embeddings(rows) for rows in slices]), make_embeddings(10))
        assert file.column("document_id", slices[2]) == ["id-8-ä", "id-9-ä"]


def test_float16_is_stored_as_such_and_read_as_float32(write: Write) -> None:
    path = write(5, dtype="float16")
    with h5py.File(path) as plain:
        assert plain["train/embeddings"].dtype == np.float16
    with EmbeddingFile(path, "train") as file:
        assert file.embeddings(ALL).dtype == np.float32
        np.testing.assert_allclose(file.embeddings(ALL), make_embeddings(5), rtol=1e-3, atol=1e-6)


def test_int8_is_read_as_float32_by_its_scale(write: Write) -> None:
    path = write(5, dtype="int8")
    with h5py.File(path) as plain:
        whole, scales = plain["train/embeddings"], plain["train/embedding_scale"]
        assert (whole.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (5,))
        product = whole[:] * scales[:][:, None]
    with EmbeddingFile(path, "train") as file:
        found = np.concatenate([file.embeddings(rows) for rows in file.slices(2)])
        np.testing.assert_array_equal(found, product)
        np.testing.assert_allclose(found, make_embeddings(5), atol=np.abs(make_embeddings(5)).max() / 127)
        assert file.find("embedding_scale") is None


def test_int8_without_its_scale_is_refused(write: Write) -> None:
    path = write(5, dtype="int8")
    with h5py.File(path, "a") as plain:
        del plain["train/embedding_scale"]
    with pytest.raises(
        EmbeddingFileError, match=r"embeddings are int8 \(5, \d+\), not float .* int8 with embedding_scale"
    ):
        EmbeddingFile(path, "train")


def test_one_label_in_a_list_makes_a_matrix_of_one_column(write: Write) -> None:
    with EmbeddingFile(write(2, n_labels=1), "train") as file:
        assert file.array("labels", ALL).tolist() == [[0], [1]]


@pytest.mark.parametrize("n_rows", [0, 7])
def test_several_labels_make_a_matrix_of_their_dtype(write: Write, n_rows: int) -> None:
    with EmbeddingFile(write(n_rows, n_labels=3, label_dtype="int8"), "train") as file:
        labels = file.array("labels", ALL)
        assert labels.dtype == np.int8
        assert labels.shape == (n_rows, 3)
        assert labels.tolist() == [[i, i + 1, i + 2] for i in range(n_rows)]
        np.testing.assert_array_equal(file.column("labels", ALL), labels)


def test_a_key_is_found_under_its_own_name_or_in_the_index(write: Write) -> None:
    with EmbeddingFile(write(1), "train") as file:
        keys = ("document_id", "n_tokens", "url", "index/url", "meta/lang", "text", "embeddings", "index")
        assert {key: file.find(key) for key in keys} == {
            "document_id": "document_id",
            "n_tokens": "n_tokens",
            "url": "index/url",
            "index/url": "index/url",
            "meta/lang": "index/meta_lang",
            "text": None,
            "embeddings": None,
            "index": None,
        }


def test_a_plain_reader_needs_nothing_of_ours(write: Write) -> None:
    with h5py.File(write(4, n_labels=1, label_shape=())) as f:
        embeddings = torch.from_numpy(f["train"]["embeddings"][:])
        labels = torch.from_numpy(f["train"]["labels"][:])
        ids = f["train"]["document_id"].asstr()[:].tolist()
    torch.testing.assert_close(embeddings, torch.from_numpy(make_embeddings(4)))
    assert labels.tolist() == [0, 1, 2, 3]
    assert ids[3] == "id-3-ä"


def test_a_small_file_is_small(write: Write) -> None:
    assert write(20, dim=384, slice_rows=1024).stat().st_size < 100_000


def test_an_unfinished_file_has_no_provenance(tmp_path: Path) -> None:
    labels = {"label_shape": None, "label_dtype": "float32"}
    settings: dict[str, Any] = {**labels, "index_keys": INDEX_KEYS, "slice_rows": 3}
    with EmbeddingWriter(tmp_path / "x.h5", "train", dim=6, embedding_dtype="float32", **settings) as writer:
        writer.append(make_documents(5000), make_embeddings(5000), np.zeros(5000, np.int32))
    with EmbeddingFile(tmp_path / "x.h5", "train") as file:
        assert file.provenance is None


def test_a_file_of_another_tool_with_embeddings_alone_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.ones((3, 4), np.float64)
        f["train/name"] = np.array([b"a", b"b", b"c"])
    with EmbeddingFile(tmp_path / "x.h5", "train") as file:
        assert (file.n_rows, file.dim, file.provenance) == (3, 4, None)
        assert file.embeddings(ALL).dtype == np.float32
        assert file.column("name", slice(1, 3)) == ["b", "c"]
        file.check_content()
        with pytest.raises(
            EmbeddingFileError, match=r"x\.h5: no dataset source_offset, which only files of the embedding"
        ):
            file.array("source_offset", ALL)


def test_a_file_cut_short_is_refused(write: Write) -> None:
    path = write(50)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        EmbeddingFileError, match=r"x\.h5 is not an HDF5 file, or is cut short .*; embed its source again"
    ):
        EmbeddingFile(path, "train")


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n"])
def test_what_is_not_hdf5_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(EmbeddingFileError, match=r"x\.h5 is not an HDF5 file"):
        EmbeddingFile(tmp_path / "x.h5", "train")


def test_a_missing_file_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        EmbeddingFile(tmp_path / "x.h5", "train")


def test_another_group_is_suggested(write: Write) -> None:
    with pytest.raises(
        EmbeddingFileError, match=r'no group "test" with a dataset "embeddings"; set .*hdf5_dataset_name to train'
    ):
        EmbeddingFile(write(1), "test")


def test_a_file_without_embeddings_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/labels"] = np.ones(3)
        f["embeddings"] = np.ones((3, 4))
    with pytest.raises(EmbeddingFileError, match=r'no group "train" .*; it is not a file of embeddings'):
        EmbeddingFile(tmp_path / "x.h5", "train")


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.ones(3, np.float32), r"embeddings are float32 \(3,\), not float \(n, dim\)"),
        (np.ones((3, 4), np.int64), r"embeddings are int64 \(3, 4\), not float \(n, dim\)"),
    ],
)
def test_embeddings_that_are_no_float_matrix_are_refused(
    tmp_path: Path, embeddings: NDArray[Any], message: str
) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = embeddings
    with pytest.raises(EmbeddingFileError, match=message):
        EmbeddingFile(tmp_path / "x.h5", "train")


def test_datasets_of_different_lengths_are_refused(write: Write) -> None:
    path = write(5)
    with h5py.File(path, "a") as f:
        f["train/document_id"].resize(4, axis=0)
    with pytest.raises(EmbeddingFileError, match=r"document_id has 4 rows, embeddings 5"):
        EmbeddingFile(path, "train")


def test_another_format_version_is_refused(write: Write) -> None:
    path = write(1)
    with h5py.File(path, "a") as f:
        f["train"].attrs["format_version"] = 2
    with pytest.raises(
        EmbeddingFileError, match="format_version 2, but this release reads 1; use the release that wrote it"
    ):
        EmbeddingFile(path, "train")


def test_the_provenance_is_json_in_the_attributes(write: Write) -> None:
    with h5py.File(write(2)) as f:
        attributes = dict(f["train"].attrs)
    assert attributes.pop("format_version") == 1
    assert set(attributes) == {"source", "request", "encoder", "counts", "versions", "statistics"}
    assert json.loads(attributes["source"])["path"] == "ä.jsonl"
    # The metadata of a CUDA build may leave its suffix out.
    assert torch.__version__.startswith(json.loads(attributes["versions"])["torch"])


def test_a_file_of_an_earlier_release_has_no_statistics(write: Write) -> None:
    path = write(2)
    with h5py.File(path, "a") as f:
        del f["train"].attrs["statistics"]
    with EmbeddingFile(path, "train") as file:
        assert file.provenance is not None
        assert file.provenance.statistics == {}


def test_sound_content_passes_its_check(write: Write) -> None:
    with EmbeddingFile(write(10), "train") as file:
        file.check_content()


def test_a_row_count_that_the_file_does_not_state_is_found(write: Write) -> None:
    path = write(10)
    with h5py.File(path, "a") as f:
        f["train"].attrs["counts"] = json.dumps({**dict.fromkeys(OTHER_COUNTS, 0), "documents": 11})
    with EmbeddingFile(path, "train") as file:
        with pytest.raises(EmbeddingFileError, match=r"it states 11 documents and has 10 rows"):
            file.check_content()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_found(write: Write, value: float) -> None:
    path = write(10)
    with h5py.File(path, "a") as f:
        f["train/embeddings"][7, 2] = value
    with EmbeddingFile(path, "train") as file:
        with pytest.raises(EmbeddingFileError, match=r"the embedding of row 7 has length (nan|inf); embed it again"):
            file.check_content()


@pytest.mark.parametrize("name", ["embeddings", "labels", "source_line", "source_offset", "n_tokens", "text_hash"])
def test_a_bit_that_changed_is_found_when_it_is_read(write: Write, name: str) -> None:
    path = write(10, n_labels=1)
    flip_a_bit(path, name)
    with (
        EmbeddingFile(path, "train") as file,
        pytest.raises(
            EmbeddingFileError, match=rf"{name} in rows 0 to 9 cannot be read \(.*\); embed its source again"
        ),
    ):
        file.array(name, ALL)


def test_an_embedding_that_is_not_of_unit_length_is_found_where_the_encoder_normalises(write: Write) -> None:
    path = write(3)
    unit = make_embeddings(3) / np.linalg.norm(make_embeddings(3), axis=1, keepdims=True)
    with h5py.File(path, "a") as f:
        f["train/embeddings"][:] = unit
        f["train"].attrs["encoder"] = json.dumps({"is_normalized": True})
    with EmbeddingFile(path, "train") as file:
        file.check_content()
    with h5py.File(path, "a") as f:
        f["train/embeddings"][1] = 2 * unit[1]
    with EmbeddingFile(path, "train") as file:
        with pytest.raises(EmbeddingFileError, match=r"the embedding of row 1 has length (2\.0|1\.9+)"):
            file.check_content()


def test_a_single_value_of_another_tool_is_no_column(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.ones((2, 3), np.float32)
        f["train/dim"] = 3
    with EmbeddingFile(tmp_path / "x.h5", "train") as file:
        assert file.names() == ["embeddings"]


@pytest.mark.parametrize("attributes", [{}, {"source": "{}", "request": "no JSON"}])
def test_a_provenance_that_is_incomplete_is_refused(tmp_path: Path, attributes: dict[str, str]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["train/embeddings"] = np.ones((2, 3), np.float32)
        f["train"].attrs.update({"format_version": 1, **attributes})
    with pytest.raises(EmbeddingFileError, match=r"x\.h5: its provenance is incomplete \(.*\); embed its source again"):
        EmbeddingFile(tmp_path / "x.h5", "train")


@pytest.mark.parametrize(
    ("portions", "rows_per_chunk"), [((1,), 1), ((1, 2000), 2001), ((1, 4095), 4096), ((1, 4096, 1), 4096)], ids=str
)
def test_chunks_hold_thousands_of_rows_or_a_small_file(
    write: Write, portions: tuple[int, ...], rows_per_chunk: int
) -> None:
    with h5py.File(write(*portions)) as f:
        for name in ("embeddings", "document_id", "n_tokens"):
            assert f[f"train/{name}"].chunks[0] == rows_per_chunk
    with h5py.File(write(*portions, dim=1000)) as f:
        assert f["train/embeddings"].chunks[0] == min(rows_per_chunk, 2**20 // 4000)


@pytest.mark.parametrize(("n", "most_bytes"), [(1, 12_000), (20, 2 * 20 * 384 * 4)])
def test_a_small_file_has_few_bytes_beside_its_numbers(write: Write, n: int, most_bytes: int) -> None:
    assert write(n, dim=384).stat().st_size < most_bytes


def test_few_rows_with_long_values_do_not_wait_for_others(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"label_shape": None, "label_dtype": "float32", "index_keys": ["long"], "slice_rows": 9}
    documents = [Document(i, i, f"d{i}", "text", ("x" * 1_000_000,), ()) for i in range(20)]
    with EmbeddingWriter(tmp_path / "x.h5", "train", dim=6, embedding_dtype="float32", **shape) as writer:
        writer.append(documents, make_embeddings(20), np.ones(20, np.int32))
        assert (tmp_path / "x.h5").stat().st_size > 9_000_000
        writer.finish(provenance(20))
    with EmbeddingFile(tmp_path / "x.h5", "train") as file:
        assert [len(value) for value in file.column("index/long", ALL)] == [1_000_000] * 20


def test_rows_that_wait_for_others_are_copies(tmp_path: Path) -> None:
    embeddings, n_tokens = make_embeddings(2), np.ones(2, np.int32)
    shape: dict[str, Any] = {"label_shape": None, "label_dtype": "float32", "index_keys": INDEX_KEYS, "slice_rows": 9}
    with EmbeddingWriter(tmp_path / "x.h5", "train", dim=6, embedding_dtype="float32", **shape) as writer:
        writer.append(make_documents(2, 0), embeddings, n_tokens)
        embeddings[:], n_tokens[:] = 0, 0
        writer.finish(provenance(2))
    with EmbeddingFile(tmp_path / "x.h5", "train") as file:
        np.testing.assert_array_equal(file.embeddings(ALL), make_embeddings(2))
        assert file.array("n_tokens", ALL).tolist() == [1, 1]
