import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.evaluation.aggregate_scores import aggregate_scores
from mlfilter_core.evaluation.aggregation import AggregationRequest
from mlfilter_core.evaluation.draws import Aggregation, Scoring
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.scores_of_draws import scores_of_draws
from tests.conftest import WriteLines
from tests.mlfilter_core.evaluation.conftest import draw_record


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def request_(tmp_path: Path, scale: Scale) -> AggregationRequest:
    return AggregationRequest((tmp_path / "in",), tmp_path / "out", Scoring("majority", scale))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("how", "scores"), [("mean", [5 / 3, 3.5]), ("max", [2.0, 4.0]), ("min", [1.0, 3.0]), ("majority", [2.0, 3.5])]
)
def test_each_document_of_the_raw_file_gets_one_score_in_its_order(
    write_lines: WriteLines, tmp_path: Path, scale: Scale, how: Aggregation, scores: list[float], suffix: str
) -> None:
    raw = write_lines(f"raw/web.jsonl{suffix}", [{"text": "a", "id": 7}, {"id": "b", "text": ""}])
    records = [draw_record("b", [3, None, 4, 17], raw), draw_record("7", [1, 2, 2], raw)]
    write_lines(f"in/de/annotations_edu_de_gemma.jsonl{suffix}", records)
    request = AggregationRequest((tmp_path / "in",), tmp_path / "out", Scoring(how, scale), batch_size=1)
    report = aggregate_scores(request)
    output = tmp_path / "out" / f"web_gemma_aggregated_scores_{how}.jsonl"
    assert read(output) == [
        {"id": 7, "score": scores[0], "aggregation_type": how},
        {"id": "b", "score": scores[1], "aggregation_type": how},
    ]
    assert report.failures == {}
    assert json.loads((tmp_path / "out" / "aggregation_report.json").read_text())["outputs"][0]["scored"] == 2


def test_everything_that_is_left_out_is_counted_with_its_reason(
    write_lines: WriteLines, tmp_path: Path, request_: AggregationRequest
) -> None:
    documents = [{"uuid": name} for name in ("scored", "invalid", "empty", "unknown")]
    raw = write_lines("raw.jsonl", [*documents, b"{", {"text": "no id"}])
    path = write_lines(
        "in/annotations_x.jsonl",
        [
            draw_record("scored", [1, 9, math.nan, math.inf, None], raw),
            draw_record("invalid", [None, "3", True], raw),
            draw_record("empty", [], raw),
            draw_record("elsewhere", [2], raw),
            draw_record("broken", "2", raw),
            b"not JSON",
        ],
    )
    (report,) = aggregate_scores(request_).outputs
    assert read(tmp_path / "out" / report.name) == [{"uuid": "scored", "score": 1.0, "aggregation_type": "majority"}]
    assert report.row() == {
        "output": "raw_x_aggregated_scores_majority.jsonl",
        "documents": 4,
        "scored": 1,
        "no_valid_score": 2,
        "not_annotated": 1,
        "not_in_raw_file": 1,
        "invalid_draws": 7,
        "duplicates": 0,
        "bad_lines": 4,
    }
    assert report.left_out.examples == {
        **{"no_valid_score": ["invalid", "empty"], "not_annotated": ["unknown"], "not_in_raw_file": ["elsewhere"]}
    }
    assert report.invalid_draws.counts == {"not_a_label": 1, "not_finite": 2, "null": 2, "not_a_number": 2}
    assert report.invalid_draws.examples["not_a_label"] == [f"{path}:1: 9"]
    assert report.bad_lines.counts == {"no_scores": 1, "not_json": 2, "no_id": 1}
    (written,) = json.loads((tmp_path / "out" / "aggregation_report.json").read_text())["outputs"]
    assert (written["made_from"], written["raw_data_file"]) == ([str(path)], str(raw))
    assert written["left_out"]["no_valid_score"] == {"count": 2, "examples": ["invalid", "empty"]}


def test_of_a_document_with_draws_in_two_records_the_last_counts_and_it_is_said(
    write_lines: WriteLines, tmp_path: Path, request_: AggregationRequest
) -> None:
    raw = write_lines("raw.jsonl", [{"id": "a"}, {"id": "b"}, {"id": "c"}])
    draws = [("a", [1]), ("b", [2]), ("c", [5]), ("a", [1, None, 1]), ("b", [4]), ("c", [None])]
    write_lines("in/annotations_x.jsonl", [draw_record(name, scores, raw) for name, scores in draws])
    (report,) = aggregate_scores(request_).outputs
    assert [(record["id"], record["score"]) for record in read(tmp_path / "out" / report.name)] == [
        ("a", 1),
        ("b", 4),
    ]
    assert report.duplicates.to_json() == {
        "with_same_score": {"count": 1, "examples": ["a"]},
        "with_other_score": {"count": 2, "examples": ["b", "c"]},
    }
    counted = "draws in several records, the last one counts: 1 with_same_score (a); 2 with_other_score (b, c)"
    assert f"{report.name}: {counted}" in report.remarks()


def test_one_draw_file_may_refer_to_several_raw_files(
    write_lines: WriteLines, tmp_path: Path, request_: AggregationRequest
) -> None:
    raw = {name: write_lines(f"{name}.jsonl", [{"id": "same"}]) for name in ("one", "two")}
    gone = tmp_path / "gone.jsonl"
    records = [
        draw_record("same", [1], raw["one"]),
        draw_record("same", [4], raw["two"]),
        draw_record("same", [5], gone),
    ]
    write_lines("in/annotations_x.jsonl", records)
    report = aggregate_scores(request_)
    outputs = [read(tmp_path / "out" / f"{name}_x_aggregated_scores_majority.jsonl") for name in raw]
    assert [[record["score"] for record in output] for output in outputs] == [[1.0], [4.0]]
    assert list(report.failures) == ["gone_x_aggregated_scores_majority.jsonl"]
    assert "gone.jsonl cannot be read (No such file or directory)" in report.failures.popitem()[1]
    assert not (tmp_path / "out/gone_x_aggregated_scores_majority.jsonl").exists()


