"""Which Slurm jobs suit an amount of work.

Knows nothing about Slurm beyond a time limit, memory, and a number of jobs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mlfilter_core.corpus.windows import WINDOW_BYTES
from mlfilter_core.plan.plan import PlannedWorkers
from mlfilter_core.plan.wording import in_bytes, in_time

# Arbitrary: an evening's run. More workers end earlier, and pay for their start as often.
WANTED_RUN_S = 4 * 3600
MIN_LIMIT_S, MAX_LIMIT_S = 1800, 24 * 3600  # most partitions allow a day; jobs are replaced in any case
MARGIN = 1.5  # other nodes are slower
START_S = 600  # of a job: Python, the encoder and its trials, from a busy file system
# As README § Speed, Memory: windows under way, and bytes that each of their lines may take.
WINDOWS, EXPANSION = 8, 5


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
        total_s: Seconds that one worker would take for all, at the upper end of its interval.
        largest_file_s: Of them for the largest file, which one worker does alone.
        n_files: To do.
        worker_bytes: Memory that a worker takes at most.
        why_bytes: How that was found.
    """

    total_s: float
    largest_file_s: float
    n_files: int
    worker_bytes: float
    why_bytes: str

    def seconds(self, n_workers: int) -> float:
        """Returns how long so many workers take."""
        return max(self.total_s / max(1, min(n_workers, self.n_files)), self.largest_file_s)


@dataclass(frozen=True)
class SlurmAdvice:
    """What `slurm_settings` should be.

    Attributes:
        settings: The fields.
        reasons: One for each that is advised, in words.
    """

    settings: Mapping[str, Any]
    reasons: Sequence[str]

    def to_yaml(self) -> str:
        """Returns the section of a job file."""
        settings = {name: _Time(value) if name == "time" else value for name, value in self.settings.items()}
        text: str = yaml.dump({"slurm_settings": settings}, Dumper=_Dumper, sort_keys=False)
        return text


class _Time(str):
    """Stands in quotes: YAML 1.1 reads 10:00:00 as a number."""


class _Dumper(yaml.SafeDumper):
    """Knows times."""


_Dumper.add_representer(_Time, lambda dumper, time: dumper.represent_scalar("tag:yaml.org,2002:str", time, style='"'))


def embedding_memory(peak_bytes: int, max_line_bytes: int) -> tuple[float, str]:
    """Returns the memory that an embedding worker takes at the very most, and how that was found."""
    windows = WINDOWS * EXPANSION * (WINDOW_BYTES + max_line_bytes)
    return peak_bytes + windows, f"{in_bytes(peak_bytes)} measured, {in_bytes(windows)} for the longest lines allowed"


def advise(work: Work, workers: PlannedWorkers) -> SlurmAdvice:
    """Returns the Slurm jobs that would do the work in about four hours.

    Args:
        work: What there is to do.
        workers: Say how a job is divided; fields that were given and are not advised are kept.
    """
    n_workers = max(1, min(math.ceil(work.total_s / WANTED_RUN_S), work.n_files))
    n_jobs = math.ceil(n_workers / workers.n_per_job)
    run_s = work.seconds(n_jobs * workers.n_per_job)
    limit_s = min(max(_rounded_up(MARGIN * run_s + START_S, MIN_LIMIT_S), MIN_LIMIT_S), MAX_LIMIT_S)
    n_cores = workers.n_cores * workers.n_per_job
    per_core_gb = math.ceil(2 * work.worker_bytes * workers.n_per_job / n_cores / 2**30) / 2
    advised: dict[str, Any] = {
        "workers": n_jobs,
        "time": f"{limit_s // 3600:02}:{limit_s % 3600 // 60:02}:00",
        "cpus_per_task": n_cores,
        "mem_per_cpu_gb": per_core_gb,
    }
    if workers.has_gpu and not workers.given:
        advised["gpus_per_task"] = workers.n_per_job
    advised = {name: value for name, value in advised.items() if name not in workers.overruled}
    jobs = f"{n_jobs} job{'s' if n_jobs > 1 else ''}"
    reasons = [
        f"workers: {jobs} end{'' if n_jobs > 1 else 's'} in {in_time(run_s)}, of the "
        f"{in_time(work.total_s)} that one worker takes"
        + (", as the largest file is one worker's" if run_s == work.largest_file_s and work.n_files > 1 else ""),
        f"time: {MARGIN} times that, and {in_time(START_S)} to start"
        + ("; jobs that reach their limit are replaced" if limit_s == MAX_LIMIT_S else ""),
        f"mem_per_cpu_gb: a worker takes {in_bytes(work.worker_bytes)} at most: {work.why_bytes}",
    ]
    if workers.overruled:
        reasons.append(f"sbatch_args overrules {', '.join(workers.overruled)}")
    return SlurmAdvice({**workers.given, **advised}, reasons)


def _rounded_up(seconds: float, step: int) -> int:
    return math.ceil(seconds / step) * step
