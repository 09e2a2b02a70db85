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
from mlfilter_core.evaluation.score_fields import ScoreFields
from tests.conftest import WriteLines


def aggregation(
    folder: Path, how: Aggregation, keys: str, *inputs: str, scale: Scale | None = None
) -> AggregationRequest:
    inputs = inputs or ("in",)
    folders = tuple(folder / name for name in inputs)
    return AggregationRequest(folders, folder / "out", Scoring(how, scale), ScoreFields(keys))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_scores_of_heads_become_one_and_files_mirror_the_tree(write_lines: WriteLines, tmp_path: Path) -> None:
    records = [
        {"doc_id": 1, "score_a": 1.5, "score_b": 2.5, "int_score_a": 2},
        {"doc_id": 2, "score_a": -1, "score_b": None},
    ]
    write_lines("in/de/x.jsonl.gz", records)
    write_lines("in/x.jsonl", [{"id": "a", "score_b": 3}])
    report = aggregate_scores(aggregation(tmp_path, "mean", "score_*"))
    assert read(tmp_path / "out/de/x_heads_aggregated_scores_mean.jsonl") == [
        {"doc_id": 1, "score": 2.0, "aggregation_type": "mean"},
        {"doc_id": 2, "score": -1.0, "aggregation_type": "mean"},
    ]
    assert read(tmp_path / "out/x_heads_aggregated_scores_mean.jsonl")[0]["score"] == 3.0
    assert [(output.name, output.documents, output.scored) for output in report.outputs] == [
        ("de/x_heads_aggregated_scores_mean.jsonl", 2, 2),
        ("x_heads_aggregated_scores_mean.jsonl", 1, 1),
    ]
    assert json.loads((tmp_path / "out/aggregation_report.json").read_text())["request"]["score_keys"] == "score_*"


def test_files_of_several_folders_are_joined_line_by_line(write_lines: WriteLines, tmp_path: Path) -> None:
    write_lines("one/a/x.jsonl", [{"id": "p", "int_score_q": 3}, {"id": "q", "int_score_q": 1}])
    write_lines(
        "two/a/x.jsonl.zst", [{"document_id": "p", "int_score_q": 3}, b"", {"document_id": "q", "int_score_q": 2}]
    )
    write_lines("three/a/x.jsonl", [{"id": "p", "int_score_r": 0}, {"id": "q", "int_score_r": 5}])
    aggregate_scores(aggregation(tmp_path, "majority", "int_score_*", "one", "two", "three"))
    output = read(tmp_path / "out/a/x_heads_aggregated_scores_majority.jsonl")
    assert [(record["id"], record["score"]) for record in output] == [("p", 3.0), ("q", 8 / 3)]


