"""Turns Slurm settings into the script of a job that runs workers."""

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

# A worker that cannot reach the scheduler for this long ends, and its job with it.
DEATH_TIMEOUT_S = 60
# Workers stop this share of the time limit before the job ends, within these bounds: Dask gives a task 30 s to end by
# itself, and workers start some seconds after their job. Each worker stops up to twice as early, at random: jobs
# that started together then end at different times.
MARGIN = 0.05
MIN_MARGIN_S = 40
MAX_MARGIN_S = 600
MIN_LIFETIME_S = 20
LIFETIME_VARIABLE = "MLFILTER_LIFETIME_S"
# The system kills a job that uses too much memory, with all its workers. Dask kills only the one worker, shortly
# before. Its other measures concern data that stays in memory, and none does.
MEMORY_SETTINGS = {f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}": "False" for name in ("TARGET", "SPILL", "PAUSE")}
# Options whose values are used here, even if they are left out of the job's script.
NEEDED = {"time", "cpus-per-task", "output", "job-name"}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)B?", re.IGNORECASE)
KIBIBYTES = {"K": 1, "": 1 << 10, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30}


@dataclass(frozen=True)
class SlurmJob:
    """What each job of a run requests from Slurm, and runs.

    Attributes:
        options: Options of sbatch, by long name; the value of a flag is empty.
        n_workers: Number of worker processes in the job.
        arguments: Arguments of `dask_jobqueue.SLURMCluster`.
    """

    options: dict[str, str]
    n_workers: int
    arguments: dict[str, Any]


