"""Runs on a real Slurm of three nodes, one of which is bad."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow, task

from flows.running.fan_out import Outcome, fan_out
from flows.workers import slurm_queue as slurm_queue_module
from flows.workers.nodes import MAX_FAULTS
from flows.workers.slurm import slurm_workers
from mlfilter_core.config.execution import SlurmSettings
from tests.conftest import within
from tests.flows.dask_workers import Items
from tests.slurm import cluster

FOLDER = cluster.DEFAULT_FOLDER.with_name("mlfilter-slurm-nodes")
GOOD, BAD, OWN = cluster.node_names(3)
START_S = 300
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    """A cluster of three nodes; skips the test where Slurm cannot run."""
    reason = cluster.available()
    if reason is not None:
        pytest.skip(f"Slurm cannot run here: {reason}")
    cluster.down(FOLDER)
    variables = cluster.up(FOLDER, n_nodes=3)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield
    cluster.down(FOLDER)


def excluded_by_pending_jobs() -> list[str]:
    line = ["squeue", "--me", "--noheader", "--states=PENDING", "--format=%x"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("kills", "happened"),
    [
        (True, r"a worker died \((\d+) times: work-"),
        (False, r"a job ended before its workers connected \((\d+) times: Slurm job "),
    ],
    ids=["workers die", "jobs fail"],
)
def test_a_node_that_fails_three_times_is_excluded_with_those_of_the_user_and_all_tasks_succeed(
    kills: bool, happened: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_queue_module, "GRACE_S", 2)
    fails = f"until test -e {tmp_path}/begun; do sleep 0.2; done; exit 3"
    settings = SlurmSettings(
        **{"partition": "cpu", "cpus_per_task": 8, "mem_per_cpu_gb": 1, "time": "00:10:00", "interface": "lo"},
        **{"workers": 2, "sbatch_args": {"exclude": OWN}},  # each node has room for one job
        env_command=None if kills else f'if [ "$SLURMD_NODENAME" = {BAD} ]; then {fails}; fi',
    )

    def let_tasks_end_once_the_node_is_excluded() -> None:
        number = BAD.rpartition("-")[2]
        within(START_S, lambda: f"{GOOD}-[{number}-3]" in excluded_by_pending_jobs())
        (tmp_path / "may end").touch()

    @task  # pickled by value: jobs cannot import this module
    def work(item: str, folder: Path, bad_node: str) -> str:
        """Waits on a good node until it may end; kills its worker on the bad one."""
        node = os.environ["SLURMD_NODENAME"]
        while node == bad_node and not (folder / "begun").exists():
            time.sleep(0.2)
        if node == bad_node:
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "begun").touch()
        while not (folder / "may end").exists():
            time.sleep(0.2)
        return node

    waiting = threading.Thread(target=let_tasks_end_once_the_node_is_excluded)
    waiting.start()

    @flow(name="nodes", validate_parameters=False)
    def run() -> tuple[list[Outcome[str, str]], list[str]]:
        with slurm_workers(settings, one_per_core=False, device="cpu", n_tasks=2, logs=tmp_path / "logs") as workers:
            parameters = {"folder": tmp_path, "bad_node": BAD if kills else ""}
            return list(fan_out(workers, work, Items("ab"), parameters)), workers.remarks()

    outcomes, remarks = run()
    waiting.join()
    assert [outcome.result for outcome in outcomes] == [GOOD, GOOD], outcomes
    (remark,) = remarks
    found = re.match(f"node {BAD} is not used again in this run: {happened}", remark)
    assert found is not None, remark
    assert int(found[1]) >= MAX_FAULTS  # one more may come before the node is left out
