"""The plan of a job, made on the machine where its flow would run; starts neither workers nor Prefect."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.config.execution import Job
from mlfilter_core.errors import ConfigError
from mlfilter_core.job_kinds import kind_of_job, load_any_job, load_entry_point
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Plan, PlannedWorkers
from mlfilter_core.wording import plural

# Recommended settings, and the options of sbatch that override each.
OVERRIDING_OPTIONS = {
    "time": ("time",),
    "cpus_per_task": ("cpus-per-task",),
    "mem_per_cpu_gb": ("mem-per-cpu", "mem", "mem-per-gpu"),
}


def plan_job(config: Path, overrides: Mapping[str, Any], seed: int = 0) -> Plan:
    """Returns what a job would do and need, with everything that is wrong with it.

    Args:
        config: YAML job file.
        overrides: Values that replace those of the file, by dotted name.
        seed: Seed of the documents that are drawn.
    """
    findings = Findings()
    try:
        job = load_any_job(config, overrides)
    except ConfigError as error:
        return Plan("unknown", [], [str(error)], [])
    if job.urls:
        url = next(iter(job.urls.values()))
        reason = f"{url}: a plan reads folders of this machine; copy a few files there, and plan for them"
        return Plan("unknown", [], [reason], [])
    workers = planned_workers(job, findings)
    _check_port(job, findings)
    return _plan(job, workers, seed, findings)


def _plan(job: Job, workers: PlannedWorkers, seed: int, findings: Findings) -> Plan:
    # Torch reads these once, when it is imported. With them, this process computes as one of the workers would.
    from flows.workers.local import QUIET, THREAD_VARIABLES

    n_threads = min(workers.n_cores, usable_cores())
    for name, value in {**dict.fromkeys(THREAD_VARIABLES, str(n_threads)), **QUIET}.items():
        os.environ.setdefault(name, value)
    kind = kind_of_job(job)
    if kind.plan is None:
        raise ConfigError(f"a {kind.flow} job has no plan; {kind.instead_of_plan}")
    plan: Plan = load_entry_point(kind.plan)(job, workers, seed, findings)
    return plan


def planned_workers(job: Job, findings: Findings) -> PlannedWorkers:
    """Returns the workers that a job would have, without asking Slurm.

    Args:
        job: The job.
        findings: Receives what would keep its workers from starting.
    """
    from flows.workers.local import shares_gpus
    from flows.workers.worker_count import one_per_usable_core, visible_gpus

    if not job.running_on_slurm:
        n_gpus = len(visible_gpus()) if shares_gpus(job.device) else 0
        default = one_per_usable_core() if job.one_per_core else max(1, n_gpus)
        n = job.local.workers if job.local.workers > 0 else default
        words = f"{plural(n, 'worker')} on this machine"
        return PlannedWorkers(n, 1, max(1, usable_cores() // n), n_gpus > 0, False, words)
    from flows.workers.slurm_job import slurm_job

    asked = slurm_job(job.slurm, job.one_per_core, job.device, job.logging_dir)
    if shutil.which("sbatch") is None:
        findings.add_warning("this machine has no sbatch: start the flow on a login node")
    if " " in str(job.logging_dir.absolute()):
        findings.add_problem(
            f"slurm_settings.logging_dir: {job.logging_dir} contains a space, which the script of a Slurm job cannot; "
            "give another folder"
        )
    cores = int(asked.options["cpus-per-task"])
    own = job.slurm.sbatch_options()
    n_jobs = job.slurm.max_jobs
    words = f"{plural(n_jobs, 'Slurm job')} of {plural(asked.n_workers, 'worker')}"
    return PlannedWorkers(
        n_jobs * asked.n_workers,
        asked.n_workers,
        max(1, cores // asked.n_workers),
        job.device != "cpu" and any(re.match("gpu", part) or "gpu:" in part for part in _asked_for(asked.options)),
        True,
        words,
        job.slurm.model_dump(mode="json", exclude_unset=True),
        tuple(field for field, options in OVERRIDING_OPTIONS.items() if own.keys() & set(options)),
    )


def _asked_for(options: Mapping[str, str]) -> list[str]:
    """Returns the parts of a job's options that may ask for GPUs."""
    names = [name for name, value in options.items() if name.startswith("gpus") and value != "0"]
    return [*names, *options.get("gres", "").split(",")]


def _check_port(job: Job, findings: Findings) -> None:
    if job.metrics_port is not None:
        from flows.watching.metrics import check_port

        with findings.noting():
            check_port(job.metrics_port)
