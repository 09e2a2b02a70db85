import base64
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from mlfilter_core.corpus.documents import BadRecordError, RecordKeys, parse_record
from mlfilter_core.corpus.lines import Line, OverlongLine
from mlfilter_core.corpus.parquet_source import ROWS_PER_GROUP, ParquetSource
from mlfilter_core.corpus.source_version import SourceVersion
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.errors import SourceError
from mlfilter_core.files.task_files import Part

N = 25
RECORDS = [
    {
        "id": f"d{i}",
        "text": f"text {i} " * (i % 5) or None,
        "meta": {"language": "de" if i % 3 else "en", "scores": [i, i / 4], "deep": {"a.b": i}},
        "n": i,
    }
    for i in range(N)
]


def write(path: Path, records: list[dict[str, Any]] | None = None, **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(records or RECORDS), path, **{"row_group_size": 10, **options})
    return path


def read(path: Path, keys: RecordKeys | None = None) -> list[dict[str, Any]]:
    with open_source(path, keys) as source:
        return [json.loads(row.content) for row in source.lines(1 << 20) if not isinstance(row, OverlongLine)]


def test_each_row_has_its_number_and_its_position(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet")
    with open_source(path) as source:
        rows = list(source.lines(1 << 20))
        assert source.n_lines == N
        assert source.n_bytes == path.stat().st_size
        assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [row.number for row in rows] == list(range(1, N + 1))
    assert [divmod(row.offset, ROWS_PER_GROUP) for row in rows] == [divmod(i, 10) for i in range(N)]
    assert read(path) == RECORDS


@pytest.mark.parametrize("name", ["x.jsonl", "x.gz", "x"])
def test_the_first_bytes_tell_the_format_not_the_name(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name)) == RECORDS


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
@pytest.mark.parametrize(
    "options", [{}, {"data_page_version": "2.0"}, {"version": "1.0", "use_dictionary": False}], ids=str
)
def test_each_compression_and_page_version_is_read(tmp_path: Path, compression: str, options: dict[str, Any]) -> None:
    assert read(write(tmp_path / "x.parquet", compression=compression, **options)) == RECORDS


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "n": "DELTA_BINARY_PACKED"}},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY", "n": "BYTE_STREAM_SPLIT"}},
        {"data_page_size": 64, "write_page_checksum": True},
        {"store_schema": False, "write_page_index": True},
    ],
    ids=str,
)
def test_each_encoding_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    assert read(write(tmp_path / "x.parquet", **options)) == RECORDS


@pytest.mark.parametrize("writer", ["duckdb", "polars"])
def test_files_of_other_writers_are_read(writer: str) -> None:
    records = read(Path(__file__).parent / "parquet" / f"{writer}.parquet")
    assert [record["text"] for record in records] == ["text 0", "text 1", None, "text 3", "text 4"]
    assert [record["meta"] for record in records[:2]] == [
        {"language": "de", "scores": [0, 0.5]},
        {"language": "en", "scores": [1, 1.5]},
    ]
    assert records[0]["bytes"] == "b0"
    assert records[0]["decimal"] == 0.25
    assert records[0]["time"] == "2020-01-02T03:04:05.678000"


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet")
    keys = RecordKeys(("text", "meta.language"), ("nowhere", "meta.deep.a.b"))
    first = {"text": None, "meta": {"language": "en"}}
    assert read(path, keys)[0] == first
    assert read(path, RecordKeys(("meta",)))[0] == {"meta": RECORDS[0]["meta"]}
    assert read(path, RecordKeys((), ("nowhere",))) == [{}] * N
    with open_source(path, keys) as source:
        assert source.keys == ("id", "text", "meta", "n")
        assert [row.offset for row in source.lines(99)] == [i // 10 * ROWS_PER_GROUP + i % 10 for i in range(N)]


def test_a_column_whose_name_has_dots_precedes_the_path(tmp_path: Path) -> None:
    (record,) = read(write(tmp_path / "x", [{"a": {"b": 1, "c": 2}, "a.b": 3}]), RecordKeys(("a.b",)))
    assert record["a.b"] == 3


def test_keys_in_a_map_are_found_in_each_row(tmp_path: Path) -> None:
    table = pa.table({"m": pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string()))})
    pq.write_table(table, tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", RecordKeys(("m.k",))) == [{"m": {"k": "v"}}, {"m": {}}]


@pytest.mark.parametrize("key", ["texts", "meta.texts", "text.language", "meta.scores.0"])
def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path, key: str) -> None:
    with pytest.raises(SourceError, match=rf'x has no column "{key}"; it has: id, text, meta, n; correct the key'):
        open_source(write(tmp_path / "x"), RecordKeys((key,)))


