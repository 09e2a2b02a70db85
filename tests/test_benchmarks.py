"""The benchmark that needs a GPU still runs; its figures are not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    command = [sys.executable, "benchmarks/embed_gpu.py", *arguments]
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
