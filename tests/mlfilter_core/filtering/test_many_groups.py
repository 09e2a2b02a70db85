"""A whole filter job with more groups in a file than fit in one byte."""

import json
import math
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.filtering.filter_file import FilterReport, finished_filter
from mlfilter_core.job_kinds import workload_of
from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.summaries import summary_of_filter
from mlfilter_core.run_report.write_report import write_report
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import verify
from mlfilter_core.work.workload import row_of
from tests.pipeline_folder import document, filter_facts, job, run_pipeline

N_GROUPS = 300
KEEP = {"scores": {"good": {"percentile": 50}}, "per": "cluster"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An output folder: of `x`, 600 documents in 300 clusters, of `y`, 40 documents in 4 of them."""
    folder = tmp_path_factory.mktemp("clusters")
    (folder / "corpus").mkdir()
    for name, n, n_groups in (("x", 600, N_GROUPS), ("y", 40, 4)):
        lines = [json.dumps({**document(name, i), "cluster": i % n_groups}) for i in range(n)]
        (folder / "corpus" / f"{name}.jsonl").write_text("\n".join(lines))
    return run_pipeline(folder, tiny_model, {"keys_to_index": ["cluster"]}, {}, keep=KEEP)


def records(out: Path, folder: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / folder / f"{name}.jsonl").read_text().splitlines()]


def reports(out: Path) -> list[FilterReport]:
    annotated, embeddings = out / "annotated_data", out / "embeddings"
    params = {"annotated_directory": annotated, "embeddings_directory": embeddings, "keep": KEEP, "write_dropped": True}
    workload = workload_of(job(FilterJob, {**params, "output_dir": out}))
    return [finished_filter(file, workload.work.request, read_content=True) for file in workload.files]


def test_each_group_keeps_its_best_half(made: Path) -> None:
    scores: defaultdict[int, list[np.float32]] = defaultdict(list)
    for name in ("x", "y"):
        for line, source in zip(
            records(made, "annotated_data", name), records(made.parent, "corpus", name), strict=True
        ):
            scores[source["cluster"]].append(np.float32(line["score_good"]))
    limits = {group: sorted(of_group)[math.floor(len(of_group) / 2)] for group, of_group in scores.items()}
    for name in ("x", "y"):
        for folder, is_kept in (("filtered", True), ("dropped", False)):
            for each in records(made, folder, name):
                assert (np.float32(each["score_good"]) >= limits[each["cluster"]]) is np.bool_(is_kept)
    assert 290 < len(records(made, "filtered", "x")) < 310


def test_verification_finds_a_filter_of_many_groups_right(made: Path) -> None:
    found = verify(VerifyRequest(made), n_workers=1)
    assert [check.problems for check in found.wrong] == []
    assert found.kept + found.dropped == 640


def test_a_filtered_file_states_only_the_limits_of_its_own_groups(made: Path) -> None:
    stated = json.loads((made / "filtered/.provenance/y.jsonl.json").read_bytes())
    assert stated["groups"] == list(stated["request"]["cuts"][0]) == list(stated["report"]["by_group"])
    assert stated["groups"] == ["0", "1", "2", "3"]
    assert len(stated["report"]["criteria"][0]) < 2000


def test_what_a_run_prints_is_cut_to_the_largest_groups(made: Path) -> None:
    of_files = reports(made)
    remarks = FilterReport.remarks_on(of_files)
    assert len(remarks) == 43
    assert [remark.partition(":")[0] for remark in remarks[1:5]] == ["0", "1", "2", "3"]  # those of both files
    assert remarks[0].endswith("and those of 260 more groups")
    assert remarks[41] == "260 smaller groups are in report/report.json"
    assert ["by_group" in row_of(report) for report in of_files] == [False, True]


def test_summary_and_page_are_cut_to_the_largest_groups(made: Path) -> None:
    summary = summary_of_filter(collect(made))
    assert "The 40 largest of 300; `report.json` has all." in summary
    assert "; and those of 260 more |" in summary
    assert list(filter_facts(made).by_group)[3:6] == ["3", "4", "5"]
    page = write_report(made).page.read_text()
    assert "The 40 largest of" in page
    assert len(json.loads((made / "report/report.json").read_bytes())["filtered"]["by_group"]) == N_GROUPS


def test_problems_with_many_limits_are_cut_to_the_first(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    for path in (out / "filtered/.provenance").glob("*.json"):
        stated = json.loads(path.read_bytes())
        stated["request"]["keep"][0]["percentile"] = 0
        path.write_text(json.dumps(stated))
    (problems,) = [
        check.problems for check in verify(VerifyRequest(out), n_workers=1).wrong if check.path == "filtered"
    ]
    assert len(problems) == 41
    assert problems[0].startswith("good: percentile 0 for '0' is not ")
    assert problems[40] == "260 more limits like these; filter again"


def test_limits_of_one_file_differ_from_those_of_the_others(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    path = out / "filtered/.provenance/y.jsonl.json"
    stated = json.loads(path.read_bytes())
    stated["request"]["cuts"][0]["2"] = 1
    path.write_text(json.dumps(stated))
    (problems,) = [
        check.problems for check in verify(VerifyRequest(out), n_workers=1).wrong if check.path == "filtered"
    ]
    assert re.fullmatch(
        r"settings differ: limit of good for '2' is \S+ and above \(rank \d+\) in 1 file \(x\), all that have the "
        r"score \(rank 1\) in 1 file \(y\); filter again",
        problems[0],
    )
