from dataclasses import replace

import pytest
import yaml

from mlfilter_core.config.execution import SlurmSettings
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.files_to_do import Division
from mlfilter_core.plan.plan import PlannedWorkers
from mlfilter_core.plan.slurm_advice import Work, advise
from mlfilter_core.plan.worker_memory import WorkerMemory

HOUR = 3600
GPUS = PlannedWorkers(4, 4, 8, True, True, "1 Slurm job of 4 workers")


def work(hours: float, n_files: int = 1000, largest_hours: float = 0.0) -> Work:
    division = Division(n_files, largest_hours / hours, "a.jsonl")
    return Work(Estimate.exact(hours * HOUR), lambda n_workers: division, WorkerMemory(10 * 2**30, "measured"))


@pytest.mark.parametrize(
    ("planned", "jobs", "time"),
    [
        (work(0.01), 1, "00:30:00"),
        (work(100), 7, "06:00:00"),  # 25 workers of 4 hours, 4 in a job: 28 take 3.6 hours, 1.5 times is 5.4
        (work(100, n_files=8), 2, "19:00:00"),  # no more workers than files: 12.5 hours each
        (work(100, largest_hours=50), 7, "24:00:00"),  # one file is one worker's
        (work(10_000, n_files=9999), 625, "06:30:00"),
    ],
)
def test_jobs_are_as_many_as_end_in_four_hours(planned: Work, jobs: int, time: str) -> None:
    advice = advise(planned, GPUS)
    assert (advice.settings["workers"], advice.settings["time"]) == (jobs, time)


def test_what_is_advised_can_be_pasted_into_a_job_file() -> None:
    advice = advise(work(300), GPUS)
    pasted = yaml.safe_load(advice.to_yaml())["slurm_settings"]
    settings = SlurmSettings.model_validate(pasted)
    assert settings.max_jobs == pasted["workers"]
    assert (settings.cpus_per_task, settings.gpus_per_task) == (32, 4)
    assert settings.mem_per_cpu_gb == 1.5  # 40 GiB of 4 workers over 32 cores, in halves


def test_a_worker_gets_the_cores_that_tokenize_for_its_gpu() -> None:
    advice = advise(replace(work(300), cores=12), GPUS)
    assert advice.settings["cpus_per_task"] == 48
    assert "cpus_per_task: 12 for each worker, so that its GPU does not wait for tokens" in advice.reasons


def test_what_was_given_is_kept_and_what_sbatch_args_override_is_not_advised() -> None:
    given = {"partition": "gpu", "sbatch_args": {"gres": "gpu:4", "time": "08:00:00"}, "workers": 2}
    workers = PlannedWorkers(8, 4, 8, True, True, "", given, ("time",))
    advice = advise(work(100), workers)
    assert advice.settings["partition"] == "gpu"
    assert advice.settings["workers"] == 7
    assert "time" not in advice.settings
    assert "gpus_per_task" not in advice.settings
    assert any(reason == "sbatch_args overrides time" for reason in advice.reasons)


def test_a_run_takes_as_long_as_its_largest_file() -> None:
    assert work(100, largest_hours=30).run_s(50).value == pytest.approx(30 * HOUR)
    assert work(100, n_files=2).run_s(50).value == 50 * HOUR
