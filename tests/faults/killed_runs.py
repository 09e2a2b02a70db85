"""Whole runs, killed with -9 at a given moment, and what they leave."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.conftest import END_S, REPOSITORY
from tests.flows.commands.processes import api_variables

SUFFIXES = (".parquet", ".safetensors", ".jsonl", ".json", ".arrow", ".npz", ".part")

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


def run(flow: str, job: Path, folder: Path, kill: str = "") -> int:
    """Returns the exit status of a run of a flow that is killed before or after a file of a name gets this name."""
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(folder / "said.log", "ab") as said:
        process = subprocess.Popen(
            [sys.executable, f"flows/{flow}.py", "--config", str(job)],
            cwd=REPOSITORY,
            env={**os.environ, **api_variables(), "PYTHONPATH": paths, "KILL": kill},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return process.wait(END_S)


def content(out: Path) -> dict[str, bytes]:
    paths = (path for path in out.rglob("*") if path.suffix in SUFFIXES)
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in paths
        if not {"logs", "report"} & {*path.relative_to(out).parts}
    }


def run_killed_at(flow: str, job: Path, folder: Path, moments: Sequence[str]) -> None:
    """Runs a job once for each moment, at which it is killed, then to its end."""
    (folder / "sitecustomize.py").write_text(KILLER)
    said = folder / "said.log"
    for moment in moments:
        assert run(flow, job, folder, moment) == -signal.SIGKILL, f"{moment}: {said.read_text()}"
    assert run(flow, job, folder) == 0, said.read_text()
