"""Broken, wrong and malicious files of embeddings: each is refused with a reason, and nothing is written.

Nothing outside a file is read. No file is checked in; the tests make each of them.
"""

import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, EmbeddingFileError, SourceError
from tests.conftest import TINY_DIM
from tests.faults.hostile.conftest import MAX_LINE_BYTES, Annotate, outputs

FLOATS = np.ones((3, TINY_DIM), np.float32)
MADE: dict[str, dict[str, Any]] = {
    "source": {"path": "x.jsonl", "folder": "/corpus", "bytes": 3, "mtime_ns": 4, "sha256": "a" * 64},
    "request": {"id_key": None, "max_line_bytes": MAX_LINE_BYTES},
    "encoder": {"is_normalized": False},
    "counts": dict.fromkeys(("lines", "documents", "rejected", "blank", "truncated", "duplicate_ids", "tokens"), 3),
    "versions": {},
}


def with_embeddings(change: Callable[[h5py.Group], Any]) -> Callable[[h5py.File], None]:
    """A valid file with one change to its group."""

    def write(file: h5py.File) -> None:
        file["train/embeddings"] = FLOATS
        change(file["train"])

    return write


def with_provenance(**changed: Any) -> Callable[[h5py.File], None]:
    """A file whose provenance is valid except for these values, or for these attributes (bytes and numbers)."""

    def change(group: h5py.Group) -> None:
        group.attrs["format_version"] = 1
        for name, values in {**MADE, **changed}.items():
            group.attrs[name] = json.dumps(values) if isinstance(values, dict | list | type(None)) else values

    return with_embeddings(change)


def put(name: str, value: Any) -> Callable[[h5py.File], None]:
    """Embeddings and another object in their group."""
    return with_embeddings(lambda group: group.__setitem__(name, value))


def column(*args: Any, **settings: Any) -> Callable[[h5py.File], None]:
    """Embeddings with a dataset x beside them."""
    return with_embeddings(lambda group: group.create_dataset("x", *args, **settings))


def of_format(version: Any) -> Callable[[h5py.File], None]:
    return with_embeddings(lambda group: group.attrs.__setitem__("format_version", version))


def alone(name: str, value: Any) -> Callable[[h5py.File], None]:
    """A file that contains nothing else."""
    return lambda file: file.__setitem__(name, value)


def lacking(name: str, key: str) -> dict[str, Any]:
    return {other: value for other, value in MADE[name].items() if other != key}


def claim(shape: tuple[int, ...], dtype: Any = "f4", **settings: Any) -> Callable[[h5py.File], Any]:
    """Embeddings without any written value."""
    return lambda file: file.create_dataset("train/embeddings", shape, dtype, **settings)


