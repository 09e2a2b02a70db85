"""Starts a Dask scheduler in the flow's process whose workers run in Slurm jobs."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import psutil
from dask_jobqueue import SLURMCluster

from flows.workers.certificate import security_of, write_certificate
from flows.workers.job_guard import job_guard
from flows.workers.local import SCHEDULER_SETTINGS
from flows.workers.open_files import allow_open_files
from flows.workers.slurm_job import lifetime_s, slurm_job
from flows.workers.slurm_queue import SubmittedJob
from flows.workers.slurm_workers import SlurmWorkers
from flows.workers.task_runner import WorkerTaskRunner
from mlfilter_core.config.execution import SlurmSettings
from mlfilter_core.errors import ConfigError

_log = logging.getLogger(__name__)

CLUSTERS_VARIABLE = "SLURM_CLUSTERS"  # what sbatch, squeue, scontrol and scancel take for --clusters


@contextmanager
def slurm_workers(
    settings: SlurmSettings, one_per_core: bool, device: str, n_tasks: int, logs: Path
) -> Iterator[SlurmWorkers]:
    """Starts a scheduler in this process, and workers in Slurm jobs as `tend` finds them needed.

    When the block ends, or this process is killed, the jobs are cancelled.

    Args:
        settings: Slurm settings of the job file.
        one_per_core: Whether a job without GPUs runs one worker per core, or one in all.
        device: Device of the pipeline's job.
        n_tasks: Number of tasks of the run.
        logs: Folder of the run's logs, which the compute nodes see as well.

    Raises:
        ConfigError: Slurm is not installed here, the settings are invalid, or this process may not open enough files.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if shutil.which("sbatch") is None:
        raise ConfigError("running_on_slurm: true, but sbatch is not installed here; start the flow on a login node")
    if " " in str(logs.absolute()):
        raise ConfigError(
            f"slurm_settings.logging_dir: {logs} contains a space, which dask-jobqueue cannot write to a job's script"
        )
    own_interface = settings.scheduler_interface or settings.interface
    present = psutil.net_if_addrs()
    if own_interface is not None and own_interface not in present:
        raise ConfigError(
            f"slurm_settings: this machine has no interface {own_interface}; it has {', '.join(present)}. Set "
            "scheduler_interface to the one by which the nodes reach this machine; see ip address"
        )
    job = slurm_job(settings, one_per_core, device, logs)
    allow_open_files(min(settings.max_jobs * job.n_workers, n_tasks + job.n_workers), are_elsewhere=True)
    Path(job.options["output"]).parent.mkdir(parents=True, exist_ok=True)
    folder = (logs / "dask").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if settings.security:
        write_certificate(folder)
    if settings.env_command:
        _log.info("env_command: each Slurm job first runs: %s", settings.env_command)
    if settings.python:
        _log.info("python: each Slurm job starts Python by: %s", settings.python)
    longest_s, _ = lifetime_s(job.options["time"])
    _log.info(
        "Slurm jobs of at most %s: each worker stops after %d minutes, and the next one resumes its file",
        job.options["time"],
        longest_s // 60,
    )
    try:
        # Without Dask's timeout for a run without workers: jobs may be pending for days.
        with _on_clusters(job.options.get("clusters")), job_guard() as guard, dask.config.set(SCHEDULER_SETTINGS):
            runner = WorkerTaskRunner(
                logs,
                cluster_class=SLURMCluster,
                cluster_kwargs={
                    **job.arguments,
                    "job_cls": SubmittedJob,
                    "security": security_of(folder) if settings.security else None,
                    "guard": guard,
                    "id_position": settings.job_id_position,
                    "scheduler_options": {"dashboard_address": "127.0.0.1:0", "interface": own_interface},
                },
            )
            with runner:
                workers = SlurmWorkers(runner, settings.max_jobs, job)
                try:
                    yield workers
                finally:
                    workers.leave()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _on_clusters(names: str | None) -> Iterator[None]:
    """Makes Slurm's commands ask other clusters, as the jobs' option names them; they know only their own otherwise."""
    before = os.environ.get(CLUSTERS_VARIABLE)
    if names is not None:
        os.environ[CLUSTERS_VARIABLE] = names
    try:
        yield
    finally:
        if names is not None:
            del os.environ[CLUSTERS_VARIABLE]
            if before is not None:
                os.environ[CLUSTERS_VARIABLE] = before


def job_script(settings: SlurmSettings, one_per_core: bool, device: str, logs: Path) -> str:
    """Returns the script of each job of a run, in which only the scheduler's address and the job's number are open."""
    security = security_of((logs / "dask").absolute()) if settings.security else None
    protocol = "tls" if security else "tcp"
    script: str = SubmittedJob(
        f"{protocol}://<address of the flow's machine>:<port>",
        name="job-<number>",
        protocol=f"{protocol}://" if security else None,
        security=security,
        **slurm_job(settings, one_per_core, device, logs).arguments,
    ).job_script()
    return script
