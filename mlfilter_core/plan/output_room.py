"""Whether what a job writes has a place, and room there."""

from pathlib import Path
from typing import Any

from mlfilter_core.config.execution import Job
from mlfilter_core.files.disk_space import check_would_be_writable, free_space
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.wording import in_bytes, in_number


def check_folders(job: Job, findings: Findings) -> None:
    """Notes which folders of a job's outputs and logs could not be written to; makes none."""
    before = len(findings.problems)
    with findings.noting():
        check_would_be_writable(job.params.output_dir, "params.output_dir")
    if len(findings.problems) > before and job.logging_dir.is_relative_to(job.params.output_dir):
        return
    with findings.noting():
        check_would_be_writable(job.logging_dir, f"{job.settings_name}.logging_dir")


def check_room(folder: Path, needed: Estimate, n_files: int, findings: Findings) -> tuple[dict[str, Any], str]:
    """Compares what is needed with what is free; returns the facts, and what a person reads.

    Args:
        folder: That is written to.
        needed: Bytes.
        n_files: That are made.
        findings: Takes what is too much: a problem where even the lower end is, else a warning.
    """
    facts: dict[str, Any] = {"needed_bytes": needed.to_json(), "files_made": n_files}
    try:
        space = free_space(folder)
    except OSError as error:
        return facts, f"what is free in {folder} is not known ({error.strerror})"
    facts |= {"free_bytes": space.free_bytes, "free_files": space.free_files}
    place = f"{in_bytes(space.free_bytes)} are free in {space.folder}"
    mend = "make room, or give another params.output_dir"
    if needed.low > space.free_bytes:
        findings.add_problem(f"params.output_dir: {in_bytes(needed.value)} are needed, and {place}; {mend}")
    elif needed.high > space.free_bytes:
        findings.add_warning(f"up to {in_bytes(needed.high)} may be needed, and {place}; {mend}")
    if space.free_files is not None and n_files > space.free_files:
        findings.add_problem(
            f"params.output_dir: {n_files:,} files are made, and {space.folder} has room for "
            f"{in_number(space.free_files)} (inodes); {mend}"
        )
    return facts, f"{in_bytes(needed.high)} are needed at most, {in_bytes(space.free_bytes)} are free"