@pytest.mark.parametrize(("columns", "wanted"), [(["text", "text"], "text"), (["id", "text"], "meta")])
def test_two_columns_of_one_name_are_refused_where_they_are_wanted(
    tmp_path: Path, columns: list[str], wanted: str
) -> None:
    inner = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"]), inner], names=[*columns, "meta"])
    pq.write_table(table, tmp_path / "x")
    with pytest.raises(SourceError, match=rf'x has 2 columns "{wanted}(\.a)?"; rename all but one'):
        open_source(tmp_path / "x", RecordKeys((wanted,)))
    with pytest.raises(SourceError, match="2 columns"):
        open_source(tmp_path / "x")
    pq.write_table(table.append_column("id2", pa.array(["d"])), tmp_path / "x")
    assert read(tmp_path / "x", RecordKeys(("id2",))) == [{"id2": "d"}]


def test_a_string_that_is_no_utf8_makes_a_line_that_is_none(tmp_path: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b'caf\xe9 "\n', b"ok"]).buffers())
    pq.write_table(pa.table({"text": wrong, "n": [1, 2]}), tmp_path / "x")
    with open_source(tmp_path / "x") as source:
        first, second = (row.content for row in source.lines(99) if not isinstance(row, OverlongLine))
    with pytest.raises(BadRecordError, match="not_utf8: 'utf-8' codec can't decode byte 0xe9"):
        parse_record(first)
    assert first == b'{"text":"caf\xe9 \\"\\n","n":1}'
    assert parse_record(second) == {"text": "ok", "n": 2}


def test_a_long_row_is_overlong(tmp_path: Path) -> None:
    path = write(tmp_path / "x", [{"text": "a" * n} for n in (5, 3_000_000, 6)])
    with open_source(path) as source:
        rows = [b"".join(row.pieces) if isinstance(row, OverlongLine) else row.content for row in source.lines(20)]
    assert [len(row) for row in rows] == [16, 3_000_011, 17]


def test_files_without_rows_are_read(tmp_path: Path) -> None:
    schema = pa.schema({"text": pa.string()})
    pq.write_table(schema.empty_table(), tmp_path / "one group")
    with pq.ParquetWriter(tmp_path / "no group", schema):
        pass
    for name in ("one group", "no group"):
        version = SourceVersion(tmp_path / name)
        with open_source(tmp_path / name) as source:
            assert list(source.lines(99)) == []
            version.check(source)


# A length of a footer, a digit of it, and what a reader finds.
@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda content: content[:-1], "cut short: it has no footer"),
        (lambda content: content[: len(content) // 2], "cut short: it has no footer"),
        (lambda content: content[:4], "cut short: it has no footer"),
        (lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1", "its footer cannot be read"),
        (lambda content: content[:-8] + b"\0\0\0\0PAR1", "its footer cannot be read"),
        (lambda content: content[:-600] + b"\xff" * 300 + content[-300:], "its footer cannot be read"),
        (lambda content: b"PARE" + content[4:-4] + b"PARE", "is an encrypted Parquet file, .* give it decrypted"),
    ],
)  # fmt: skip
def test_a_damaged_footer_is_an_error(tmp_path: Path, cut: Any, message: str) -> None:
    content = write(tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(cut(content))
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path / "x")


def test_damaged_pages_are_an_error_that_names_the_place(tmp_path: Path) -> None:
    path = write(tmp_path / "x", compression="zstd", write_page_checksum=True)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 40] ^= 0xFF
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(SourceError) as error:
        list(source.lines(99))
    assert "x: row group 1, after row 10 of the file cannot be read" in str(error.value)
    assert "(nothing was written for it)" in str(error.value)


def test_a_checksum_of_a_page_is_checked(tmp_path: Path) -> None:
    """In plain pages nothing else would show that a character changed."""
    path = write(
        tmp_path / "x", compression="none", use_dictionary=False, write_page_checksum=True, write_statistics=False
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"text 21", b"text 91", 1))
    with open_source(path) as source, pytest.raises(SourceError, match="CRC checksum verification failed"):
        list(source.lines(99))


@pytest.mark.parametrize(("n_group", "n_file"), [(24, 25), (25, 24), (26, 26), (24, 24)])
def test_a_footer_that_does_not_tell_the_number_of_rows_is_an_error(tmp_path: Path, n_group: int, n_file: int) -> None:
    """Both numbers are 25, as variable-length integers, zigzag: 50."""
    path = write(tmp_path / "x", row_group_size=100)
    content = path.read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") :]
    forged = forge(footer, pq.ParquetFile(path).metadata, n_group, n_file)
    path.write_bytes(content[: -len(footer)] + forged)
    with pytest.raises(SourceError, match=r"footer states|cannot be read"), open_source(path) as source:
        list(source.lines(99))


