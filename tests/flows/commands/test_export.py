"""The command that exports, as people type it."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlfilter_core.heads.head import Head
from tests.conftest import within
from tests.flows.commands.processes import HEAVY, ml_filter_here
from tests.mlfilter_core.conftest import heads  # noqa: F401
from tests.mlfilter_core.exporting.conftest import Inputs

ML_FILTER = [sys.executable, str(Path(sys.executable).parent / "ml_filter")]


@pytest.fixture
def inputs(tmp_path: Path, heads: list[Head]) -> Inputs:  # noqa: F811
    return Inputs(tmp_path / "out", heads)


def export_line(inputs: Inputs, output: Path, *options: str) -> list[str]:
    return ["export", "--embeddings", str(inputs.embeddings), "--output-directory", str(output), *options]


def test_help_loads_nothing_heavy() -> None:
    line = [sys.executable, "-X", "importtime", *ML_FILTER[1:], "export", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported.intersection(HEAVY)


def test_files_are_exported_by_processes_and_counted(inputs: Inputs, tmp_path: Path) -> None:
    vectors = inputs.embed("de/x", 5)
    inputs.embed("de/y", 5)
    inputs.annotate("de/x")
    options = ["--annotated", str(inputs.annotated), "--columns", "document_id, score_q*, embedding", "--workers", "2"]
    line = export_line(inputs, tmp_path / "e", *options)
    done = subprocess.run([*ML_FILTER, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert (
        f"failed: {inputs.embeddings}/de/y.h5: there is no {inputs.annotated}/de/y.jsonl with its scores" in done.stderr
    )
    assert "error: 1 file failed; the others are exported" in done.stderr
    assert "2 files: 1 exported, 1 failed; 5 documents; wrote " in done.stdout
    table = pq.read_table(tmp_path / "e/de/x.parquet")
    assert table.column_names == ["document_id", "score_quality", "embedding"]
    assert (np.array(table["embedding"].to_pylist(), np.float32) == vectors).all()
    inputs.annotate("de/y")
    done = subprocess.run([*ML_FILTER, *line], capture_output=True, text=True, check=True)
    assert "2 files: 1 skipped, 1 exported; 10 documents" in done.stdout


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (["--columns", "x"], 1, r'has no column "x"; it has: document_id, '),
        (["--columns", " , "], 1, "--columns names no column; give names or patterns"),
        (["--format", "csv"], 2, "'csv' is not one of 'parquet', 'npy'"),
        (["--glob-pattern", "*.jsonl"], 1, "no file below"),
        (["--duplicates", "gone/duplicates"], 1, "--duplicates: there is no gone/duplicates.json; give the folder"),
        (["--source-dir", "s3://bucket/x"], 1, "--source-dir: s3:/bucket/x is a URL, which is not taken here"),
    ],
)
def test_a_wrong_option_is_one_message(
    inputs: Inputs, tmp_path: Path, options: list[str], status: int, reason: str
) -> None:
    inputs.embed("x", 5)
    done = ml_filter_here(*export_line(inputs, tmp_path / "e", *options))
    assert done.exit_code == status
    assert reason in done.stderr
    assert not (tmp_path / "e").exists()


def test_an_export_that_is_killed_goes_on_and_leaves_nothing_half_written(inputs: Inputs, tmp_path: Path) -> None:
    n, rows = 24, 20_000
    inputs.embed("x00", rows)
    for i in range(1, n):
        os.link(inputs.embeddings / "x00.h5", inputs.embeddings / f"x{i:02}.h5")
    out = tmp_path / "e"
    line = [*ML_FILTER, *export_line(inputs, out, "--workers", "1", "--format", "npy")]
    process = subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL)
    within(120, lambda: list(out.glob("*.parquet")))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert 0 < len(finished) < n
    for path in finished:
        assert pq.read_metadata(path).num_rows == len(np.load(path.with_suffix(".npy"), mmap_mode="r")) == rows
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert f"{n} files: {len(finished)} skipped, {n - len(finished)} exported; " in done.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert len([path for path in out.rglob("*") if path.is_file()]) == 2 * n + 1  # and the settings


def test_a_disk_that_is_full_ends_the_export_with_the_name_of_the_file(inputs: Inputs, tmp_path: Path) -> None:
    inputs.embed("x", 20_000)

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    def run(**settings: Any) -> "subprocess.CompletedProcess[str]":
        line = [*ML_FILTER, *export_line(inputs, tmp_path / "e")]
        return subprocess.run(line, capture_output=True, text=True, check=False, **settings)

    done = run(preexec_fn=limit_files)
    assert done.returncode == 1
    assert done.stderr.endswith(f"error: [Errno 27] File too large: '{tmp_path}/e/x.parquet'\n"), done.stderr
    assert [path.name for path in (tmp_path / "e").rglob("*") if path.is_file()] == ["export.json"]
    assert run().returncode == 0