def store(values: Any, **settings: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file.create_dataset("train/embeddings", data=values, **settings)


def virtual(source: str) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((3, TINY_DIM), "f4")
    layout[:] = h5py.VirtualSource(source, "embeddings", (3, TINY_DIM))
    return layout


def points_to_itself(group: h5py.Group) -> None:
    group["x"], group["y"] = h5py.SoftLink("/train/y"), h5py.SoftLink("/train/x")


def never_ending_chunk(file: h5py.File) -> None:
    """2 GiB of one value, which the scale-offset filter packs into some bytes."""
    dataset = file.create_dataset("train/embeddings", (1, 1), "f4", maxshape=(None, 1), chunks=(1 << 29, 1))
    dataset.id.write_direct_chunk((0, 0), b"\0")


LINK = "is a link, which may lead out of the file and is not followed; copy its target into the file"
ELSEWHERE = "are in other files, which are not read; copy them into this file"
UNWRITTEN = r"not all of its \d+ embeddings were written; embed its source again"
NO_MATRIX = r"embeddings are .*, not float \(n, dim\)"
NO_GROUP = 'no group "train" with a dataset "embeddings"; it is not a file of embeddings'
PROVENANCE = r"its provenance is incomplete \({}\); embed its source again"
# How a file is written, and the message about it.
BAD_EMBEDDINGS: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "embeddings in another file": (
        alone("train/embeddings", h5py.ExternalLink("outside", "/embeddings")),
        f'"/train/embeddings" {LINK}',
    ),
    "group in another file": (alone("train", h5py.ExternalLink("outside", "/")), f'"/train" {LINK}'),
    "column in another file": (put("text", h5py.ExternalLink("outside", "/embeddings")), f'"/train/text" {LINK}'),
    "offsets in another file": (
        put("source_offset", h5py.ExternalLink("outside", "/n")),
        f'"/train/source_offset" {LINK}',
    ),
    "index in another file": (put("index", h5py.ExternalLink("outside", "/")), f'"/train/index" {LINK}'),
    "link to a device": (put("x", h5py.ExternalLink("/dev/zero", "/")), f'"/train/x" {LINK}'),
    "link to nothing": (put("x", h5py.SoftLink("/nowhere")), f'"/train/x" {LINK}'),
    "link through another file": (
        with_embeddings(
            lambda g: (
                g.parent.__setitem__("out", h5py.ExternalLink("outside", "/")),
                g.__setitem__("x", h5py.SoftLink("/out/embeddings")),
            )
        ),
        f'"/train/x" {LINK}',
    ),
    "links to one another": (with_embeddings(points_to_itself), f'"/train/x" {LINK}'),
    "embeddings that are a link to themselves": (
        alone("train/embeddings", h5py.SoftLink("/train/embeddings")),
        f'"/train/embeddings" {LINK}',
    ),
    "virtual embeddings": (
        lambda f: f.create_virtual_dataset("train/embeddings", virtual("outside")),
        f"the rows of embeddings {ELSEWHERE}",
    ),
    "virtual embeddings of a missing file": (
        lambda f: f.create_virtual_dataset("train/embeddings", virtual("nowhere.h5")),
        f"the rows of embeddings {ELSEWHERE}",
    ),
    "virtual column": (
        with_embeddings(lambda g: g.create_virtual_dataset("x", virtual("outside"))),
        f"the rows of x {ELSEWHERE}",
    ),
    "embeddings in a raw file": (
        claim((3, TINY_DIM), external=[("outside", 0, FLOATS.nbytes)]),
        f"the rows of embeddings {ELSEWHERE}",
    ),
    "column in a raw file": (column((3,), "i8", external=[("/etc/passwd", 0, 24)]), f"the rows of x {ELSEWHERE}"),
    "1e12 rows in chunks that were never written": (claim((10**12, 768), chunks=(1024, 768)), UNWRITTEN),
    "rows that were never written": (claim((3, TINY_DIM)), UNWRITTEN),
    "one chunk of two": (lambda f: claim((8, TINY_DIM), chunks=(4, TINY_DIM))(f).__setitem__(slice(4), 1.0), UNWRITTEN),
    "rows of 4 TiB": (claim((10, 1 << 40), chunks=(1, 1024)), "a row of embeddings has 4398046511104 bytes, more"),
    "rows of 2 MiB": (
        store(np.zeros((1, 1 << 19), "f4"), compression="gzip"),
        r"a row of embeddings has 2097152 bytes, more than 1048576; store it in smaller",
    ),
    "a chunk of 2 GiB": (
        never_ending_chunk,
        r"a chunk of embeddings has 2147483648 bytes, more than 1073741824; store it in smaller",
    ),
    "integers": (store(np.ones((3, TINY_DIM), int)), NO_MATRIX),
    "strings": (store(np.array([["a"] * TINY_DIM] * 3, "S")), NO_MATRIX),
    "records": (store(np.ones((3, TINY_DIM), [("a", "f4")])), NO_MATRIX),
    "complex numbers": (store(np.ones((3, TINY_DIM), "c8")), NO_MATRIX),
    "floats of variable length": (claim((3, TINY_DIM), h5py.vlen_dtype("f4")), NO_MATRIX),
    "ragged rows": (claim((3,), h5py.vlen_dtype("f4")), NO_MATRIX),
    "references": (claim((3, TINY_DIM), h5py.ref_dtype), NO_MATRIX),
    "no columns": (store(np.ones((3, 0), "f4")), NO_MATRIX),
    "one dimension": (store(np.ones(3, "f4")), NO_MATRIX),
    "three dimensions": (store(np.ones((3, TINY_DIM, 2), "f4")), NO_MATRIX),
    "a single value": (store(np.float32(3)), NO_MATRIX),
    "no value": (store(h5py.Empty("f4")), NO_MATRIX),
    "a group instead of embeddings": (lambda f: f.create_group("train/embeddings"), NO_GROUP),
    "a type instead of embeddings": (alone("train/embeddings", np.dtype("f4")), NO_GROUP),
    "embeddings instead of the group": (lambda f: f.create_dataset("train", data=FLOATS), NO_GROUP),
    "another group": (
        lambda f: f.create_dataset("test/embeddings", data=FLOATS),
        'no group "train" .*; set params.hdf5_dataset_name to test',
    ),
    "nothing": (lambda f: None, NO_GROUP),
    "a column with fewer rows": (column(data=np.ones(2)), "x has 2 rows, embeddings 3"),
    "a column of 1e12 rows": (column((10**12,), "i8", chunks=(1024,)), "x has 1000000000000 rows, embeddings 3"),
    "format_version as text": (of_format("1"), "format_version '1', but this release reads 1"),
    "format_version of the future": (of_format(2), "format_version 2, but this release reads 1"),
    "format_version as an array": (of_format([1, 1]), r"format_version array\(\[1, 1\]\), but"),
    "format_version without a value": (of_format(h5py.Empty("i4")), "format_version Empty.*, but"),
    "provenance that is missing": (of_format(1), PROVENANCE.format(".*source.*")),
    "provenance that is no JSON": (with_provenance(source="{"), PROVENANCE.format("Expecting .*")),
    "provenance that is no text": (with_provenance(source=b"\xff\xfe"), PROVENANCE.format(".*")),
    "provenance that is a number": (with_provenance(source=7), PROVENANCE.format(".*not int64")),
    "provenance that is an array": (with_provenance(source=[]), PROVENANCE.format("source is no object")),
    "provenance that is null": (with_provenance(versions=None), PROVENANCE.format("versions is no object")),
    "provenance of 60,000 levels": (with_provenance(source="[" * 60_000), PROVENANCE.format(".*recursion.*")),
    "provenance of 5,000 digits": (with_provenance(counts="9" * 5000), PROVENANCE.format("Exceeds the limit .*")),
    "provenance without a count": (with_provenance(counts=lacking("counts", "tokens")), PROVENANCE.format("'tokens'")),
    "provenance with text for a count": (
        with_provenance(counts={**MADE["counts"], "documents": "3"}),
        PROVENANCE.format("counts: documents is '3'"),
    ),
    "provenance without a path": (with_provenance(source=lacking("source", "path")), PROVENANCE.format("'path'")),
    "provenance without a limit of lines": (
        with_provenance(request=lacking("request", "max_line_bytes")),
        PROVENANCE.format("'max_line_bytes'"),
    ),
}