def forge(footer: bytes, metadata: pq.FileMetaData, n_group: int, n_file: int) -> bytes:
    """Returns a footer that states other numbers of rows: the field after the schema, and the last of the row group."""
    number = bytes([2 * N])
    places = [i for i in range(len(footer)) if footer[i - 1 : i + 1] == b"\x16" + number]
    for i in places:  # 0x16: the next field but ... an integer of 64 bits
        for j in places:
            forged = bytearray(footer)
            forged[i], forged[j] = 2 * n_file, 2 * n_group
            try:
                read_back = pq.read_metadata(pa.BufferReader(b"PAR1" + b"\0" * (metadata.serialized_size) + forged))
            except (OSError, pa.ArrowException):
                continue
            if read_back.num_rows == n_file and read_back.row_group(0).num_rows == n_group:
                return bytes(forged)
    raise AssertionError("the numbers of rows were not found in the footer")


@pytest.mark.parametrize(
    "options",
    [{"compression": "none"}, {"compression": "zstd", "data_page_version": "2.0", "write_page_checksum": True}],
    ids=str,
)
def test_no_lie_of_a_footer_or_a_page_does_anything_unexpected(tmp_path: Path, options: dict[str, Any]) -> None:
    """A separate process tries them: a crash of the library, a hang and full memory would end it."""
    records = [{"text": f"text {i}" if i % 3 else None, "meta": {"scores": [i / 2]}} for i in range(9)]
    path = write(tmp_path / "x.parquet", records, row_group_size=5, write_statistics=False, **options)
    command = [sys.executable, "-m", "tests.mlfilter_core.corpus.lying_parquet", str(path), "0"]
    run = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"after {results[-1:]}: {run.stderr}"
    kinds = Counter(kind for _, _, kind, _ in results)
    assert kinds["unexpected"] == 0, [result for result in results if result[2] == "unexpected"]
    assert kinds["refused"] > 500 < kinds["same"]
    # Nothing contradicts another codec or encoding of which the bytes are valid, too.
    assert kinds["other"] < 10, [result for result in results if result[2] == "other"]
    assert all("x.parquet" in message for _, _, kind, message in results if kind == "refused")


def test_memory_does_not_depend_on_the_size_of_a_row_group(tmp_path: Path) -> None:
    """Also of one above 2 GiB, more than a string array of Arrow can have."""
    path = tmp_path / "x.parquet"
    text = [base64.b64encode(os.urandom(300)).decode() * 80 for _ in range(4000)]
    pq.write_table(pa.table({"text": text}), path, use_dictionary=False, compression="zstd", data_page_size=1 << 18)
    assert pq.read_metadata(path).num_row_groups == 1
    most = 0
    with ParquetSource(path, None) as source:
        before = pa.total_allocated_bytes()
        for i, row in enumerate(source.lines(1 << 20)):
            assert isinstance(row, Line) and json.loads(row.content) == {"text": text[i]}
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 64 << 20 < pq.read_metadata(path).row_group(0).total_byte_size / 1.9


def test_rows_that_unpack_to_too_much_are_a_suspected_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlfilter_core.corpus.lines.FREE_BYTES", 1 << 20)
    path = write(tmp_path / "x", [{"text": "a" * 10_000}] * 3000, row_group_size=1000)
    with open_source(path) as source, pytest.raises(SourceError, match=r"x:\d+: the columns unpack to more than \d+"):
        list(source.lines(1 << 20))


class Keys(encryption.KmsClient):  # type: ignore[misc]
    """Wraps keys in base64."""

    def __init__(self, _: Any) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, master: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: str, master: str) -> bytes:
        return base64.b64decode(key)


@pytest.mark.parametrize("is_footer_plain", [False, True])
def test_an_encrypted_file_is_an_error(tmp_path: Path, is_footer_plain: bool) -> None:
    factory = encryption.CryptoFactory(Keys)
    settings = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=is_footer_plain
    )
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    with pq.ParquetWriter(
        tmp_path / "x", pa.schema({"id": pa.string(), "text": pa.string()}), encryption_properties=properties
    ) as writer:
        writer.write_table(pa.table({"id": ["a"], "text": ["b"]}))
    with (
        pytest.raises(SourceError, match=r"x.*encrypted.*; give (it|the file) decrypted"),
        open_source(tmp_path / "x") as source,
    ):
        list(source.lines(99))


