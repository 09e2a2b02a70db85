"""The demo as `make demo` runs it: what the README prints of it, and the example heads made again from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs the demo into a folder of its own; returns the folder and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = [
        *("--embed-config", "deployments/local/embed.yaml"),
        *("--annotate-config", "deployments/local/annotate.yaml"),
        *("--set-embed", f"params.output_dir={folder}"),
        *("--set-annotate", f"params.output_dir={folder}"),
        *("--set-annotate", f"params.embeddings_directory={folder}/embeddings"),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    line = [sys.executable, "flows/pipeline.py", *arguments]
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_demo_prints_what_the_readme_shows(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    shown = README.partition("```text\n")[2].partition("```")[0]
    for name in ("de/wissen.jsonl.gz", "en/forum.jsonl", "en/lessons.jsonl", "en/shop.jsonl"):
        assert row(printed, name)[:7] == row(shown, name)[:7]
    for name in ("de/wissen.h5", "en/forum.h5", "en/lessons.h5", "en/shop.h5"):
        assert row(printed, name)[:3] == row(shown, name)[:3]
    assert f"results: {folder}/annotated_data" in printed
    documents, expected = (
        [json.loads(line) for line in text.splitlines() if line.startswith("  {")] for text in (printed, shown)
    )
    assert len(documents) == len(expected) == 3
    for document, other in zip(documents, expected, strict=True):
        assert document == {
            name: pytest.approx(value, abs=1e-4) if name.startswith("score_") else value
            for name, value in other.items()
        }


def test_every_line_of_the_example_corpus_is_accounted_for(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    (log,) = (folder / "logs").glob("embed-*/files.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(row["lines"] for row in rows) == 54
    assert all(row["lines"] == row["documents"] + row["rejected"] + row["blank"] for row in rows)
    rejected = (folder / "rejected" / "en" / "forum.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in rejected] == ["not_json", "missing_key"]
    annotated = [path.read_text() for path in sorted((folder / "annotated_data").rglob("*.jsonl"))]
    assert sum(text.count("\n") for text in annotated) == 52


def test_the_example_heads_are_what_their_script_makes(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = demo
    script = [sys.executable, "examples/train_heads.py", "--embeddings", str(folder / "embeddings")]
    done = subprocess.run([*script, "--output", str(tmp_path)], cwd=REPOSITORY, check=True, capture_output=True)
    assert done.stdout.startswith(b"52 documents; education")
    made, kept = (load_file(path / "education.safetensors") for path in (tmp_path, REPOSITORY / "examples/heads"))
    assert made.keys() == kept.keys()
    for name in made:
        np.testing.assert_allclose(made[name], kept[name], atol=1e-3)
    # An MLP's training amplifies the last digits of another machine's embeddings; its scores agree all the same.
    inputs = torch.nn.functional.normalize(torch.randn(64, 384, generator=torch.Generator().manual_seed(0)))
    made_scores, kept_scores = (
        mlp_scores(path / "toxicity.pt", inputs) for path in (tmp_path, REPOSITORY / "examples/heads")
    )
    np.testing.assert_allclose(made_scores, kept_scores, atol=1e-2)


def mlp_scores(path: Path, inputs: torch.Tensor) -> torch.Tensor:
    state = torch.load(path, weights_only=True)
    hidden = torch.relu(inputs @ state["0.weight"].T + state["0.bias"])
    return hidden @ state["2.weight"].T + state["2.bias"]


def row(text: str, name: str) -> list[str]:
    """Returns the cells of the table's row that begins with a name."""
    return next(line.split() for line in text.splitlines() if line.strip().startswith(f"{name} "))
