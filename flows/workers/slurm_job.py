"""Slurm settings to the script of a job that holds workers."""

import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.workers.local import shares_gpus, worker_environment
from flows.workers.on_worker import GPUS_VARIABLE, PRELOAD
from mlfilter_core.config.execution import SlurmSettings

# A worker that does not reach the scheduler for so long ends, and with it its job.
DEATH_TIMEOUT_S = 60
# Workers leave this share of the time limit before the job's end, within these bounds: Dask gives a task 30 s
# to end by itself, and a job's first seconds go by before its workers start. Up to as much again is taken off
# at random, so that jobs which started together do not end together.
MARGIN = 0.05
MIN_MARGIN_S = 40
MAX_MARGIN_S = 600
MIN_LIFETIME_S = 20
LIFETIME_VARIABLE = "MLFILTER_LIFETIME_S"
# The system kills a job that holds too much memory, with all its workers. Dask kills the one worker, shortly before;
# its other measures are for data that stay in memory, of which there are none.
MEMORY_SETTINGS = {f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}": "False" for name in ("TARGET", "SPILL", "PAUSE")}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)B?", re.IGNORECASE)
KIBIBYTES = {"K": 1, "": 1 << 10, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30}


@dataclass(frozen=True)
class SlurmJob:
    """What each job of a run asks of Slurm, and does.

    Attributes:
        options: Of sbatch, by their long names; a flag's value is empty.
        n_workers: Worker processes in the job.
        arguments: Of `dask_jobqueue.SLURMCluster`.
    """

    options: dict[str, str]
    n_workers: int
    arguments: dict[str, Any]


