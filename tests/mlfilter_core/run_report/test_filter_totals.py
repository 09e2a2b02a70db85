import json
import re
from pathlib import Path

import pytest

from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.page import render
from mlfilter_core.run_report.summaries import summary_of_filter
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
        for name in ("good", "fine"):
            own = [each[f"score_{name}"] for each in kept + dropped if each["language"] == group]
            assert found.mean_scores[name][group] == pytest.approx(sum(own) / len(own), rel=1e-6)
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


def test_tokens_by_weights_are_shown_with_the_groups_that_fall_short(out: Path) -> None:
    keep = {"scores": {"good": {"best_tokens": 900}}, "per": "language", "weights": {"de": 1, "en": 7, "fr": 1}}
    filter_corpus(out, overwrite=True, keep=keep)
    found = filter_facts(out)
    assert found.asked == {"good": "best 900 tokens by weights"}
    assert found.shares == {"good": {"de": 100, "en": 700}}
    tokens = found.by_group["en"]["tokens"]
    assert tokens == found.by_group["en"]["kept_tokens"] < 700
    assert 80 < found.by_group["de"]["kept_tokens"] <= 100
    short = f"kept whole, {700 - tokens} tokens short in all: en ({tokens} of 700)"
    assert f'<td class="number">{found.mean_scores["good"]["en"]:.3g}</td>' in render(collect(out))
    assert f"| {found.mean_scores['good']['en']:.3g} |" in summary_of_filter(collect(out))
    page, summary = render(collect(out)), summary_of_filter(collect(out))
    for text in (page, summary):
        assert short in text
        assert "good: 1 group with a weight but no document, 100 tokens short in all: fr (0 of 100)" in text
    assert "<td>best 900 tokens by weights</td>" in page
    assert '<th scope="col" class="number">tokens by good</th>' in page
    assert re.search(rf'<td class="number">{tokens}</td>\s*<td class="number">700</td>', page)
    assert not any("limits" in notice for notice in collect(out).notices)


def test_files_with_different_limits_are_said_to_be(out: Path) -> None:
    path = out / "filtered/.provenance/y.jsonl.json"
    made = json.loads(path.read_bytes())
    made["request"]["cuts"][0]["de"] += 1
    path.write_text(json.dumps(made))
    assert any("filtered files have different limits" in notice for notice in collect(out).notices)