def test_raw_files_are_looked_up_by_name_elsewhere(write_lines: WriteLines, tmp_path: Path, scale: Scale) -> None:
    write_lines("deduplicated/web.jsonl", [{"id": "b"}])
    write_lines("in/annotations_x.jsonl", [draw_record(name, [3], "/no/such/folder/web.jsonl") for name in "ab"])
    lookup = tmp_path / "deduplicated"
    request = AggregationRequest(
        (tmp_path / "in",), tmp_path / "out", Scoring("max", scale), raw_data_lookup_dir=lookup
    )
    report = aggregate_scores(request)
    assert [record["id"] for record in read(tmp_path / "out/web_x_aggregated_scores_max.jsonl")] == ["b"]
    assert report.outputs[0].left_out.examples == {"not_in_raw_file": ["a"]}


@pytest.mark.parametrize(
    ("first", "second", "raw"),
    [
        ("in/de/annotations_edu_x.jsonl", "in/fr/annotations_tox_x.jsonl", ["web.jsonl", "web.jsonl"]),
        ("in/annotations_1_x.jsonl", "in/annotations_2_x.jsonl", ["2014/web.jsonl", "2015/web.jsonl.gz"]),
    ],
)
def test_two_outputs_of_one_name_are_refused_before_any_work(
    write_lines: WriteLines, tmp_path: Path, request_: AggregationRequest, first: str, second: str, raw: list[str]
) -> None:
    for path, name in zip((first, second), raw, strict=True):
        write_lines(name, [{"id": "a"}])
        write_lines(path, [draw_record("a", [1], tmp_path / name)])
    expected = (
        f"{tmp_path / first} (of {tmp_path / raw[0]}) and {tmp_path / second} (of {tmp_path / raw[1]}) would both be "
        "written to web_x_aggregated_scores_majority.jsonl; rename one"
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        aggregate_scores(request_)
    assert list((tmp_path / "out").iterdir()) == []


def test_where_no_id_matches_both_sides_are_shown(
    write_lines: WriteLines, tmp_path: Path, request_: AggregationRequest
) -> None:
    raw = write_lines("raw.jsonl", [{"id": f"<urn:{i}>"} for i in range(5)])
    path = write_lines("in/annotations_x.jsonl", [draw_record(i, [1], raw) for i in range(4)])
    report = aggregate_scores(request_)
    assert report.failures == {
        "raw_x_aggregated_scores_majority.jsonl": f"{path}: none of its 4 documents is among the 5 in {raw}; it "
        "contains 0, 1, 2, the raw file <urn:0>, <urn:1>, <urn:2>; check --raw-data-lookup-dir; no output is written "
        "for it"
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["aggregation_report.json"]


def test_where_no_draw_is_valid_the_reasons_are_shown(
    write_lines: WriteLines, tmp_path: Path, request_: AggregationRequest
) -> None:
    raw = write_lines("raw.jsonl", [{"id": "a"}])
    path = write_lines("in/annotations_x.jsonl", [draw_record("a", [7, 8], raw)])
    (reason,) = aggregate_scores(request_).failures.values()
    assert (
        f"no draw for a document of {raw} is valid: 2 not_a_label ({path}:1: 7, {path}:1: 8); check --labels" in reason
    )


def test_a_file_without_draws_or_broken_fails_and_the_others_are_done(
    write_lines: WriteLines, tmp_path: Path, request_: AggregationRequest
) -> None:
    raw = write_lines("raw.jsonl", [{"id": "a"}])
    write_lines("in/annotations_good.jsonl", [draw_record("a", [1], raw)])
    empty = write_lines("in/annotations_empty.jsonl", [])
    other = write_lines("in/annotations_other.jsonl", [{"id": "a", "scores": [1]}])
    cut = write_lines("in/annotations_cut.jsonl.gz", [draw_record("a", [1], raw)])
    cut.write_bytes(cut.read_bytes()[:-9])
    report = aggregate_scores(request_)
    assert [output.name for output in report.outputs] == ["raw_good_aggregated_scores_majority.jsonl"]
    assert list(report.failures) == [str(cut), str(empty), str(other)]
    assert "the compressed stream breaks off here" in report.failures[str(cut)]
    assert "no record refers to a raw file: the file is empty" in report.failures[str(empty)]
    assert f'1 no_raw_data_file ({other}:1: "meta_information.raw_data_file_path" is mis' in report.failures[str(other)]


def test_a_draw_file_that_changes_while_it_is_read_fails(
    write_lines: WriteLines, tmp_path: Path, request_: AggregationRequest
) -> None:
    raw = {name: write_lines(f"{name}.jsonl", [{"id": "a"}]) for name in ("one", "two")}
    path = write_lines("in/annotations_x.jsonl", [draw_record("a", [1], raw["one"])])
    failures: dict[str, str] = {}
    other = write_lines("in/annotations_a.jsonl", [draw_record("a", [1], raw["one"])])
    outputs = scores_of_draws([other, path], request_, failures)
    next(outputs)
    write_lines("in/annotations_x.jsonl", [draw_record("a", [1], raw["two"])])
    assert list(outputs) == []
    assert failures == {str(path): f"{path}:1: the file changed while it was read; aggregate it again"}