def slurm_job(settings: SlurmSettings, one_per_core: bool, device: str, logs: Path) -> SlurmJob:
    """Returns the job that the settings describe.

    Args:
        settings: Slurm settings of the job file.
        one_per_core: Whether a job without GPUs runs one worker per core, or one in all.
        device: Device of the pipeline's job. A job with GPUs runs one worker per GPU, unless this is `cpu`.
        logs: Folder of the run's logs.
    """
    options = sbatch_options(settings, logs)
    left_out = settings.left_out_options()
    n_cores, n_gpus = int(options["cpus-per-task"]), _n_gpus(options)
    n_workers = workers_per_job(settings, one_per_core, device)
    prologue = _prologue(settings, options, max(1, n_cores // n_workers), logs)
    if n_gpus > 1 and shares_gpus(device):
        prologue.append(f'export {GPUS_VARIABLE}="$CUDA_VISIBLE_DEVICES"')
    memory_kib = _memory_kib(options)
    default = "python" if settings.condaenv or settings.venv_path else shlex.quote(sys.executable)
    python = (
        f"{settings.python or default} -P"  # not from the working folder, which may have a package `flows` of its own
    )
    if settings.srun_args:
        srun = {"ntasks": "1", "cpus-per-task": str(n_cores), **settings.srun_options()}
        python = " ".join(["srun", *_written(srun), python])
    return SlurmJob(
        options,
        n_workers,
        {
            # A worker runs one task at a time; the other threads are the encoder's.
            "cores": n_workers,
            "processes": n_workers,
            "memory": f"{memory_kib or 1} KiB",
            "job_name": options["job-name"],
            "python": python,
            "interface": settings.interface,
            "death_timeout": DEATH_TIMEOUT_S,
            "job_directives_skip": ["#SBATCH"],  # dask-jobqueue's own, which cover few options
            "job_extra_directives": _written({name: options[name] for name in options if name not in left_out}),
            "job_script_prologue": prologue,
            "worker_extra_args": [
                *("--preload", PRELOAD),
                *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),  # by default it listens on all addresses
                *("--lifetime", f"${{{LIFETIME_VARIABLE}}}s"),
                *([] if memory_kib else ["--memory-limit", "0"]),
            ],
        },
    )


def workers_per_job(settings: SlurmSettings, one_per_core: bool, device: str) -> int:
    """Returns the number of worker processes in each job; arguments as of `slurm_job`."""
    options = sbatch_options(settings, Path())
    n_gpus = _n_gpus(options)
    return n_gpus if n_gpus and device != "cpu" else int(options["cpus-per-task"]) if one_per_core else 1


def sbatch_options(settings: SlurmSettings, logs: Path) -> dict[str, str]:
    """Returns the options of sbatch by long name; those in `sbatch_args` override the fields or leave them out."""
    folder = settings.slurm_logs_folder or logs / "jobs"
    options = {
        "job-name": settings.job_name,
        "ntasks": "1",
        "cpus-per-task": str(settings.cpus_per_task),
        "time": settings.time,
        "output": settings.output or str(folder.absolute() / "%x-%j.log"),
        "open-mode": "append",  # otherwise a requeued job overwrites its log
        "requeue" if settings.requeue else "no-requeue": "",
    }
    memory_gb = settings.mem_per_cpu_gb
    optional = {
        "mem-per-cpu": None if memory_gb is None else f"{math.ceil(memory_gb * 1024)}M",
        "partition": settings.partition,
        "gpus-per-task": settings.gpus_per_task,
        "qos": settings.qos,
        "account": settings.account,
        "error": settings.error,
        "mail-user": settings.mail_user,
        "mail-type": settings.mail_type if settings.mail_user else None,
    }
    options |= {name: str(value) for name, value in optional.items() if value}
    if settings.depends_job_id:
        kind = "afterany" if settings.run_on_dependency_fail else "afterok"
        options["dependency"] = f"{kind}:{settings.depends_job_id}"
    own = settings.sbatch_options()
    if own.keys() & {"mem", "mem-per-gpu"}:
        options.pop("mem-per-cpu", None)
    unasked = settings.left_out_options() - NEEDED
    return {**{name: value for name, value in options.items() if name not in unasked}, **own}


def lifetime_s(time: str) -> tuple[int, int]:
    """Returns the longest lifetime of a worker in a job with this time limit, and how much shorter it may be.

    Args:
        time: Time limit as sbatch takes it: minutes, minutes:seconds or hours:minutes:seconds; days- before hours.
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
    """Returns the lines of the job's script that run before the worker starts."""
    environment = {**worker_environment(n_threads, logs / "dask"), **MEMORY_SETTINGS}
    # sbatch passes all of the flow's variables to a job, including passwords of Prefect's server and database.
    lines = ['unset "${!PREFECT_@}"']
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    # torch's compiler writes many small files, with locks: on the node's own disk, shared by all jobs there.
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
    # $SECONDS is the run time of the script, $RANDOM is below 32768.
    lines.append(f"{LIFETIME_VARIABLE}=$(({longest} - SECONDS - RANDOM * {spread} / 32768))")
    return lines


def _n_gpus(options: dict[str, str]) -> int:
    """Returns the number of GPUs in the options: four for `gpu:4`, `gpu:a100:4` and `4`, one for `gpu`."""
    asked = [options[name] for name in ("gpus-per-task", "gpus-per-node", "gpus") if name in options]
    asked += [part for part in options.get("gres", "").split(",") if part.split(":")[0] == "gpu"]
    for value in asked:
        count = value.split("(")[0].rpartition(":")[2]
        return int(count) if count.isdigit() else 1
    return 0


def _memory_kib(options: dict[str, str]) -> int | None:
    """Returns the memory of a job, in KiB; None if the options do not set it."""
    value = options.get("mem-per-cpu") or options.get("mem")
    match = SIZE.fullmatch(value or "")
    if match is None:
        return None
    n_shares = int(options["cpus-per-task"]) if "mem-per-cpu" in options else 1
    return int(float(match[1]) * KIBIBYTES[match[2].upper()] * n_shares) or None  # --mem=0 is the whole node


def _written(options: dict[str, str]) -> list[str]:
    """Returns options as on a command line: `--name=value`, `--flag`, `-x value`."""
    return [
        f"-{name} {value}".rstrip() if len(name) == 1 else f"--{name}={value}" if value else f"--{name}"
        for name, value in options.items()
    ]
