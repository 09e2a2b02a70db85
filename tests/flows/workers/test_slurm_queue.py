"""Answers of Slurm, printed by fake commands; test_slurm.py runs the real ones."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed.core import Status

from flows.workers.slurm_queue import (
    N_LAST_LINES,
    EndedJob,
    QueuedJob,
    SlurmCommandError,
    SubmittedJob,
    ended_job,
    queued_jobs,
)

Command = Callable[[str, str], None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Writes a shell script under the name of a command."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return write


def job(id_position: int = -1) -> SubmittedJob:
    return SubmittedJob("tcp://127.0.0.1:1", name="job-0", cores=1, memory="1 GB", id_position=id_position)


async def submit(job: SubmittedJob) -> None:
    await job


@pytest.mark.parametrize(
    ("printed", "id_position"),
    [
        ("Submitted batch job 17", -1),
        ("Submitted batch job 17 on cluster serial", -1),
        ("Hello 5\n\n17", -1),
        ("17", 0),
        ("17", -1),
        ("job 17 of 3 on 5", 1),
        ("job 17 of 3 on 5", -5),
    ],
)
def test_the_job_s_id_is_the_word_at_its_position(printed: str, id_position: int, command: Command) -> None:
    command("sbatch", f"echo '{printed}'")
    submitted = job(id_position)
    asyncio.run(submit(submitted))
    assert submitted.job_id == "17"
    assert asyncio.run(submitted.ended({})) is None  # squeue may not list it yet


@pytest.mark.parametrize(
    ("told", "was_listed", "age_s", "has_ended"),
    [
        ("echo JobId=17 JobState=COMPLETED ExitCode=0:0 StdErr=/a", False, 11, True),
        ("echo JobId=17 JobState=RUNNING ExitCode=0:0 StdErr=/a", True, 3600, False),  # squeue is wrong
        ("exit 1", True, 11, True),  # Slurm has forgotten it
        ("exit 1", False, 11, False),  # it may be on a cluster that was not asked
        ("exit 1", False, 601, True),
    ],
)
def test_a_job_that_the_queue_lacks_is_replaced_only_where_it_has_ended(
    told: str, was_listed: bool, age_s: float, has_ended: bool, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("sbatch", "echo Submitted batch job 17")
    command("scontrol", told)
    submitted = job()
    asyncio.run(submit(submitted))
    if was_listed:
        assert asyncio.run(submitted.ended({"17": QueuedJob(False, "None")})) is None
    now = time.monotonic()
    monkeypatch.setattr("flows.workers.slurm_queue.time.monotonic", lambda: now + age_s)
    assert (asyncio.run(submitted.ended({})) is not None) == has_ended


@pytest.mark.parametrize("id_position", [0, 4, -2, -5])
def test_a_word_that_is_no_id_is_named(id_position: int, command: Command) -> None:
    command("sbatch", "echo Submitted batch job 17")
    message = rf"word {id_position} of what sbatch printed is no job id; set (?s:.)*Submitted batch job 17"
    with pytest.raises(SlurmCommandError, match=message):
        asyncio.run(submit(job(id_position)))


def test_excluded_nodes_are_given_on_the_command_line_which_overrides_script_and_environment(
    command: Command, tmp_path: Path
) -> None:
    command("sbatch", f'echo "$1" > {tmp_path}/told; echo Submitted batch job 17')
    asyncio.run(submit(job()))
    assert "--exclude" not in (tmp_path / "told").read_text()
    asyncio.run(submit(SubmittedJob("tcp://127.0.0.1:1", name="b", cores=1, memory="1 GB", exclude="node[1-3],x")))
    assert (tmp_path / "told").read_text() == "--exclude=node[1-3],x\n"


@pytest.mark.parametrize(("reason", "is_temporary"), [("Socket timed out", True), ("Invalid account", False)])
def test_a_job_that_sbatch_refuses_fails_with_what_it_printed(
    reason: str, is_temporary: bool, command: Command
) -> None:
    command("sbatch", f"echo 'sbatch: error: {reason}' >&2; exit 1")
    refused = job()
    with pytest.raises(SlurmCommandError) as caught:
        asyncio.run(submit(refused))
    assert str(caught.value) == f"sbatch: error: {reason}"
    assert caught.value.is_temporary is is_temporary
    assert refused.status == Status.failed


def test_the_queue_is_what_is_pending_or_running(command: Command) -> None:
    command(
        "squeue", "echo '1|PD||PartitionConfig'; echo '2|PD||Resources'; echo '3|R|node7|None'; echo '4|CG|node7|None'"
    )
    queue = asyncio.run(queued_jobs())
    assert queue == {
        "1": QueuedJob(True, "PartitionConfig"),
        "2": QueuedJob(True, "Resources"),
        "3": QueuedJob(False, "None", "node7"),
    }
    assert [job.is_hopeless for job in queue.values()] == [True, False, False]
    command("squeue", "echo 'CLUSTER: serial'; echo '1|R|node7|None'; echo; echo 'CLUSTER: gpu'; echo '2|PD||Priority'")
    assert asyncio.run(queued_jobs()).keys() == {"1", "2"}
    command("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmCommandError, match=r"^Unable to contact slurm controller$"):
        asyncio.run(queued_jobs())


def test_an_ended_job_has_a_state_and_a_log(command: Command, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    command(
        "scontrol",
        f"echo 'JobId=7 JobName=a b JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0 NodeList=n5 StdErr={log}'",
    )
    ended = asyncio.run(ended_job("7"))
    assert ended is not None
    assert ended == EndedJob("FAILED, exit code 3:0", log, "n5")
    assert ended.is_fault
    assert "No such file" in ended.last_lines()
    log.write_text("")
    assert ended.last_lines() == "(empty)"
    log.write_text("\n".join(map(str, range(40))))
    assert ended.last_lines().splitlines() == [str(i) for i in range(40 - N_LAST_LINES, 40)]
    command("scontrol", "echo 'Invalid job id specified' >&2; exit 1")
    ended = asyncio.run(ended_job("7"))
    assert ended is not None and ended.state == "unknown" and not ended.is_fault
