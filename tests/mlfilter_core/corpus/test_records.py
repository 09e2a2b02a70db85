import gzip
import math
import os
from pathlib import Path

import pytest

from mlfilter_core.corpus.documents import BadRecordError
from mlfilter_core.corpus.records import id_key, parse_records, read_records
from mlfilter_core.corpus.source_files import find_jsonl, stem_of
from mlfilter_core.errors import ConfigError, SourceError
from mlfilter_core.tallies.tally import Tally
from tests.conftest import WriteLines


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_records_come_with_their_lines_and_broken_ones_with_their_reason(write_lines: WriteLines, suffix: str) -> None:
    lines = [{"id": "a"}, b"", b"{broken", b"[1]", b"caf\xe9", b" \t", {"id": "b"}]
    found = list(read_records(write_lines(f"x.jsonl{suffix}", lines)))
    assert [line for line, _ in found] == [1, 3, 4, 5, 7]
    assert [record.reason if isinstance(record, BadRecordError) else record for _, record in found] == [
        *({"id": "a"}, "not_json", "not_an_object", "not_utf8", {"id": "b"}),
    ]


def test_nan_and_infinity_are_read_as_python_writes_them(write_lines: WriteLines) -> None:
    path = write_lines("x.jsonl", [{"id": "a", "scores": [1, math.nan, math.inf, -math.inf]}])
    ((_, record),) = read_records(path)
    assert isinstance(record, dict)
    assert record["scores"][0] == 1
    assert math.isnan(record["scores"][1])
    assert record["scores"][2:] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": NaN',
        b"NaN",
        b'{"id": "\\ud800", "score": NaN}',
        b'{"score": NaN, "n": ' + b"9" * 5000 + b"}",
        b'{"score": NaN, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_json_object_but_for_nan_either_is_a_bad_line(write_lines: WriteLines, line: bytes) -> None:
    ((_, record),) = read_records(write_lines("x.jsonl", [line]))
    assert isinstance(record, BadRecordError)
    assert record.reason == "not_json"


def test_what_a_parser_refuses_is_counted_with_its_place(write_lines: WriteLines) -> None:
    path = write_lines("x.jsonl", [{"uuid": 7}, {"text": "a"}, {"id": "", "doc_id": None}, b"{"])
    bad_lines = Tally()
    assert list(parse_records(path, lambda record: record[id_key(record)], bad_lines)) == [(1, 7)]
    assert bad_lines.counts == {"no_id": 2, "not_json": 1}
    assert bad_lines.examples["no_id"] == [
        f"{path}:2: none of document_id, doc_id, id, uuid, warc_record_id is present; the record has: text",
        f"{path}:3: none of document_id, doc_id, id, uuid, warc_record_id is present; the record has: id, doc_id",
    ]


def test_an_id_that_cannot_be_written_is_none(write_lines: WriteLines) -> None:
    bad_lines = Tally()
    path = write_lines("x.jsonl", [b'{"id": ' + b"[" * 300 + b"]" * 300 + b"}", {"id": [1]}])
    assert list(parse_records(path, id_key, bad_lines)) == [(2, "id")]
    assert bad_lines.examples == {"no_id": [f'{path}:1: "id" is nested too deep to be written as JSON']}


def test_a_stream_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "a"}\n' * 1000)[:-20])
    with pytest.raises(SourceError, match=r"x\.jsonl\.gz:\d+: the compressed stream breaks off here"):
        list(read_records(path))


def test_files_are_found_by_the_patterns_of_their_stems_but_for_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/annotations_x.jsonl.gz", "a_x.jsonl", "c/x.jsonl", "a_x.txt", ".a_x.jsonl", ".old/a_y.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_jsonl(tmp_path, "a_*", "annotations_*")] == [
        "a_x.jsonl",
        "annotations_x.jsonl.gz",
    ]
    assert [path.name for path in find_jsonl(tmp_path, "*")] == ["a_x.jsonl", "annotations_x.jsonl.gz", "x.jsonl"]
    assert stem_of(Path("a/x.y.jsonl.zst")) == "x.y"
    assert stem_of(Path("a/x.json")) == "x"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder .*/nowhere cannot be read \(No such file or directory\)"):
        find_jsonl(tmp_path / "nowhere", "*")


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    open(os.fsencode(tmp_path) + b"/caf\xe9.jsonl", "w").close()
    with pytest.raises(ConfigError, match=r"caf\\xe9.jsonl' is not UTF-8; rename it"):
        find_jsonl(tmp_path, "*")
