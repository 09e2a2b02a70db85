"""Who may read what a run leaves: outputs and logs as the umask says, Prefect's records their owner alone."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.flows.commands.processes import REPOSITORY
from tests.flows.conftest import WriteJob

HEAD = {"hidden_dims": [], "label_key": "score", "max_epochs": 2}
# One of each kind of file: embeddings, rejected lines, heads, annotated and filtered documents, report, logs.
KINDS = {".h5", ".jsonl", ".safetensors", ".parquet", ".json", ".html", ".yaml", ".log"}


def write(path: Path, **params: Any) -> Path:
    path.write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": 1}}))
    return path


def modes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("umask", [0o027, 0o077], ids=oct)
def test_outputs_follow_the_umask_and_records_of_prefect_are_private(
    umask: int, embed_job: WriteJob, corpus: Path, tmp_path: Path
) -> None:
    with open(corpus / "b" / "y.jsonl", "a") as file:
        file.write("{broken\n")
    out = tmp_path / "out"
    inputs = {"embeddings_directory": str(out / "embeddings"), "output_dir": str(out)}
    jobs = {
        "embed": embed_job(save_labels=True, label_key="score", id_key="id"),
        "train": write(tmp_path / "train.yaml", **inputs, heads={"good": HEAD}),
        "annotate": write(
            tmp_path / "score.yaml",
            **inputs,
            regression_head_checkpoints={"good": str(out / "heads" / "good.safetensors")},
        ),
        "filter": write(
            tmp_path / "filter.yaml",
            annotated_directory=str(out / "annotated_data"),
            output_dir=str(out),
            output_format="parquet",
            keep={"scores": {"good": {"percentile": 50}}},
            write_dropped=True,
        ),
    }
    line = [sys.executable, "flows/pipeline.py"]
    for step, path in jobs.items():
        line += [f"--{step}-config", str(path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        line,
        cwd=REPOSITORY,
        env={**environment, "PREFECT_API_URL": "", "HOME": str(tmp_path)},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = modes(out)
    private = {path: mode for path, mode in found.items() if out / "logs" / "prefect" in path.parents}
    public = {path: mode for path, mode in found.items() if path not in private}
    assert {path.suffix for path in public if path.is_file()} >= KINDS
    assert {
        path: oct(mode) for path, mode in public.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    } == {}
    assert any(path.name == "prefect.db" for path in private)
    assert {path: oct(mode) for path, mode in private.items() if mode & 0o077} == {}
