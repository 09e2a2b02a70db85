import json
import shutil
from pathlib import Path

import pytest

from tests.pipeline_folder import NAMES, filter_corpus, filter_facts, make_pipeline


@pytest.fixture
def out(tmp_path: Path, tiny_model: Path) -> Path:
    return make_pipeline(tmp_path, tiny_model)


def test_examples_are_the_nearest_documents_on_both_sides(out: Path) -> None:
    found = filter_facts(out)
    lines = [
        json.loads(line)
        for folder in ("filtered", "dropped")
        for name in NAMES
        for line in (out / folder / f"{name}.jsonl").read_text().splitlines()
    ]
    for name, field in (("good", "score_good"), ("fine", "score_fine")):
        for group in ("de", "en"):
            limit = found.limits[name][group]
            assert limit is not None
            values = sorted(line[field] for line in lines if line["language"] == group)
            above, below = ([value for value in values if (value >= limit - 1e-6) == side] for side in (True, False))
            examples = [each for each in found.examples if (each.score, each.group) == (name, group)]
            assert [each.value for each in examples] == pytest.approx([*below[-2:], *above[:2]])
            assert [each.reaches for each in examples] == [False, False, True, True]


def test_examples_have_the_texts_of_their_sources(out: Path) -> None:
    texts = {
        record["id"]: record["text"]
        for name in NAMES
        for line in (out.parent / "corpus" / f"{name}.jsonl").read_text().splitlines()
        if "id" in line and (record := json.loads(line))
    }
    examples = filter_facts(out).examples
    assert len(examples) == 16
    assert {each.id: each.text for each in examples} == {each.id: texts[each.id] for each in examples}


def test_without_the_sources_examples_show_the_annotated_lines(out: Path) -> None:
    (out.parent / "corpus").rename(out.parent / "moved")
    examples = filter_facts(out).examples
    assert len(examples) == 16
    assert all(json.loads(each.text)["document_id"] == each.id for each in examples)


def test_examples_of_deduplicated_lines_are_these_lines(out: Path) -> None:
    for name in NAMES:  # as if the first five of each file were duplicates
        path = out / f"deduplicated/{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((out / f"annotated_data/{name}.jsonl").read_text().splitlines(True)[5:]))
    read = {"annotated_directory": out / "deduplicated", "embeddings_directory": None}
    filter_corpus(out, **read, keep={"scores": "good"}, overwrite=True)
    records = [
        json.loads(line) for name in NAMES for line in (out / f"deduplicated/{name}.jsonl").read_text().splitlines()
    ]
    scores = {record["document_id"]: record["score_good"] for record in records}
    assert len(scores) == 75
    examples = filter_facts(out).examples
    assert len(examples) == 4
    assert {each.id: each.value for each in examples} == pytest.approx({each.id: scores[each.id] for each in examples})


def test_without_annotations_and_surveys_there_are_no_examples(out: Path) -> None:
    shutil.rmtree(out / "annotated_data")
    assert len(filter_facts(out).examples) == 16  # of the sources
    shutil.rmtree(out / "filtered/.survey")
    found = filter_facts(out)
    assert (found.examples, found.counts["documents"]) == ([], 90)
