"""The demo as `make demo` runs it, compared with the outputs in the README and the tutorial."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs `make demo` with a separate output folder; returns that folder and the printed text."""
    checkout = tmp_path_factory.mktemp("demo")
    for name in ("Makefile", "deployments", "examples", "flows", "pyproject.toml", "requirements.lock"):
        (checkout / name).symlink_to(REPOSITORY / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    line = ["make", "demo", f"BIN={Path(sys.executable).parent}", "STAMP="]  # with the installed packages
    done = subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return checkout / "outputs" / "example", done.stdout


def test_the_demo_prints_what_the_tutorial_shows(demo: tuple[Path, str]) -> None:
    _, printed = demo
    shown = "".join(re.findall(r"```text\n(.*?)```", TUTORIAL, re.DOTALL))
    for name in ("de/wissen.jsonl.gz", "en/forum.jsonl", "en/lessons.jsonl", "en/shop.jsonl"):
        assert row(printed, name)[:7] == row(shown, name)[:7]
    for name in ("de/wissen.h5", "en/forum.h5", "en/lessons.h5", "en/shop.h5"):
        assert row(printed, name)[:3] == row(shown, name)[:3]
    assert "results: outputs/example/annotated_data" in printed
    documents, expected = (
        [json.loads(line) for line in text.splitlines() if line.startswith("  {")] for text in (printed, shown)
    )
    assert len(documents) == len(expected) == 3
    for document, other in zip(documents, expected, strict=True):
        assert document == {
            # The heads are trained here: embeddings that differ in their last digits may end training an epoch later.
            name: pytest.approx(value, abs=0.1) if name.startswith("score_") else value
            for name, value in other.items()
        }


def test_every_line_of_the_example_corpus_is_accounted_for(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    (log,) = (folder / "logs").glob("embed-*/files.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(row["lines"] for row in rows) == 60
    assert all(row["lines"] == row["documents"] + row["rejected"] + row["blank"] for row in rows)
    rejected = (folder / "rejected" / "en" / "forum.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in rejected] == ["not_json", "missing_key"]
    annotated = [path.read_text() for path in sorted((folder / "annotated_data").rglob("*.jsonl"))]
    assert sum(text.count("\n") for text in annotated) == 58


def test_the_best_documents_of_each_language_are_kept(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    for name in ("de/wissen.jsonl", "en/forum.jsonl", "en/lessons.jsonl", "en/shop.jsonl"):
        filtered, shown = printed[printed.index("filter: ") :], TUTORIAL[TUTORIAL.index("filter: ") :]
        assert row(filtered, name)[:4] == row(shown, name)[:4] == row(README, name)[:4]
    assert "de: kept 3 of 10 documents, 30.0 %" in printed
    kept = [json.loads(line) for line in (folder / "filtered" / "de" / "wissen.jsonl").read_text().splitlines()]
    assert [document["language"] for document in kept] == ["de"] * 3
    assert min(document["score_education"] for document in kept) > 3


def test_the_topics_are_those_that_the_tutorial_shows(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    shown = TUTORIAL[TUTORIAL.index("## 4. Find topics") :]
    clustered = printed[printed.index("cluster: 4 files clustered") :]
    for name in ("de/wissen.h5", "en/forum.h5", "en/lessons.h5", "en/shop.h5"):
        assert row(clustered, name)[:5] == row(shown, name)
    listed = [json.loads(line) for line in (folder / "clusters.jsonl").read_text().splitlines()]
    for each in listed:
        assert f"{each['documents'] / 58:.1%}".replace("%", " %") + f"  {each['name']}\n" in shown


def test_the_copies_are_removed(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    shown = TUTORIAL[TUTORIAL.index("## 7. Remove near-duplicates") :]
    deduplicated = printed[printed.index("deduplicate: 4 files deduplicated") :]
    for name in ("de/wissen.h5", "en/forum.h5", "en/lessons.h5", "en/shop.h5"):
        assert row(deduplicated, name)[:7] == row(shown, name)
    tables = [pq.read_table(path).to_pylist() for path in (folder / "duplicates").rglob("*.parquet")]
    pairs = {
        (each["duplicate_of"], each["document_id"]): "equal texts"
        if each["cosine"] is None
        else f"{each['cosine']:.3f}"
        for table in tables
        for each in table
        if each["duplicate_of"] is not None
    }
    told = re.findall(r"^\| `(\S+)` \| `(\S+)` \| (.*?) \|", shown, re.MULTILINE)
    assert {(kept, copy): cosine for kept, copy, cosine in told} == pairs


def test_the_heads_are_trained_on_the_corpus_that_was_embedded(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    for name in ("education", "toxicity"):
        cells = row(printed, f"{name}.safetensors")
        assert cells[1:5] == row(TUTORIAL, f"{name}.safetensors")[1:5] == ["trained", "58", "48", "10"]
        told = json.loads((folder / "heads" / f"{name}.metrics.json").read_text())
        assert told["metrics_of_folds"]["pearson"] > 0.4  # on documents that the models had not seen


def test_the_scores_are_evaluated_on_documents_that_the_head_has_not_seen(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert evaluation["truth"]["documents"] == 10


def row(text: str, name: str) -> list[str]:
    """Returns the cells of the table's row that begins with a name."""
    return next(line.split() for line in text.splitlines() if line.strip().startswith(f"{name} "))
