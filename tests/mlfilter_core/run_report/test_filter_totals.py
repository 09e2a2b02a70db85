import json
from pathlib import Path

import pytest

from mlfilter_core.run_report.collect import collect
from tests.pipeline_folder import NAMES, filter_corpus, filter_facts, make_pipeline


@pytest.fixture
def out(tmp_path: Path, tiny_model: Path) -> Path:
    return make_pipeline(tmp_path, tiny_model)


def records(out: Path, folder: str) -> list[dict[str, float]]:
    return [json.loads(line) for name in NAMES for line in (out / folder / f"{name}.jsonl").read_text().splitlines()]


def test_sums_are_those_of_the_documents(out: Path) -> None:
    found, kept, dropped = filter_facts(out), records(out, "filtered"), records(out, "dropped")
    assert found.counts["kept"] == len(kept) and found.counts["documents"] == len(kept) + len(dropped) == 90
    for group in ("de", "en"):
        assert found.by_group[group]["kept"] == sum(each["language"] == group for each in kept)
        limit = found.limits["good"][group]
        assert limit is not None
        assert min(each["score_good"] for each in kept if each["language"] == group) >= limit - 1e-6
    assert list(found.by_group) == ["de", "en"]  # the largest first
    assert found.asked == {"good": "percentile 60", "fine": "percentile 20"}
    assert (found.needed, found.per, found.files) == (2, "language", 3)


def test_a_threshold_above_all_scores_keeps_nothing_and_is_shown_as_it_is(out: Path) -> None:
    filter_corpus(out, overwrite=True, keep={"scores": {"good": {"threshold": 1e6}}})
    found = filter_facts(out)
    assert (found.counts["kept"], found.limits, found.limits_as_text) == (
        *(0, {"good": {"": 1e6}}, {"good": {"": "1e+06 and above"}}),
    )


def test_files_with_different_limits_are_said_to_be(out: Path) -> None:
    path = out / "filtered/.provenance/y.jsonl.json"
    made = json.loads(path.read_bytes())
    made["request"]["cuts"][0]["de"] += 1
    path.write_text(json.dumps(made))
    assert any("filtered files have different limits" in notice for notice in collect(out).notices)