def test_memory_does_not_depend_on_the_number_of_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    noise = [base64.b64encode(os.urandom(3000)).decode() for _ in range(500)]
    table = pa.table({"id": [str(i) for i in range(500)], "text": noise, "unread": noise})
    with pq.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
        for _ in range(20):
            writer.write_table(table)
    with open_source(path, RecordKeys(("text",))) as source:
        before = pa.total_allocated_bytes()
        most = max(pa.total_allocated_bytes() - before for _ in source.lines(1 << 20))
    assert most < 4 * 500 * 4000 < path.stat().st_size / 5


def test_the_file_is_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "x")

    def opened() -> Iterator[str]:
        for descriptor in Path("/proc/self/fd").iterdir():
            if descriptor.exists():
                yield str(descriptor.readlink())

    with ParquetSource(path, None) as source:
        next(source.lines(99))
        assert str(path) in set(opened())
    assert str(path) not in set(opened())
    with pytest.raises(SourceError):
        ParquetSource(path, RecordKeys(("nowhere",)))
    assert str(path) not in set(opened())


def test_a_plain_column_beside_an_encrypted_one_is_read(tmp_path: Path) -> None:
    """To ask for facts of the encrypted one would abort the process."""
    settings = encryption.EncryptionConfiguration(footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=True)
    properties = encryption.CryptoFactory(Keys).file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    schema = pa.schema({"id": pa.string(), "text": pa.string()})
    with pq.ParquetWriter(tmp_path / "x", schema, encryption_properties=properties) as writer:
        writer.write_table(pa.table({"id": ["a"], "text": ["b"]}))
    assert read(tmp_path / "x", RecordKeys(("id",))) == [{"id": "a"}]


def test_rows_are_found_at_their_positions_as_they_are(tmp_path: Path) -> None:
    views = pa.array([f"text {i}" for i in range(N)], pa.string_view())
    table = pa.table({"text": views, "kind": pa.array(["a", "b"] * 12 + ["c"]).dictionary_encode(), "n": range(N)})
    pq.write_table(table, tmp_path / "x", row_group_size=10)
    wanted = [0, 1, 9, 20, 24]
    positions = np.array([i // 10 * ROWS_PER_GROUP + i % 10 for i in wanted])
    with ParquetSource(tmp_path / "x", None) as source:
        rows = pa.Table.from_batches(list(source.rows_at(positions)), source.schema)
        assert source.sha256 == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    assert rows.schema.types == table.schema.types
    assert rows.to_pylist() == [table.to_pylist()[i] for i in wanted]


@pytest.mark.parametrize("position", [10, 3 * ROWS_PER_GROUP, 9 * ROWS_PER_GROUP])
def test_a_position_without_a_row_is_an_error(tmp_path: Path, position: int) -> None:
    with ParquetSource(write(tmp_path / "x"), None) as source, pytest.raises(SourceError, match=r"has no row \d+ in"):
        list(source.rows_at(np.array([0, position])))


@pytest.mark.parametrize("row", [0, 1, 6, 7, 30, 49])
def test_row_groups_before_an_offset_are_passed_over(tmp_path: Path, row: int) -> None:
    path = write(tmp_path / "x.parquet", [{"text": str(i)} for i in range(50)], row_group_size=7)
    with open_source(path) as source:
        whole = list(source.lines(1000))
    with open_source(path) as other:
        other.skip(whole[row].offset)
        assert list(other.lines(1000)) == whole[row // 7 * 7 :]
        assert (other.n_lines, other.sha256, other.n_bytes) == (50, source.sha256, path.stat().st_size)
    with open_source(path) as other:
        other.skip(99 * ROWS_PER_GROUP)
        assert list(other.lines(1000)) == []


def test_each_row_group_is_in_one_part(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [{"text": str(i)} for i in range(50)], row_group_size=7)

    def read_part(part: Part) -> list[tuple[int, int, bytes]]:
        with open_source(path) as source:
            lines = [(row.number, row.offset, row.content) for row in source.lines(1000, part) if isinstance(row, Line)]
            assert source.n_lines == source.n_skipped + len(lines)
            assert source.most_parts == 8
            assert bool(source.sha256) == part.is_last
        return lines

    whole = read_part(Part())
    for n_parts in (2, 3, 8, 20):
        parts = [read_part(Part(number, n_parts)) for number in range(1, n_parts + 1)]
        assert [row for part in parts for row in part] == whole
        assert sum(map(bool, parts)) == min(n_parts, 8)
        assert all((part[0][0] - 1) % 7 == 0 for part in parts if part)
