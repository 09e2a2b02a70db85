"""Some thousand inputs for each target of fuzz.py; `python -m tests.faults.fuzz` tries any number."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.campaign import SEED, amount, record

pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 alone")

ROOT = Path(__file__).parents[2]


def fuzz(target: str, n_inputs: int, crashes: Path) -> tuple[int, dict[str, Any]]:
    """Returns the exit status and the report."""
    command = [sys.executable, "-m", "tests.faults.fuzz", target, "--inputs", str(n_inputs), "--seed", str(SEED)]
    run = subprocess.run([*command, "--crashes", str(crashes)], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("target", ["reader", "parquet", "parquet_footer", "config", "embeddings", "checkpoint"])
def test_no_input_of_thousands_does_anything_unexpected(tmp_path: Path, target: str) -> None:
    n_inputs = amount(5000, 100_000)
    status, report = fuzz(target, n_inputs, tmp_path)
    assert report["crashes"] == 0, f"{report['files']}: {[path.read_text() for path in tmp_path.glob('*.txt')]}"
    assert status == 0
    assert report["inputs"] >= n_inputs
    assert report["covered"] > 50, "nothing is instrumented, so that nothing guides the choice of inputs"
    assert report["sound"] > 50, "inputs are so broken that what comes after the first bytes is never reached"
    figures = {name: report[name] for name in ("inputs", "crashes", "contained", "sound", "seed") if name in report}
    record(f"fuzz_{target}", **figures)


def test_an_exception_and_the_death_of_the_process_are_reported_with_their_inputs(tmp_path: Path) -> None:
    status, _ = fuzz("sham", 100, tmp_path)
    assert status == 1
    inputs = sorted(path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".txt")
    assert inputs == [b"die", b"raise"]
    (told,) = tmp_path.glob("KeyError-fuzz-*.txt")
    assert "KeyError: 'not an expected error'" in told.read_text()