@pytest.mark.parametrize("name", BAD_EMBEDDINGS)
def test_a_hostile_file_of_embeddings_is_refused(tmp_path: Path, annotate: Annotate, name: str) -> None:
    write, message = BAD_EMBEDDINGS[name]
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/outside", "w") as outside:
        outside["embeddings"], outside["n"] = FLOATS, np.arange(3)
    with h5py.File(tmp_path / "in/x.h5", "w") as file:
        write(file)
    with pytest.raises(EmbeddingFileError, match=rf"x\.h5: {message}"):
        annotate(tmp_path / "in")
    assert not outputs(tmp_path)


def test_a_linked_file_is_not_even_opened(tmp_path: Path, annotate: Annotate) -> None:
    """A process that opens a pipe without a writer would wait forever."""
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in/pipe")
    with h5py.File(tmp_path / "in/x.h5", "w") as file:
        put("text", h5py.ExternalLink("pipe", "/"))(file)
        file["other"] = h5py.ExternalLink("pipe", "/")
    with pytest.raises(EmbeddingFileError, match=f'"/train/text" {LINK}'):
        annotate(tmp_path / "in")
    with pytest.raises(EmbeddingFileError, match=r"set params\.hdf5_dataset_name to train"):
        EmbeddingFile(tmp_path / "in/x.h5", "another")


def whole_numbers(scales: Any) -> Callable[[h5py.File], None]:
    """Embeddings as int8 with a factor for each row."""

    def write(file: h5py.File) -> None:
        file["train/embeddings"] = FLOATS.astype(np.int8)
        file["train/embedding_scale"] = scales

    return write


NOT_SCALES = {"text": np.array([b"1"] * 3), "a matrix": np.ones((3, 2), np.float32), "whole": np.ones(3, np.int8)}


