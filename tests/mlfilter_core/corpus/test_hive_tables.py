import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mlfilter_core.corpus.documents import RecordKeys
from mlfilter_core.corpus.hive_tables import is_own_file, partition_values
from mlfilter_core.corpus.lines import Line
from mlfilter_core.corpus.source_files import find_sources
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.errors import SourceError
from mlfilter_core.files.stores import Listing, StoredFile


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("lang=de/date=2024-01-01/part-0.parquet", {"lang": "de", "date": "2024-01-01"}),
        ("x.parquet/part-0.parquet", {}),
        ("a/lang=de/b/n=1/x.parquet", {"lang": "de", "n": "1"}),
        ("lang=__HIVE_DEFAULT_PARTITION__/x", {"lang": None}),
        ("time=12%3A30%2F%C3%A9/a%20b=c%25/x", {"time": "12:30/é", "a b": "c%"}),
        ("n=%FF/x", {"n": "%FF"}),
        ("q=a=b/x", {"q": "a=b"}),
        ("q=/x", {"q": ""}),
        ("=x/x", {}),
        ("lang=de.parquet", {}),
        ("", {}),
    ],
)
def test_folders_have_keys_and_values(relative: str, expected: dict[str, str | None]) -> None:
    assert partition_values(relative) == expected
    assert list(partition_values(relative)) == list(expected)


def test_values_are_those_that_were_written(tmp_path: Path) -> None:
    """As Arrow writes a table, all columns of the values being strings."""
    values = ["de", "a/b", "ü &=?#%", "2024-01-01 12:30", "..", "+", None]
    table = pa.table({"lang": pa.array(values, pa.string()), "i": range(len(values))})
    ds.write_dataset(table, tmp_path, format="parquet", partitioning=["lang"], partitioning_flavor="hive")
    found = {}
    for source in find_sources(tmp_path, "**/*.parquet", tmp_path / "out"):
        (record,) = pq.ParquetFile(source.path).read().to_pylist()
        found[record["i"]] = partition_values(source.relative)["lang"]
    assert [found[i] for i in range(len(values))] == values


