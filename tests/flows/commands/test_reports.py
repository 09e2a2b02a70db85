import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.commands.app import build_app
from mlfilter_core.annotating.annotated_format import write_records
from mlfilter_core.tallies.score_statistics import score_statistics, write_score_statistics
from tests.deduplicated_folder import deduplicate
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, write_topics


def write_annotated(output_dir: Path, scores: list[float]) -> Path:
    """Writes an annotated file, as a run does, from embeddings of another tool."""
    path = output_dir / "annotated_data" / "a" / "x.jsonl"
    provenance = output_dir / "annotated_data" / ".provenance" / "a" / "x.jsonl.json"
    for folder in (path.parent, provenance.parent):
        folder.mkdir(parents=True)
    with path.open("wb") as file:
        write_records(file, [{"document_id": f"d{i}", "score_h": score} for i, score in enumerate(scores)])
    statistics = {"scores": write_score_statistics(score_statistics({"score_h": np.array(scores, np.float32)}))}
    made = {"documents": len(scores), "request": {"heads": {"h": "0"}}, "embeddings": {}, "statistics": statistics}
    provenance.write_text(json.dumps(made))
    return output_dir


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_a_report_is_made_from_the_files(tmp_path: Path) -> None:
    folder = write_annotated(tmp_path / "out", [1.0, 2.5])
    code, printed, _ = run("report", folder)
    page = folder / "report" / "index.html"
    assert (code, printed.strip()) == (0, str(page))
    assert "score_h" in page.read_text()
    facts = json.loads((folder / "report" / "report.json").read_text())
    assert (facts["totals"]["annotated"], facts["scores"]["means"]) == (2, [1.75])
    assert json.loads(run("report", folder, "--json")[1])["scores"] == facts["scores"]


def test_a_report_of_nothing_is_an_error(tmp_path: Path) -> None:
    code, _, said = run("report", tmp_path / "absent")
    assert code == 1
    assert "nothing to report in" in said
    assert not (tmp_path / "absent").exists()


def test_two_runs_are_put_side_by_side(tmp_path: Path) -> None:
    one = write_annotated(tmp_path / "one", [1.0, 2.0, 3.0, 4.0])
    other = write_annotated(tmp_path / "other", [1.5, 2.5, 2.75, 5.0])
    code, printed, _ = run("compare", one, other, "--thresholds", "3")
    assert code == 0
    row = next(line.split() for line in printed.splitlines() if line.split()[:2] == ["score_h", "4"])
    assert row[2:] == ["0.939", "1", "0.438", "0.562", "1", "100.0%", "100.0%", "75.0%", "(50.0%,", "25.0%)"]
    found = json.loads(run("compare", one, other, "--json")[1])
    assert found["shifts"][0]["means"] == [2.5, 2.9375]
    assert found["agreements"][0]["documents"] == 4


def test_the_comparison_says_whether_the_clusters_and_duplicates_are_the_same(tmp_path: Path) -> None:
    for name, n in (("one", 20), ("other", 30)):
        write_topics(tmp_path / name / "out/embeddings/x.h5", np.arange(n) % 3)
        run_steps(cluster_job(tmp_path / name))
        deduplicate(tmp_path / name / "out", write_documents=False)
    one, other = tmp_path / "one" / "out", tmp_path / "other" / "out"
    assert "clusters: found separately, with other centres\n" in run("compare", one, other)[1]
    assert "clusters: the same on both sides\n" in run("compare", one, one)[1]
    assert "duplicates: found separately, other documents on each side\n" in run("compare", one, other)[1]
    assert "duplicates: the same on both sides\n" in run("compare", one, one)[1]


@pytest.mark.parametrize("thresholds", ["x", "1,,2"])
def test_thresholds_that_are_no_numbers_are_an_error(tmp_path: Path, thresholds: str) -> None:
    folder = write_annotated(tmp_path / "one", [1.0])
    code, _, said = run("compare", folder, folder, "--thresholds", thresholds)
    assert code == 1 and "--thresholds" in said