@pytest.mark.parametrize("name", NOT_SCALES)
def test_whole_numbers_without_a_factor_for_each_are_refused(tmp_path: Path, annotate: Annotate, name: str) -> None:
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/x.h5", "w") as file:
        whole_numbers(NOT_SCALES[name])(file)
    with pytest.raises(EmbeddingFileError, match=r"embeddings are int8 .* not float"):
        annotate(tmp_path / "in")


def is_its_own_member(group: h5py.Group) -> None:
    group["again"] = group


# Files that are unusual, but valid.
GOOD_EMBEDDINGS: dict[str, Callable[[h5py.File], Any]] = {
    "half precision": store(FLOATS.astype(np.float16)),
    "whole numbers with scales": whole_numbers(np.ones(3, np.float32)),
    "double precision": store(FLOATS.astype(np.float64)),
    "long doubles": store(FLOATS.astype(np.longdouble)),
    "big-endian": store(FLOATS.astype(">f4")),
    "compressed": store(FLOATS, compression="gzip", shuffle=True, fletcher32=True),
    "no rows": store(FLOATS[:0]),
    "no rows, which may become more": claim((0, TINY_DIM), maxshape=(None, TINY_DIM)),
    "a group that holds itself": with_embeddings(is_its_own_member),
    "a column without a value": column(data=h5py.Empty("f4")),
    "a provenance of ours": with_provenance(),
    "a provenance with more in it": with_provenance(counts={**MADE["counts"], "images": 3}),
}


@pytest.mark.parametrize("name", GOOD_EMBEDDINGS)
def test_an_odd_file_of_embeddings_is_annotated(tmp_path: Path, annotate: Annotate, name: str) -> None:
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/x.h5", "w") as file:
        GOOD_EMBEDDINGS[name](file)
    report = annotate(tmp_path / "in")
    lines = Path(report.output).read_text().splitlines()
    assert lines == [f'{{"score_quality":{TINY_DIM}.0}}'] * report.documents
    assert report.documents == (0 if name.startswith("no rows") else 3)


def strings(values: list[bytes], dtype: Any) -> Callable[[h5py.File], Any]:
    return column(data=np.array(values, dtype), dtype=dtype)


NO_UTF8 = r"x in rows 0 to 2 cannot be read \('utf-8' codec can't decode byte 0xff .*\); embed its source again"
NO_JSON = r"rows 0 to 2: a value cannot be written as JSON \(.*\); leave its key out of params\.output_keys"
# A column x, and the message when it is requested.
BAD_COLUMNS: dict[str, tuple[Callable[[h5py.File], Any], type[Exception], str]] = {
    "text of any length": (strings([b"\xff", b"", b"a"], h5py.string_dtype("utf-8")), EmbeddingFileError, NO_UTF8),
    "text of one length": (strings([b"\xff", b"", b"a"], h5py.string_dtype("utf-8", 3)), EmbeddingFileError, NO_UTF8),
    "text that says ASCII": (strings([b"\xff", b"", b"a"], h5py.string_dtype("ascii", 3)), EmbeddingFileError, NO_UTF8),
    "text of 2 MiB": (
        column((3,), h5py.string_dtype("utf-8", 1 << 21)),
        EmbeddingFileError,
        "a row of x has 2097152 bytes, more than 1048576; store it in smaller ones",
    ),
    "NaN": (column(data=np.full(3, np.nan)), AnnotationError, "row 0: x is not finite, which JSON cannot express"),
    "records": (column(data=np.ones(3, [("a", "f4")])), AnnotationError, NO_JSON),
    "complex numbers": (column(data=np.ones(3, "c8")), AnnotationError, NO_JSON),
    "references": (column((3,), h5py.ref_dtype), AnnotationError, NO_JSON),
    "references to regions": (column((3,), h5py.regionref_dtype), AnnotationError, NO_JSON),
    "opaque bytes": (column(data=np.zeros(3, "V5")), AnnotationError, NO_JSON),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_a_column_that_no_json_can_hold_is_refused(tmp_path: Path, annotate: Annotate, name: str) -> None:
    write, kind, message = BAD_COLUMNS[name]
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/x.h5", "w") as file:
        write(file)
    with pytest.raises(kind, match=rf"x\.h5: {message}"):
        annotate(tmp_path / "in", "x")
    assert not outputs(tmp_path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.jsonl", r"names a source outside its folder, \.\./secret\.jsonl; embed its source again"),
        ("a/../../secret.jsonl", "names a source outside its folder"),
        ("/dev/zero", "names a source outside its folder, /dev/zero"),
        ("nothing.jsonl", "the source .*nothing.jsonl does not exist"),
        ("pipe", "pipe is a pipe or a device; give a regular file"),
        ("longer.jsonl", r"longer\.jsonl changed since .*x\.h5 was made from it"),
    ],
)
def test_a_provenance_leads_to_no_other_file(tmp_path: Path, annotate: Annotate, path: str, reason: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "corpus").mkdir()
    os.mkfifo(tmp_path / "corpus/pipe")
    for name in ("secret.jsonl", "corpus/longer.jsonl"):
        (tmp_path / name).write_text('{"password": "ba"}\n' * 3)
    source = {**MADE["source"], "folder": str(tmp_path / "corpus"), "path": path, "bytes": 0}
    with h5py.File(tmp_path / "in/x.h5", "w") as file:
        with_provenance(source=source)(file)
    with pytest.raises(SourceError, match=reason):
        annotate(tmp_path / "in", "password")
    assert not outputs(tmp_path)


