import gzip
import tarfile
from pathlib import Path

import pytest

from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES, find_sources
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.errors import ConfigError, SourceError

RECORD = b'{"text": "one"}\n'


def found(folder: Path, pattern: str) -> dict[str, str]:
    return {file.relative: file.stem for file in find_sources(folder, pattern, folder.parent / "out")}


def test_each_name_that_is_documented_is_found(tmp_path: Path) -> None:
    suffixes = [
        f"{name}{end}" for name in (".jsonl", ".json", ".ndjson") for end in ("", ".gz", ".zst", ".zstd", ".bz2", ".xz")
    ]
    assert sorted(SOURCE_SUFFIXES) == sorted([*suffixes, ".parquet"])
    for i, suffix in enumerate(SOURCE_SUFFIXES):
        (tmp_path / f"{i}{suffix}").touch()
    assert found(tmp_path, "**/*") == {f"{i}{suffix}": f"{i}" for i, suffix in enumerate(SOURCE_SUFFIXES)}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", {"x.jsonl": "x"}),
        ("**/*.*", {"x.jsonl": "x"}),
        ("*.jsonl*", {"x.jsonl": "x"}),
        ("*.jsonl.old", {"x.jsonl.old": "x.jsonl.old"}),
        ("part-*", {"part-0": "part-0", "part-1": "part-1", "part-2": "part-2"}),
        ("x.*", {"x.jsonl": "x", "x.jsonl.old": "x.jsonl.old"}),
    ],
)
def test_other_names_are_read_where_the_pattern_spells_them_out(
    tmp_path: Path, pattern: str, expected: dict[str, str]
) -> None:
    for name in ("x.jsonl", "x.jsonl.old", "part-0"):
        (tmp_path / name).write_bytes(RECORD)
    (tmp_path / "part-1").write_bytes(gzip.compress(b"\xef\xbb\xbf\n " + RECORD))
    (tmp_path / "part-2").touch()
    (tmp_path / "part-3.zip").write_bytes(b"PK\x03\x04")
    assert found(tmp_path, pattern) == expected


def test_content_that_is_not_read_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "part-0").write_bytes(RECORD)
    (tmp_path / "part-1").write_bytes(b"PK\x03\x04")
    (tmp_path / "part-2").write_bytes(gzip.compress(b"id,text\n1,one\n"))
    (tmp_path / ".cache").mkdir()
    assert list(found(tmp_path, "**/part-*")) == ["part-0"]
    assert [message.partition(", ")[2] for message in caplog.messages] == [
        "1 are a ZIP archive, and left out: part-1",
        "1 are of no known format (it begins with b'id,text\\n1,on'), and left out: part-2",
        "1 are hidden, as their names begin with a dot, and left out: .cache/",
    ]


def test_two_formats_of_one_output_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json.gz").touch()
    (tmp_path / "x.parquet").touch()
    with pytest.raises(ConfigError, match=r"x\.json\.gz and x\.parquet in .* would both be written to x;"):
        found(tmp_path, "*")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04", "is a ZIP archive, which is not read; unpack it"),
        (b'[\n  {"text": "a"}\n]', "is one JSON array of records, .* write a record on each line: jq -c"),
        (b'{\n  "text": "a"\n}\n', "is one JSON object on several lines, .*: jq -c"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a pointer to a file of Git LFS, .*git lfs pull",
        ),
        (b"<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_content_that_is_not_read_is_named_with_what_is_read(tmp_path: Path, content: bytes, what: str) -> None:
    for stored in (content, gzip.compress(content)):
        (tmp_path / "x.jsonl").write_bytes(stored)
        with pytest.raises(SourceError, match=f"x.jsonl {what}.*Sources are .*JSON lines may be compressed"):
            open_source(tmp_path / "x.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 100, b"error"])
def test_a_parquet_file_that_does_not_begin_as_one_is_not_taken_for_lines(tmp_path: Path, content: bytes) -> None:
    """An empty file would be a corpus without documents."""
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.parquet does not begin as a Parquet file .*; download"):
        open_source(tmp_path / "x.parquet")


def test_parquet_that_was_compressed_again_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet.gz").write_bytes(gzip.compress(b"PAR1" + b"\0" * 100))
    with pytest.raises(SourceError, match=r"is Parquet that was compressed as a whole, .*; decompress it"):
        open_source(tmp_path / "x.parquet.gz")


def test_a_tar_archive_is_recognised(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(__file__, "x.jsonl")
    with pytest.raises(SourceError, match="is a tar archive"):
        open_source(tmp_path / "x.tar")


@pytest.mark.parametrize("content", [b"", b"\n", b"{", b"[1]\n", b"[]", b'{}\n"a"\n', b"x"])
def test_lines_of_any_kind_are_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with open_source(tmp_path / "x.jsonl") as source:
        assert [line.number for line in source.lines(100)] == list(range(1, len(content.splitlines()) + 1))