@pytest.mark.parametrize(
    ("relative", "is_own"),
    [
        ("_SUCCESS", True),
        ("x.parquet/_common_metadata", True),
        ("_temporary/0/part-0.parquet", True),
        ("_delta_log/0.json", True),
        ("_lang=de/part-0.parquet", False),
        ("x_/part_0.parquet", False),
    ],
)
def test_the_files_of_a_writer_of_tables_are_told_by_their_names(relative: str, is_own: bool) -> None:
    assert is_own_file(relative) is is_own


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table as Spark writes it."""
    folder = tmp_path / "corpus/x.parquet"
    for lang, date in (("de", "2024-01-01"), ("en", "__HIVE_DEFAULT_PARTITION__")):
        part = folder / f"lang={lang}/date={date}/part-0.parquet"
        part.parent.mkdir(parents=True)
        records = [{"text": f"text {lang}", "meta": {"i": i}} for i in range(3)]
        pq.write_table(pa.Table.from_pylist(records), part, row_group_size=2)
        part.with_name(".part-0.parquet.crc").write_bytes(b"crc\0")
    schema = pq.read_schema(part)
    for name in ("_metadata", "_common_metadata"):
        pq.write_metadata(schema, folder / name)
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    pq.write_table(pa.Table.from_pylist(records), folder / "_temporary/part-0.parquet")
    return tmp_path / "corpus"


def test_each_part_is_a_source_and_files_that_are_no_data_are_left_out_with_a_line(
    table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [f"x.parquet/lang={lang}/part-0" for lang in ("de/date=2024-01-01", "en/date=__HIVE_DEFAULT_PARTITION__")]
    for pattern, n_own in (("**/*", 4), ("**/*.parquet", 1), ("**/part-*", 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            files = find_sources(table, pattern, table.parent / "out")
        assert [file.relative for file in files] == [f"{part}.parquet" for part in parts]
        assert [file.stem for file in files] == parts
        (own, *others) = [message for message in caplog.messages if "hidden" not in message]
        assert f"{n_own} are not data of Spark, Hive or Delta tables" in own
        assert others == []
        hidden = [message for message in caplog.messages if "hidden" in message]
        assert len(hidden) == (pattern == "**/*") and all("2 are hidden" in message for message in hidden)


def test_a_pattern_with_the_mark_finds_names_that_have_it(table: Path) -> None:
    (table / "_more.jsonl").write_text('{"text": "a"}\n')
    assert [file.stem for file in find_sources(table, "_*.jsonl", table / "out")] == ["_more"]


def test_files_in_a_store_are_told_in_the_same_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["x/lang=de/part-0.parquet", "x/_temporary/0/part-0.parquet", "x/_SUCCESS"]
    listing = Listing("s3://bucket/corpus", {name: StoredFile(1, 0, "") for name in names})
    (file,) = find_sources(tmp_path, "**/*", tmp_path / "out", listing)
    assert (file.relative, file.stem) == ("x/lang=de/part-0.parquet", "x/lang=de/part-0")
    assert "2 are not data of Spark, Hive or Delta tables" in caplog.text


def read(table: Path, lang: str, keys: RecordKeys | None = None) -> list[dict[str, Any]]:
    (source,) = find_sources(table, f"**/lang={lang}/**/*.parquet", table.parent / "out")
    with open_source(source.path, keys, source.relative) as opened:
        return [json.loads(line.content) for line in opened.lines(1 << 20) if isinstance(line, Line)]


def test_partition_keys_follow_the_columns(table: Path) -> None:
    rows = read(table, "de")
    assert rows[0] == {"text": "text de", "meta": {"i": 0}, "lang": "de", "date": "2024-01-01"}
    assert list(rows[0]) == ["text", "meta", "lang", "date"]
    assert read(table, "en")[0]["date"] is None


def test_only_the_wanted_partition_keys_are_read(table: Path) -> None:
    assert read(table, "de", RecordKeys(("text",), ("date",))) == [{"text": "text de", "date": "2024-01-01"}] * 3
    assert read(table, "de", RecordKeys(("text", "lang"))) == [{"text": "text de", "lang": "de"}] * 3
    assert read(table, "de", RecordKeys(("lang",))) == [{"lang": "de"}] * 3
    assert read(table, "de", RecordKeys(("meta.i",)))[1] == {"meta": {"i": 1}}


def test_a_missing_column_is_named_with_the_partition_keys(table: Path) -> None:
    with pytest.raises(SourceError, match=r'has no column "language"; it has: text, meta, lang, date; correct the key'):
        read(table, "de", RecordKeys(("language",)))


def test_a_column_precedes_the_partition_key_of_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "corpus/lang=de"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"lang": ["German"]}), folder / "x.parquet")
    assert read(folder.parent, "de") == read(folder.parent, "de", RecordKeys(("lang",))) == [{"lang": "German"}]


def test_a_partition_key_precedes_a_path_into_a_struct(tmp_path: Path) -> None:
    folder = tmp_path / "corpus/a.b=of the folder/lang=de"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"a": [{"b": 1}]}), folder / "x.parquet")
    assert read(tmp_path / "corpus", "de", RecordKeys(("a.b",))) == [{"a.b": "of the folder"}]


def test_folders_above_the_corpus_do_not_count(table: Path) -> None:
    (source,) = find_sources(table / "x.parquet/lang=de", "**/*.parquet", table / "out")
    with open_source(source.path, None, source.relative) as opened:
        assert opened.keys == ("text", "meta", "date")


def test_lines_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "lang=de").mkdir()
    (tmp_path / "lang=de/x.jsonl").write_text('{"text": "a"}\n')
    (source,) = find_sources(tmp_path, "**/*", tmp_path / "out")
    with open_source(source.path, None, source.relative) as opened:
        assert [line.content for line in opened.lines(99) if isinstance(line, Line)] == [b'{"text": "a"}']