def hdf5(userblock_size: int = 0) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=userblock_size) as file:
        file["train/embeddings"] = FLOATS
    return content.getvalue()


def with_byte(content: bytes, position: int, byte: int) -> bytes:
    return content[:position] + bytes([byte]) + content[position + 1 :]


NOT_WHOLE = r"is not an HDF5 file, or is cut short \(.*\); embed its source again"
# The bytes of a file, and the message about them.
BROKEN_FILES = {
    "empty": (b"", NOT_WHOLE),
    "text": (b'{"text": "ba"}\n' * 100, NOT_WHOLE),
    "signature alone": (hdf5()[:8], NOT_WHOLE),
    "half a file": (hdf5()[:1024], NOT_WHOLE),
    "without its last byte": (hdf5()[:-1], NOT_WHOLE),
    "a version that is not there yet": (with_byte(hdf5(), 8, 99), NOT_WHOLE),
    "an archive": (zlib.compress(hdf5()), NOT_WHOLE),
    "zeros for the groups": (
        hdf5()[:96] + bytes(len(hdf5()) - 96),
        "(: its structure cannot be read|is not an HDF5 file)",
    ),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_of_embeddings_is_refused(tmp_path: Path, annotate: Annotate, name: str) -> None:
    content, message = BROKEN_FILES[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.h5").write_bytes(content)
    with pytest.raises(EmbeddingFileError, match=rf"x\.h5 ?{message}"):
        annotate(tmp_path / "in")
    assert not outputs(tmp_path)


def test_a_chunk_that_does_not_decompress_is_named(tmp_path: Path, annotate: Annotate) -> None:
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/x.h5", "w") as file:
        dataset = file.create_dataset("train/embeddings", FLOATS.shape, "f4", chunks=(1, TINY_DIM), compression="gzip")
        dataset[:] = FLOATS
        dataset.id.write_direct_chunk((2, 0), b"no deflated bytes")
    with pytest.raises(EmbeddingFileError, match=r"x\.h5: embeddings in rows 0 to 2 cannot be read \(.*\); embed its"):
        annotate(tmp_path / "in")
    assert not outputs(tmp_path)


def test_zeros_that_unpack_to_terabytes_are_refused(tmp_path: Path, annotate: Annotate) -> None:
    """Every chunk exists, with a few bytes."""
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/x.h5", "w") as file:
        rows = (1 << 28) // TINY_DIM
        settings: dict[str, Any] = {"chunks": (rows, TINY_DIM), "compression": "gzip"}
        dataset = file.create_dataset("train/embeddings", (rows * 100, TINY_DIM), "f4", **settings)
        for i in range(100):
            dataset.id.write_direct_chunk((i * rows, 0), b"some bytes")
    message = "1000 bytes would expand to 107374182400 bytes of embeddings, more than 1000 times as many"
    with pytest.raises(EmbeddingFileError, match=message):
        annotate(tmp_path / "in")


def test_a_user_block_may_stand_before_the_embeddings(tmp_path: Path, annotate: Annotate) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.h5").write_bytes(hdf5(userblock_size=512))
    assert annotate(tmp_path / "in").documents == 3
