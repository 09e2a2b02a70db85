"""Benchmarks still run. Speeds are not tested; differences from sentence-transformers are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, within

# Some take minutes, and more where other tests run beside them.
pytestmark = pytest.mark.timeout(2400)

TINY = ("--device", "cpu", "--tiny", "--documents", "128", "--rounds", "1", "--threads", "1")


def run(*arguments: str, script: str = "embed_gpu.py", first_on_path: Path = REPOSITORY) -> str:
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    python_path = os.pathsep.join([str(first_on_path), str(REPOSITORY)])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": python_path}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpu_benchmark_says_where_there_is_no_gpu() -> None:
    assert run() == "There is no CUDA GPU on this machine: nothing is measured.\n"


def test_the_gpu_benchmark_needs_nothing_but_the_encoders_libraries(tmp_path: Path) -> None:
    """It runs on every kind of encoder where the libraries of flows and files cannot be imported."""
    absent = ("prefect", "prefect_dask", "dask", "distributed", "dask_jobqueue", "pydantic", "orjson", "rich")
    blocked = tmp_path / "sitecustomize.py"  # Python imports it as it starts
    blocked.write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\nprint('blocked')\n")
    rows = ("minilm_512", "modernbert_base_8192", "qwen3_600m_8192")
    figures_file = tmp_path / "figures.json"
    output = run(*TINY, "--minutes", "60", "--rows", *rows, "--json", str(figures_file), first_on_path=tmp_path)
    assert output.startswith("blocked\n")
    figures = json.loads(figures_file.read_text())
    for row in rows:
        assert figures[f"{row}_lowest_cosine_padded"] > 0.99
        assert figures[f"{row}_tokens_per_s"] > 0
        assert figures[f"{row}_vs_sentence_transformers_padded"] > 0
        assert "unpadded attention" in figures[f"{row}_encoder"]
        assert "FlashAttention2" in figures["not_measured"][f"{row}_vs_sentence_transformers_unpadded"]
    assert figures["not_measured"]["gpu_tests_passed"] == "they need a GPU"


def test_the_gpu_benchmark_names_what_its_minutes_do_not_suffice_for(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    run(*TINY, "--minutes", "0.6", "--json", str(figures_file))
    figures = json.loads(figures_file.read_text())
    of_compiled = [f"modernbert_base_8192_compiled_{name}" for name in ("tokens_per_s", "vs_uncompiled")]
    for name in of_compiled:  # compiling takes longer than the minutes
        assert re.fullmatch(r"its \d+ s were over", figures["not_measured"][name])
    for row in ("xlm_roberta_base_512", "modernbert_base_512", "modernbert_base_8192", "qwen3_600m_8192", "minilm_512"):
        for name in ("load_s", "tokens_per_s", "vs_sentence_transformers_padded", "matmul_tflop_per_s"):
            assert (f"{row}_{name}" in figures) != (f"{row}_{name}" in figures["not_measured"])


def test_a_killed_gpu_benchmark_leaves_what_it_has_measured(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    rows = ("--rows", "minilm_512", "modernbert_base_512")
    line = [sys.executable, "benchmarks/embed_gpu.py", *TINY, "--minutes", "4", *rows, "--json", str(figures_file)]
    with subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as benchmark:
        within(200, lambda: figures_file.exists() and "minilm_512_load_s" in json.loads(figures_file.read_text()))
        benchmark.kill()
    figures = json.loads(figures_file.read_text())
    assert figures["minilm_512_load_s"] > 0
    assert figures["not_measured"]["modernbert_base_512_tokens_per_s"] == "not reached"


def test_an_encoder_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    """The first process ends as one that the kernel kills for its memory, the second fails in Python."""
    script = (
        "import os, sys, time; sys.path.insert(0, 'benchmarks')\n"
        "from apart import apart\n"
        "def killed():\n    yield 'first', 1.0\n    os.kill(os.getpid(), 9)\n"
        "def failing():\n    yield 'second', 2.0\n    raise ValueError('no kernel')\n"
        "def late():\n    yield 'third', 3.0\n    time.sleep(600)\n"
        "for work in (killed, failing, late):\n    print(list(apart(work, time.monotonic() + 2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[('first', 1.0), ('', Missing(reason='its process ended with exit status -9'))]",
        "[('second', 2.0), ('', Missing(reason='ValueError: no kernel'))]",
        "[('third', 3.0), ('', Missing(reason='its 2 s were over'))]",
    ]


def test_the_encoder_is_compared_with_its_peers_in_float32(tmp_path: Path) -> None:
    """The benchmark compares the embeddings before it times them."""
    figures_file = tmp_path / "figures.json"
    size = ("--documents", "4", "--rounds", "1", "--no-memory", "--no-flow", "--no-bfloat16")
    run(*size, "--json", str(figures_file), script="embed_cpu.py")
    figures = json.loads(figures_file.read_text())
    peers = ("fp32_vs_sentence_transformers", "fp32_vs_openvino", "fp32_vs_own_pytorch", "fp32_vs_predecessor")
    assert all(figures[name] > 0 for name in peers)
    assert not any(name.startswith("bf16") for name in figures)


def test_the_whole_way_keeps_the_documents_that_a_plain_script_keeps(tmp_path: Path) -> None:
    """The benchmark asserts it."""
    figures_file = tmp_path / "figures.json"
    # Few documents: a processor without bfloat16 takes far longer in it.
    size = ("--documents", "6", "--rounds", "1", "--threads", "1", "--no-flow")
    run(*size, "--json", str(figures_file), script="pipeline.py")
    figures = json.loads(figures_file.read_text())
    shares = [figures[f"fp32_{step}_share"] for step in ("embed", "annotate", "survey", "filter")]
    assert min(shares) > 0
    assert figures["bf16_vs_script"] > 0


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    """The benchmark compares them before it times them."""
    figures_file = tmp_path / "figures.json"
    size = ("--documents", "4", "--rounds", "1", "--kinds", "wordpiece", "bpe_with_bytes")
    run(*size, "--json", str(figures_file), script="tokenize_cpu.py")
    figures = json.loads(figures_file.read_text())
    for kind in ("wordpiece", "bpe_with_bytes"):
        assert all(figures[f"{kind}_{name}_512_tokens_per_s"] > 0 for name in ("english", "german", "chinese", "code"))


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


def test_a_run_on_many_workers_loses_no_file_when_some_are_killed(tmp_path: Path) -> None:
    size = ("--workers", "20", "--files", "400", "--seconds", "0.2", "--kills", "3")
    run(*size, "--json", str(tmp_path / "figures.json"), script="many_workers.py")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["files"], figures["lost_files"], figures["failed_files"]) == (400, 0, 0)
    assert figures["begun_again"] <= 3
    assert 0 < figures["busy_share"] <= 1


def test_what_a_million_files_cost_is_measured_on_real_runs(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    run("--files", "60", "--json", str(figures_file), script="scale.py")
    figures = json.loads(figures_file.read_text())
    assert 0 < figures["end_rows_seconds"] <= figures["end_seconds"]
    assert figures["rerun_seconds"] < figures["begin_seconds"], "nothing is started where all is finished"


def test_limits_are_those_of_numpy(tmp_path: Path) -> None:
    """The benchmark asserts it."""
    figures_file = tmp_path / "figures.json"
    size = ("--documents", "30000", "--documents-per-file", "100", "--of-numpy", "25000", "--small-files", "2")
    run(*size, "--json", str(figures_file), script="limits.py")
    figures = json.loads(figures_file.read_text())
    assert {f"{name}_peak_mb" for name in ("percentile", "per_group", "best_tokens", "numpy")} < figures.keys()


def test_the_deduplication_benchmark_compares_the_search_with_all_pairs(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    run("--documents", "2000", "--width", "32", "--json", str(figures_file), script="deduplicate_cpu.py")
    figures = json.loads(figures_file.read_text())
    assert figures["share_of_pairs_found"] > 0.9
    assert figures["duplicates"] > 20
    assert figures["all_pairs_vs_ours"] > 0