def slurm_job(settings: SlurmSettings, one_per_core: bool, device: str, logs: Path) -> SlurmJob:
    """Returns the job that the settings describe.

    Args:
        settings: Of the job file.
        one_per_core: Whether a job without GPUs holds a worker for each core, or one.
        device: Of the pipeline's job. A job with GPUs holds a worker for each, unless `device` is another.
        logs: Folder of the run's logs.
    """
    options = sbatch_options(settings, logs)
    n_cores, n_gpus = int(options["cpus-per-task"]), _n_gpus(options)
    n_workers = n_gpus if n_gpus and device != "cpu" else n_cores if one_per_core else 1
    prologue = _prologue(settings, options, max(1, n_cores // n_workers), logs)
    if n_gpus > 1 and shares_gpus(device):
        prologue.append(f'export {GPUS_VARIABLE}="$CUDA_VISIBLE_DEVICES"')
    memory_kib = _memory_kib(options)
    python = "python" if settings.condaenv or settings.venv_path else shlex.quote(sys.executable)
    if settings.srun_args:
        srun = {"ntasks": "1", "cpus-per-task": str(n_cores), **settings.srun_options()}
        python = " ".join(["srun", *_written(srun), python])
    return SlurmJob(
        options,
        n_workers,
        {
            # A worker runs one task at a time; its threads are those of its encoder.
            "cores": n_workers,
            "processes": n_workers,
            "memory": f"{memory_kib or 1} KiB",
            "job_name": options["job-name"],
            "python": python,
            "interface": settings.interface,
            "death_timeout": DEATH_TIMEOUT_S,
            "job_directives_skip": ["#SBATCH"],  # those of dask-jobqueue, which knows a few options only
            "job_extra_directives": _written(options),
            "job_script_prologue": prologue,
            "worker_extra_args": [
                *("--preload", PRELOAD),
                *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),  # else it listens on all addresses
                *("--lifetime", f"${{{LIFETIME_VARIABLE}}}s"),
                *([] if memory_kib else ["--memory-limit", "0"]),
            ],
        },
    )


def sbatch_options(settings: SlurmSettings, logs: Path) -> dict[str, str]:
    """Returns the options of sbatch by their long names; those in `sbatch_args` overrule the fields."""
    folder = settings.slurm_logs_folder or logs / "jobs"
    options = {
        "job-name": settings.job_name,
        "ntasks": "1",
        "cpus-per-task": str(settings.cpus_per_task),
        "mem-per-cpu": f"{math.ceil(settings.mem_per_cpu_gb * 1024)}M",
        "time": settings.time,
        "output": settings.output or str(folder.absolute() / "%x-%j.log"),
        "open-mode": "append",  # a job that is requeued would otherwise overwrite what it wrote
        "requeue" if settings.requeue else "no-requeue": "",
    }
    if settings.partition is not None:
        options["partition"] = settings.partition
    if settings.gpus_per_task:
        options["gpus-per-task"] = str(settings.gpus_per_task)
    if settings.qos:
        options["qos"] = settings.qos
    if settings.account:
        options["account"] = settings.account
    if settings.error:
        options["error"] = settings.error
    if settings.mail_user:
        options |= {"mail-user": settings.mail_user, "mail-type": settings.mail_type}
    if settings.depends_job_id:
        kind = "afterany" if settings.run_on_dependency_fail else "afterok"
        options["dependency"] = f"{kind}:{settings.depends_job_id}"
    own = settings.sbatch_options()
    if own.keys() & {"mem", "mem-per-gpu"}:
        del options["mem-per-cpu"]
    return {**options, **own}


def lifetime_s(time: str) -> tuple[int, int]:
    """Returns how long workers live at most in jobs of a time limit, and how much less some live.

    Args:
        time: As sbatch takes it: minutes, minutes:seconds, hours:minutes:seconds, with days- before hours.
    """
    limit = _seconds(time)
    margin = min(max(MIN_MARGIN_S, int(MARGIN * limit)), MAX_MARGIN_S)
    longest = max(MIN_LIFETIME_S, limit - margin)
    return longest, min(margin, longest // 4)


def _seconds(time: str) -> int:
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _prologue(settings: SlurmSettings, options: dict[str, str], n_threads: int, logs: Path) -> list[str]:
    """Returns the lines of the job's script before the worker starts."""
    environment = {**worker_environment(n_threads, logs / "dask"), **MEMORY_SETTINGS}
    # sbatch gives a job all of the flow's variables, passwords of Prefect's server and database among them.
    lines = ['unset "${!PREFECT_@}"']
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    # What torch compiles is small files, locked: on the node's own disk, for all jobs there.
    lines.append('export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/torchinductor_$UID}"')
    if settings.randomize_start_duration:
        lines.append(f"sleep $((RANDOM % {settings.randomize_start_duration + 1}))")
    if settings.env_command:
        lines.append(settings.env_command)
    if settings.condaenv:
        lines.append(f'eval "$(conda shell.bash hook)" && conda activate {shlex.quote(settings.condaenv)} || exit 1')
    if settings.venv_path:
        path = Path(settings.venv_path).expanduser()
        script = path if path.name == "activate" else path / "bin" / "activate"
        lines.append(f"source {shlex.quote(str(script))} || exit 1")
    longest, spread = lifetime_s(options["time"])
    # $SECONDS is how long the script has run, $RANDOM is below 32768.
    lines.append(f"{LIFETIME_VARIABLE}=$(({longest} - SECONDS - RANDOM * {spread} / 32768))")
    return lines


def _n_gpus(options: dict[str, str]) -> int:
    """Returns how many GPUs the options ask for; `gpu:4`, `gpu:a100:4` and `4` are four, `gpu` is one."""
    asked = [options[name] for name in ("gpus-per-task", "gpus-per-node", "gpus") if name in options]
    asked += [part for part in options.get("gres", "").split(",") if part.split(":")[0] == "gpu"]
    for value in asked:
        count = value.split("(")[0].rpartition(":")[2]
        return int(count) if count.isdigit() else 1
    return 0


def _memory_kib(options: dict[str, str]) -> int | None:
    """Returns the memory of a job, in KiB; None where the options leave it open."""
    value = options.get("mem-per-cpu") or options.get("mem")
    match = SIZE.fullmatch(value or "")
    if match is None:
        return None
    n_shares = int(options["cpus-per-task"]) if "mem-per-cpu" in options else 1
    return int(float(match[1]) * KIBIBYTES[match[2].upper()] * n_shares) or None  # --mem=0 is the whole node


def _written(options: dict[str, str]) -> list[str]:
    """Returns options as they stand on a command line: `--name=value`, `--flag`, `-x value`."""
    return [
        f"-{name} {value}".rstrip() if len(name) == 1 else f"--{name}={value}" if value else f"--{name}"
        for name, value in options.items()
    ]
