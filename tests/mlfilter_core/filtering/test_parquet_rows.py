import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlfilter_core.errors import AnnotationError, SourceError
from mlfilter_core.filtering.filter_file import FilterReport, filter_file
from tests.mlfilter_core.filtering.conftest import Filter, annotate, document, lines_of, surveyed

N = 40
SCHEMA = pa.schema(
    {
        "id": pa.large_string(),
        "text": pa.string(),
        "language": pa.dictionary(pa.int32(), pa.string()),
        "meta": pa.struct({"i": pa.int16()}),
        "tags": pa.list_(pa.string()),
        "time": pa.timestamp("ms", "UTC"),
        "decimal": pa.decimal128(9, 2),
        "bytes": pa.binary(),
    }
)


@pytest.fixture
def annotated(tmp_path: Path, tiny_model: Path) -> Path:
    """Embeds and scores a Parquet file of 40 rows, one of them rejected."""
    (tmp_path / "corpus").mkdir()
    more = {"tags": ["a", None], "time": 1_600_000_000_000, "decimal": 1, "bytes": b"\xff\x00"}
    records = [{**document("x", i), **more, "text": None if i == 4 else document("x", i)["text"]} for i in range(N)]
    table = pa.Table.from_pylist(records, SCHEMA).replace_schema_metadata({"huggingface": "features of the source"})
    pq.write_table(table, tmp_path / "corpus/x.parquet", row_group_size=7)
    annotate(tmp_path, tiny_model)
    return tmp_path


def filtered(params: object) -> FilterReport:
    files, request = surveyed(params)  # type: ignore[arg-type]
    (report,) = [filter_file(file, request) for file in files]
    return report


@pytest.mark.parametrize("at_a_time", [4096, 5])
def test_parquet_keeps_the_columns_of_a_parquet_source_and_adds_the_scores(
    parameters: Filter, annotated: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr("mlfilter_core.filtering.parquet.ROW_GROUP_ROWS", at_a_time)
    params = parameters(output_format="parquet", write_dropped=True)
    report = filtered(params)
    kept = pq.read_table(params.filtered_dir / "x.parquet")
    dropped = pq.read_table(params.dropped_dir / "x.parquet")
    assert (kept.num_rows, dropped.num_rows) == (report.kept, N - 1 - report.kept)
    scores = pa.schema({"score_good": pa.float64(), "score_fun": pa.float64()})
    assert kept.schema == dropped.schema == pa.schema([*SCHEMA, *scores])
    assert kept.schema.metadata is None
    source = {row["id"]: row for row in pq.read_table(annotated / "corpus/x.parquet").to_pylist()}
    scored = {line["document_id"]: line for line in lines_of(params.annotated_directory, "x.jsonl")}
    rows = [*kept.to_pylist(), *dropped.to_pylist()]
    assert len(rows) == len(scored) == N - 1
    for row in rows:
        made = {name: scored[row["id"]][name] for name in scores.names}
        assert row == {**source[row["id"]], **made}
    order = list(source)
    assert [order.index(row["id"]) for row in kept.to_pylist()] == sorted(
        order.index(i) for i in kept["id"].to_pylist()
    )


def test_lines_of_a_parquet_source_have_its_values_as_json(parameters: Filter) -> None:
    params = parameters()
    filtered(params)
    (first, *_) = lines_of(params.filtered_dir, "x.jsonl")
    assert list(first)[-2:] == ["score_good", "score_fun"]
    assert first["bytes"] == {"base64": "/wA="}
    assert first["time"] == "2020-09-13T12:26:40.000Z"


@pytest.mark.parametrize("threshold", [-1e9, 1e9])
def test_a_file_of_all_or_of_no_rows_has_the_same_columns(parameters: Filter, threshold: float) -> None:
    params = parameters(output_format="parquet", keep={"scores": {"good": {"threshold": threshold}}})
    report = filtered(params)
    table = pq.read_table(params.filtered_dir / "x.parquet")
    assert table.num_rows == report.kept == (0 if threshold > 0 else N - 1)
    assert table.schema.names == [*SCHEMA.names, "score_good", "score_fun"]


def test_a_column_of_a_scores_name_is_an_error(parameters: Filter, annotated: Path, tiny_model: Path) -> None:
    path = annotated / "corpus/x.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("score_fun", pa.array([1] * N)), path)
    for output in (annotated / "out").rglob("x.*"):
        output.unlink()
    for provenance in (annotated / "out").rglob(".provenance/*"):
        provenance.unlink()
    annotate(annotated, tiny_model)
    with pytest.raises(AnnotationError, match='already have a key "score_fun"'):
        filtered(parameters(output_format="parquet"))


def test_a_changed_source_is_noticed_and_leaves_nothing(parameters: Filter, annotated: Path) -> None:
    path = annotated / "corpus/x.parquet"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"parquet-cpp", b"parquet-c++", 1))
    params = parameters(output_format="parquet")
    with pytest.raises(SourceError, match=r"x\.parquet changed since"):
        filtered(params)
    assert [name.name for name in params.filtered_dir.iterdir()] == [".survey"]


def test_annotated_lines_alone_have_the_types_of_json(parameters: Filter) -> None:
    params = parameters(output_format="parquet", embeddings_directory=None)
    filtered(params)
    assert "meta" not in pq.read_table(params.filtered_dir / "x.parquet").schema.names
    assert json.loads((params.annotated_directory / "x.jsonl").read_text().splitlines()[0])["document_id"] == "x-0"