def test_documents_that_differ_are_named_with_file_and_line(write_lines: WriteLines, tmp_path: Path) -> None:
    one = write_lines("one/x.jsonl", [{"id": "p", "score_a": 1}, {"id": "q", "score_a": 1}])
    two = write_lines("two/x.jsonl", [{"id": "p", "score_a": 1}, b"", {"id": "r", "score_a": 1}])
    report = aggregate_scores(aggregation(tmp_path, "mean", "score_*", "one", "two"))
    assert report.failures == {
        f"{one} + {two}": f"{two}:3: the document is r, but at {one}:2 it is q; give annotated files that were made "
        "from the same embeddings"
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["aggregation_report.json"]


@pytest.mark.parametrize("shorter", ["one", "two"])
def test_a_file_with_fewer_lines_is_named(write_lines: WriteLines, tmp_path: Path, shorter: str) -> None:
    paths = {
        name: write_lines(f"{name}/x.jsonl", [{"id": i, "score_a": 1} for i in range(2 if name == shorter else 3)])
        for name in ("one", "two")
    }
    (reason,) = aggregate_scores(aggregation(tmp_path, "mean", "score_*", "one", "two")).failures.values()
    longer = next(path for name, path in paths.items() if name != shorter)
    assert reason.startswith(f"{paths[shorter]} has fewer lines than {longer}; ")


def test_a_folder_without_one_of_the_files_is_refused(write_lines: WriteLines, tmp_path: Path) -> None:
    for name in ("one/x.jsonl", "one/y.jsonl", "two/x.jsonl"):
        write_lines(name, [{"id": "p", "score_a": 1}])
    with pytest.raises(
        ConfigError, match=r"one/y\.jsonl: not every --input-directory has a file y\.jsonl\[\.gz\|\.zst\]"
    ):
        aggregate_scores(aggregation(tmp_path, "mean", "score_*", "one", "two"))


def test_two_files_of_one_output_are_refused(write_lines: WriteLines, tmp_path: Path) -> None:
    for name in ("in/x.jsonl", "in/x.jsonl.gz"):
        write_lines(name, [{"id": "p", "score_a": 1}])
    with pytest.raises(ConfigError, match=r"in/x\.jsonl and .*in/x\.jsonl\.gz would both be written to x; rename one"):
        aggregate_scores(aggregation(tmp_path, "mean", "score_*"))


@pytest.mark.parametrize("inputs", [("",), ("out",), ("in", "out/..")])
def test_outputs_among_the_inputs_are_refused(write_lines: WriteLines, tmp_path: Path, inputs: tuple[str, ...]) -> None:
    write_lines("in/x.jsonl", [{"id": "p", "score_a": 1}])
    with pytest.raises(ConfigError, match=r"--output-directory .*/out is in --input-directory"):
        aggregate_scores(aggregation(tmp_path, "mean", "score_*", *inputs))


def test_what_is_no_score_is_counted_and_a_bad_line_leaves_its_document_out(
    write_lines: WriteLines, tmp_path: Path, scale: Scale
) -> None:
    first = [{"id": i, "int_score_a": value} for i, value in enumerate([1, None, 9, 2.0, "3"])]
    write_lines("one/x.jsonl", first)
    write_lines(
        "two/x.jsonl", [{"id": 0, "int_score_b": 2}, {"id": 1}, {"id": 2, "int_score_b": math.nan}, b"{", {"id": 4}]
    )
    (report,) = aggregate_scores(aggregation(tmp_path, "majority", "int_*", "one", "two", scale=scale)).outputs
    assert [(record["id"], record["score"]) for record in read(tmp_path / "out" / report.name)] == [(0, 1.5)]
    assert report.left_out.to_json() == {"no_valid_score": {"count": 3, "examples": ["1", "2", "4"]}}
    assert report.invalid_draws.counts == {
        "null": 1,
        "missing": 2,
        "not_a_label": 1,
        "not_finite": 1,
        "not_a_number": 1,
    }
    assert report.invalid_draws.examples["not_finite"] == [f"{tmp_path}/two/x.jsonl:3: nan"]
    assert report.bad_lines.counts == {"not_json": 1}
    assert report.documents == report.scored + report.left_out.total == 4


@pytest.mark.parametrize("with_labels", [True, False])
def test_a_majority_of_scores_that_are_no_labels_is_refused_with_advice(
    write_lines: WriteLines, tmp_path: Path, scale: Scale, with_labels: bool
) -> None:
    path = write_lines("in/x.jsonl", [{"id": 0, "score_a": 2.0}, {"id": 1, "score_a": 2.25}])
    request = aggregation(tmp_path, "majority", "score_*", scale=scale if with_labels else None)
    (reason,) = aggregate_scores(request).failures.values()
    assert reason.startswith(
        f"{path}:2: score_a is 2.25, which hardly ever equals the score of another head; a majority"
    )
    assert "give --score-keys 'int_score_*'" in reason


def test_where_no_score_is_valid_the_reasons_are_shown(write_lines: WriteLines, tmp_path: Path, scale: Scale) -> None:
    path = write_lines("in/x.jsonl", [{"id": 0, "score_a": 2.5}, b"{"])
    (reason,) = aggregate_scores(aggregation(tmp_path, "mean", "score_*", scale=scale)).failures.values()
    assert reason.startswith(f"{path}: no score is valid: 1 not_a_label ({path}:1: 2.5); 1 not_json ({path}:2: ")
    assert reason.endswith("check --score-keys and --labels (without --labels, any finite number is valid)")


def test_an_empty_file_gives_an_empty_output(write_lines: WriteLines, tmp_path: Path) -> None:
    write_lines("in/x.jsonl", [])
    (report,) = aggregate_scores(aggregation(tmp_path, "mean", "score_*")).outputs
    assert (tmp_path / "out" / report.name).read_bytes() == b""


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match=re.escape(f".jsonl file below {tmp_path / 'in'}, compressed or not; run")):
        aggregate_scores(aggregation(tmp_path, "mean", "score_*"))
