"""Whether this machine has what a job needs: its device, folders that it can write to, and disk space."""

from pathlib import Path
from typing import Any

from mlfilter_core.compute.memory import usable_memory_bytes
from mlfilter_core.config.execution import Job
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.disk_space import check_would_be_writable, free_space
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import PlannedWorkers
from mlfilter_core.plan.worker_memory import WorkerMemory
from mlfilter_core.wording import rough_number, size, sizes_apart


def check_folders(job: Job, findings: Findings) -> None:
    """Notes which folders of a job's outputs and logs cannot be written to; creates none."""
    before = len(findings.problems)
    with findings.noting():
        check_would_be_writable(job.params.output_dir, "params.output_dir")
    if len(findings.problems) > before and job.logging_dir.is_relative_to(job.params.output_dir):
        return
    with findings.noting():
        check_would_be_writable(job.logging_dir, f"{job.settings_name}.logging_dir")


def device_to_measure(device: str, workers: PlannedWorkers, findings: Findings) -> str | None:
    """Returns the job's device, `cpu` where only the workers' machines may have it.

    Returns:
        None, with a problem, where the workers run here and this machine has no such device.
    """
    from mlfilter_core.compute.devices import pick_device

    try:
        pick_device(device)
    except ConfigError as error:
        if not workers.are_elsewhere:
            findings.add_problem(str(error))
            return None
        findings.add_warning(f"{error}; the Slurm nodes may have it; the measurements here are of the CPU")
        return "cpu"
    return device


def check_memory(memory: WorkerMemory, workers: PlannedWorkers, findings: Findings, *fields: str) -> None:
    """Warns where the workers of this machine may need more memory than they may use together.

    Args:
        memory: Memory of one worker.
        workers: The workers.
        findings: Receives the warning.
        fields: Job fields that lower the memory.
    """
    most, usable = workers.n * memory.n_bytes, usable_memory_bytes()
    if workers.are_elsewhere or most <= usable:
        return
    needed, given = sizes_apart(most, usable)
    findings.add_warning(
        f"{workers.words} may need up to {needed} of memory, and {given} can be used here; lower {' or '.join(fields)}"
    )


def check_room(folder: Path, needed: Estimate, n_files: int, findings: Findings) -> tuple[dict[str, Any], str]:
    """Compares what a job writes with what is free; returns the facts, and the same as text.

    Args:
        folder: Folder that is written to.
        needed: Bytes that are written.
        n_files: Number of files that are created.
        findings: Receives a problem where even the lower end is too much, a warning where the upper end is.
    """
    facts: dict[str, Any] = {"needed_bytes": needed.to_json(), "files_made": n_files}
    try:
        space = free_space(folder)
    except OSError as error:
        return facts, f"free space in {folder} is unknown ({error.strerror})"
    facts |= {"free_bytes": space.free_bytes, "free_files": space.free_files}
    fix = "make room, or give another params.output_dir"
    if needed.low > space.free_bytes:
        least, free = sizes_apart(needed.value, space.free_bytes)
        findings.add_problem(f"params.output_dir: {least} are needed, but {free} are free in {space.folder}; {fix}")
    elif needed.high > space.free_bytes:
        most, free = sizes_apart(needed.high, space.free_bytes)
        findings.add_warning(f"up to {most} may be needed, but {free} are free in {space.folder}; {fix}")
    if space.free_files is not None and n_files > space.free_files:
        findings.add_problem(
            f"params.output_dir: {n_files:,} files are created, but {space.folder} has room for "
            f"{rough_number(space.free_files)} (inodes); {fix}"
        )
    return facts, f"at most {size(needed.high)} needed, {size(space.free_bytes)} free"
