"""The commands that look at results, as people type them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WriteLines
from tests.flows.commands.processes import HEAVY, ml_filter_here
from tests.mlfilter_core.evaluation.conftest import draw_record


@pytest.fixture
def annotations(write_lines: WriteLines, tmp_path: Path) -> Path:
    """Draws of one model for four German documents, and their raw file."""
    raw = write_lines("raw/web.jsonl", [{"id": name, "text": "..."} for name in "abcd"])
    draws: dict[str, list[Any]] = {"a": [0, 0, 1], "b": [2, 3, 4], "c": [5, None, 5], "d": [None, 9]}
    records = [draw_record(name, scores, raw) for name, scores in draws.items()]
    write_lines("in/de/annotations_edu_de_gemma.jsonl", records)
    return tmp_path / "in"


@pytest.fixture
def annotated(write_lines: WriteLines, tmp_path: Path) -> Path:
    """Scores of two heads for three documents."""
    records = [{"document_id": name, "score_x": i, "score_y": i + 1.5} for i, name in enumerate("abc")]
    return write_lines("annotated/de/web.jsonl", records).parents[1]


@pytest.mark.parametrize("command", [[], ["aggregate_scores"], ["evaluate_predicted_annotations"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    script = Path(sys.executable).parent / "ml_filter"
    line = [sys.executable, "-X", "importtime", str(script), *command, "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported.intersection(HEAVY)


@pytest.mark.parametrize("name", ["aggregate_scores", "evaluate_predicted_annotations"])
def test_names_are_accepted_with_underscores_and_with_hyphens(name: str) -> None:
    for spelling in (name, name.replace("_", "-")):
        assert ml_filter_here(spelling, "--help").exit_code == 0


def test_draws_are_aggregated_and_what_is_left_out_is_shown(annotations: Path, tmp_path: Path) -> None:
    options = ["--aggregation", "majority", "--labels", "0,1,2,3,4,5", "--batch_size", "2"]
    done = ml_filter_here(
        "aggregate_scores", "--input_directory", annotations, "--output_directory", tmp_path / "out", *options
    )
    assert done.exit_code == 0, done.output
    output = tmp_path / "out" / "web_gemma_aggregated_scores_majority.jsonl"
    assert [json.loads(line) for line in output.read_text().splitlines()] == [
        {"id": name, "score": score, "aggregation_type": "majority"} for name, score in (("a", 0), ("b", 3), ("c", 5))
    ]
    heading, row = (cells for cells in map(str.split, done.stdout.splitlines()) if len(cells) == 9)
    assert dict(zip(heading, row, strict=True)) == {
        **{"output": output.name, "documents": "4", "scored": "3", "no_valid_score": "1", "not_annotated": "0"},
        **{"not_in_raw_file": "0", "invalid_draws": "3", "duplicates": "0", "bad_lines": "0"},
    }
    assert f"{output.name}: left out: 1 no_valid_score (d)" in done.stdout
    assert f"results: {tmp_path}/out" in done.stdout


def test_the_scores_of_heads_are_aggregated(annotated: Path, tmp_path: Path) -> None:
    folders = ["--input_directory", annotated, "--output_directory", tmp_path / "out"]
    done = ml_filter_here("aggregate_scores", *folders, "--aggregation", "max", "--score_keys", "score_*")
    assert done.exit_code == 0, done.output
    output = tmp_path / "out/de/web_heads_aggregated_scores_max.jsonl"
    assert [json.loads(line)["score"] for line in output.read_text().splitlines()] == [1.5, 2.5, 3.5]


def test_a_failed_file_is_a_reason_and_status_1_and_the_others_are_done(
    annotations: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    write_lines("in/fr/annotations_edu_fr_other.jsonl", [draw_record("a", [1], tmp_path / "gone.jsonl")])
    options = ["--aggregation", "mean", "--labels", "0,1,2,3,4,5"]
    done = ml_filter_here(
        "aggregate_scores", "--input-directory", annotations, "--output-directory", tmp_path / "out", *options
    )
    assert done.exit_code == 1
    assert "\nerror: 1 file failed; the others are aggregated:\n" in done.stderr
    assert f"{tmp_path}/gone.jsonl cannot be read (No such file or directory)" in done.stderr
    assert (tmp_path / "out/web_gemma_aggregated_scores_mean.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--aggregation", "median", "--labels", "0,1"], '--aggregation "median" is unknown'),
        (["--aggregation", "mean"], "give --labels, such as 0,1,2,3,4,5"),
        (["--aggregation", "mean", "--labels", "0,x"], '--labels 0,x: "x" is not a finite number'),
        (["--aggregation", "mean", "--labels", "0,1", "--input_directory", "."], "several --input-directory go with"),
        (
            ["--aggregation", "mean", "--score_keys", "s", "--raw_data_lookup_dir", "."],
            "--raw-data-lookup-dir goes with",
        ),
    ],
)
def test_a_wrong_option_is_one_message_and_status_1(
    annotations: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    done = ml_filter_here(
        "aggregate_scores", "--input_directory", annotations, "--output_directory", tmp_path / "out", *options
    )
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {reason}")
    assert not (tmp_path / "out").exists()


def test_annotators_are_evaluated_and_the_table_is_shown(
    annotations: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    truth = write_lines(
        "gt.jsonl", [{"id": name, "label": label} for name, label in zip("abcd", (0, 2, 5, 1), strict=True)]
    )
    done = ml_filter_here(
        *("evaluate_predicted_annotations", "--input_directory", annotations, "--output_directory", tmp_path / "out"),
        *("--path_to_ground_truth_file", truth, "--valid_labels", "0,1,2,3,4,5", "--thresholds", "2,3"),
        *("--bootstrap", "20", "--seed", "3"),
    )
    assert done.exit_code == 0, done.output
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith("org__model"))
    assert row.split()[:7] == ["org__model", "de", "3", "of", "4", "0.667", "0.333"]  # valid, Acc, MAE
    assert "org__model, de: left out: 1 invalid (d)" in done.stdout
    metrics = json.loads((tmp_path / "out/de/ir_gt_org__model.json").read_text())["metrics"]
    assert (metrics["Invalid"], metrics["TA-2.0"], metrics["TA-3.0"]) == (1, 1.0, pytest.approx(2 / 3))


def test_heads_are_evaluated_without_intervals(annotated: Path, write_lines: WriteLines, tmp_path: Path) -> None:
    truth = write_lines("gt/de.jsonl", [{"id": name, "mine": label} for label, name in enumerate("abc")])
    done = ml_filter_here(
        *("evaluate_predicted_annotations", "--input_directory", annotated, "--output_directory", tmp_path / "out"),
        *("--path_to_ground_truth_file", truth.parent, "--valid_labels", "0,1,2", "--label_key", "mine"),
        *("--score_keys", "score_x,score_y", "--bootstrap", "0"),
    )
    assert done.exit_code == 0, done.output
    assert "Without intervals." in done.stdout
    found = json.loads((tmp_path / "out/evaluation.json").read_text())["comparisons"]
    assert [(part["annotator"], part["metrics"]["MAE"]) for part in found] == [("score_x", 0.0), ("score_y", 1.5)]


def test_an_error_of_the_evaluation_is_one_message_and_status_1(annotations: Path, write_lines: WriteLines) -> None:
    truth = write_lines("gt.jsonl", [{"id": "a", "label": 1}, {"id": "a", "label": 2}])
    done = ml_filter_here(
        *(
            "evaluate_predicted_annotations",
            "--input_directory",
            annotations,
            "--output_directory",
            truth.parent / "out",
        ),
        *("--path_to_ground_truth_file", truth, "--valid_labels", "0,1,2"),
    )
    assert done.exit_code == 1
    assert (
        done.stderr
        == f"error: {truth}: 1 records contradict others: a is 1 at {truth}:1, 2 at {truth}:2; keep one of each\n"
    )
