"""How long the workers of a job take, and which Slurm jobs suit that.

Knows nothing about Slurm beyond a time limit, memory, and a number of jobs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.files_to_do import Division
from mlfilter_core.plan.plan import PlannedWorkers, Section
from mlfilter_core.plan.worker_memory import WorkerMemory
from mlfilter_core.wording import plural, rough_duration

# Arbitrary: an evening's run. More workers finish earlier, and each of them takes time to start.
WANTED_RUN_S = 4 * 3600
MIN_LIMIT_S, MAX_LIMIT_S = 1800, 24 * 3600  # most partitions allow a day; jobs are replaced in any case
MARGIN = 1.5  # other nodes are slower
START_S = 600  # start of a job: Python, the encoder and its trials, from a busy file system


@dataclass(frozen=True)
class Work:
    """The work of the workers.

    Attributes:
        total_s: Seconds that one worker takes for all files.
        divided: Returns the tasks that a number of workers would share.
        memory: Memory of one worker.
        start_s: Seconds that each worker takes before its first file.
        cores: Cores that each worker needs at least.
    """

    total_s: Estimate
    divided: Callable[[int], Division]
    memory: WorkerMemory
    start_s: float = 0.0
    cores: int = 1

    def run_s(self, n_workers: int) -> Estimate:
        """Returns the seconds that this number of workers takes, without their start."""
        tasks = self.divided(n_workers)
        return self.total_s.times(max(1 / max(1, min(n_workers, tasks.n_tasks)), tasks.largest_share))


@dataclass(frozen=True)
class SlurmAdvice:
    """Recommended `slurm_settings`.

    Attributes:
        settings: The fields.
        reasons: Reason for each recommended field.
    """

    settings: Mapping[str, Any]
    reasons: Sequence[str]

    def to_yaml(self) -> str:
        """Returns the section of a job file, with the reasons as comments."""
        settings = {name: _Time(value) if name == "time" else value for name, value in self.settings.items()}
        section = yaml.dump({"slurm_settings": settings}, Dumper=_Dumper, sort_keys=False)
        return section + "".join(f"# {reason}\n" for reason in self.reasons)


class _Time(str):
    """A time that is quoted: YAML 1.1 reads 10:00:00 as a number."""


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes times."""


_Dumper.add_representer(_Time, lambda dumper, time: dumper.represent_scalar("tag:yaml.org,2002:str", time, style='"'))


def speed_section(
    measured: Mapping[str, Any], in_words: Sequence[tuple[str, str]], work: Work, workers: PlannedWorkers
) -> tuple[Section, str]:
    """Returns how long a job takes, and the `slurm_settings` that suit it, as YAML.

    Args:
        measured: Facts about the speed of this machine.
        in_words: The same as lines of the section.
        work: Work of the workers, at that speed.
        workers: Workers that the job asks for.
    """
    run_s = work.run_s(workers.n).plus(work.start_s)
    advice = advise(work, workers)
    facts = {
        **measured,
        "workers": workers.n,
        "run_seconds": run_s.to_json(),
        "recommended": dict(advice.settings),
        "reasons": list(advice.reasons),
    }
    lines = [
        *in_words,
        ("memory", str(work.memory)),
        ("time", f"{run_s.words(rough_duration)} with {workers.words}, at the speed measured here"),
    ]
    return Section("speed", facts, lines), advice.to_yaml()


def advise(work: Work, workers: PlannedWorkers) -> SlurmAdvice:
    """Returns the Slurm jobs that would do the work in about four hours.

    Args:
        work: Work of the workers; the upper end of its interval counts.
        workers: Division of a job; given fields are kept unless others are recommended.
    """
    total_s = work.total_s.high
    n_wanted = max(1, math.ceil(total_s / WANTED_RUN_S))
    n_jobs = math.ceil(min(n_wanted, work.divided(n_wanted).n_tasks) / workers.n_per_job)
    tasks = work.divided(n_jobs * workers.n_per_job)
    run_s = work.run_s(n_jobs * workers.n_per_job).high
    limit_s = min(max(_rounded_up(MARGIN * run_s + START_S, MIN_LIMIT_S), MIN_LIMIT_S), MAX_LIMIT_S)
    n_cores = max(workers.n_cores, work.cores) * workers.n_per_job
    advised: dict[str, Any] = {
        "workers": n_jobs,
        "time": f"{limit_s // 3600:02}:{limit_s % 3600 // 60:02}:00",
        "cpus_per_task": n_cores,
        "mem_per_cpu_gb": math.ceil(2 * work.memory.n_bytes * workers.n_per_job / n_cores / 2**30) / 2,
    }
    if workers.has_gpu and not workers.given:
        advised["gpus_per_task"] = workers.n_per_job
    advised = {name: value for name, value in advised.items() if name not in workers.overruled}
    waits = run_s == total_s * tasks.largest_share and tasks.n_tasks > 1
    reasons = [
        f"workers: {plural(n_jobs, 'job')} {'take' if n_jobs > 1 else 'takes'} {rough_duration(run_s)}, one worker "
        f"{rough_duration(total_s)}" + (f"; one of them does {tasks.largest} alone" if waits else ""),
        f"time: {MARGIN} times that, plus {rough_duration(START_S)} to start"
        + ("; jobs that reach their limit are replaced" if limit_s == MAX_LIMIT_S else ""),
        f"mem_per_cpu_gb: {work.memory}",
    ]
    if work.cores > workers.n_cores:
        reasons.append(f"cpus_per_task: {work.cores} for each worker, so that its GPU does not wait for tokens")
    if workers.overruled:
        reasons.append(f"sbatch_args overrides {', '.join(workers.overruled)}")
    return SlurmAdvice({**workers.given, **advised}, reasons)


def _rounded_up(seconds: float, step: int) -> int:
    return math.ceil(seconds / step) * step
