"""kill -9 of whole cluster runs, once in each step: in the end, the same bytes as of an undisturbed run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.faults.conftest import END_S, REPOSITORY, TEST_S
from tests.flows.commands.processes import api_variables
from tests.mlfilter_core.clustering.topics import write_topics

pytestmark = [pytest.mark.timeout(TEST_S), pytest.mark.usefixtures("api")]

# Python imports it in each process of a run. The first file of a name that appears kills all of them.
KILLER = """
import os, signal

moment, _, name = os.environ["KILL"].partition(" ")
group, replace = os.getpgid(0), os.replace

def killing(source, target, **options):
    is_the_one = os.path.basename(target) == name
    if is_the_one and moment == "before":
        os.killpg(group, signal.SIGKILL)
    replace(source, target, **options)
    if is_the_one:
        os.killpg(group, signal.SIGKILL)

if name:
    os.replace = killing
"""


def run(job: Path, folder: Path, kill: str = "") -> int:
    """Returns the exit status of a run that is killed before or after a file of a name gets this name."""
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(folder / "said.log", "ab") as said:
        process = subprocess.Popen(
            [sys.executable, "flows/cluster.py", "--config", str(job)],
            cwd=REPOSITORY,
            env={**os.environ, **api_variables(), "PYTHONPATH": paths, "KILL": kill},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return process.wait(END_S)


def content(out: Path) -> dict[str, bytes]:
    paths = (path for path in out.rglob("*") if path.suffix in (".parquet", ".safetensors", ".jsonl", ".npz", ".part"))
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in paths
        if not {"logs", "report"} & {*path.relative_to(out).parts}
    }


def test_runs_that_are_killed_in_each_step_make_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    for seed, name in enumerate("xyz"):
        write_topics(tmp_path / f"embeddings/{name}.h5", np.arange(2000) % 3, seed)
    jobs = {}
    for name in ("killed", "undisturbed"):
        params = {"embeddings_directory": str(tmp_path / "embeddings"), "output_dir": str(tmp_path / name),
                  "n_clusters": 5, "device": "cpu"}  # fmt: skip
        jobs[name] = tmp_path / f"{name}.yaml"
        jobs[name].write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": 2}, "files_per_task": 1}))
    moments = (
        *("before y.npz", "before clusters.safetensors", "after clusters.safetensors"),
        *("before y.parquet", "before clusters.jsonl"),
    )
    said = tmp_path / "said.log"
    for moment in moments:
        assert run(jobs["killed"], tmp_path, moment) == -signal.SIGKILL, f"{moment}: {said.read_text()}"
    assert run(jobs["killed"], tmp_path) == 0, said.read_text()
    assert run(jobs["undisturbed"], tmp_path) == 0, said.read_text()
    found, expected = content(tmp_path / "killed"), content(tmp_path / "undisturbed")
    assert sorted(expected) == [
        *("clusters.jsonl", "clusters.safetensors"),
        *(f"clusters/{name}.parquet" for name in "xyz"),
    ]
    assert found == expected
    assert not (tmp_path / "killed/clusters/.sample").exists()
