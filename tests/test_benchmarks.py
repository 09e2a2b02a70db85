"""Benchmarks still run. Speeds are not tested; differences from sentence-transformers are."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def run(*arguments: str, script: str = "embed_gpu.py") -> str:
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpu_benchmark_says_where_there_is_no_gpu() -> None:
    assert run() == "There is no CUDA GPU on this machine: nothing is measured.\n"


def test_the_gpu_benchmark_compares_equal_embeddings(tmp_path: Path) -> None:
    size = ("--documents", "4", "--rounds", "1", "--threads", "2", "--models", "minilm")
    run("--device", "cpu", *size, "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["minilm_tokens_per_s"] > 0
    assert figures["minilm_vs_sentence_transformers_padded"] > 0
    assert "unpadded attention" in figures["minilm encoder"]


def test_a_family_of_each_kind_gives_the_embeddings_of_sentence_transformers(tmp_path: Path) -> None:
    """One that counts padding, one that mixes neighbours, one with rotary positions, a causal one, one that caps."""
    families = ("roberta", "mobilebert", "modernbert", "qwen3", "gemma2")
    figures_file = tmp_path / "figures.json"
    run("--families", *families, "--lengths", "200", "--json", str(figures_file), script="fidelity.py")
    figures = json.loads(figures_file.read_text())
    for family in families:
        assert figures[f"{family}_float32_difference"] < 1e-5, family
        for text in ("200", "short"):
            ours, theirs = (
                figures[f"{family}_bfloat16_cosine_{text}{peer}"] for peer in ("", "_sentence_transformers")
            )
            assert 1 - ours < 2 * (1 - theirs) + 1e-4, (family, text)


def test_what_a_million_files_cost_is_measured_on_real_runs(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    run("--files", "60", "--json", str(figures_file), script="scale.py")
    figures = json.loads(figures_file.read_text())
    assert 0 < figures["end_rows_seconds"] <= figures["end_seconds"]
    assert figures["rerun_seconds"] < figures["begin_seconds"], "nothing is started where all is finished"
