import subprocess
from pathlib import Path
from typing import Any

import pytest

from flows.workers.on_worker import GPUS_VARIABLE
from flows.workers.slurm import job_script, slurm_workers
from flows.workers.slurm_job import LIFETIME_VARIABLE, lifetime_s, slurm_job
from flows.workers.slurm_workers import job_of
from mlfilter_core.config.execution import SlurmSettings
from mlfilter_core.errors import ConfigError

# The text for each field in the job's script. Fields without such a text are below.
IN_SCRIPT: list[tuple[dict[str, Any], str]] = [
    ({"time": "1-02:00:00"}, "#SBATCH --time=1-02:00:00\n"),
    ({"partition": "gpu"}, "#SBATCH --partition=gpu\n"),
    ({"cpus_per_task": 6}, "#SBATCH --cpus-per-task=6\n"),
    ({"mem_per_cpu_gb": 1.5}, "#SBATCH --mem-per-cpu=1536M\n"),
    ({"gpus_per_task": 2}, "#SBATCH --gpus-per-task=2\n"),
    ({"job_name": "emb_job"}, "#SBATCH --job-name=emb_job\n"),
    ({"qos": "high"}, "#SBATCH --qos=high\n"),
    ({"account": "project7"}, "#SBATCH --account=project7\n"),
    ({"sbatch_args": {"gres": "gpu:a100:4"}}, "#SBATCH --gres=gpu:a100:4\n"),
    (
        {"sbatch_args": {"gpu-bind": "none", "ntasks_per_core": 1}},
        "#SBATCH --gpu-bind=none\n#SBATCH --ntasks-per-core=1\n",
    ),
    ({"sbatch_args": {"hint": "nomultithread", "exclusive": True}}, "#SBATCH --exclusive\n"),
    ({"sbatch_args": {"x": "node[3-5]"}}, "#SBATCH --exclude=node[3-5]\n"),
    ({"sbatch_args": {"C": "a100"}}, "#SBATCH -C a100\n"),
    ({"sbatch_args": {"t": "10:00"}}, "#SBATCH --time=10:00\n"),
    ({"sbatch_args": {"mem": "64G"}}, "#SBATCH --mem=64G\n"),
    ({"srun_args": {"cpu_bind": "none"}}, "srun --ntasks=1 --cpus-per-task=4 --cpu-bind=none /"),
    ({"env_command": "module load cuda"}, "\nmodule load cuda\n"),
    ({"condaenv": "embed"}, '\neval "$(conda shell.bash hook)" && conda activate embed || exit 1\n'),
    ({"venv_path": "/shared/venv"}, "\nsource /shared/venv/bin/activate || exit 1\n"),
    ({"venv_path": "/shared/venv/bin/activate"}, "\nsource /shared/venv/bin/activate || exit 1\n"),
    ({"venv_path": "/shared/venv"}, "\npython -P -m distributed.cli.dask_worker "),
    ({"python": "apptainer exec a.sif python"}, "\napptainer exec a.sif python -P -m distributed.cli.dask_worker "),
    ({"python": "apptainer exec a.sif python", "srun_args": {"mpi": "none"}}, " --mpi=none apptainer exec a.sif pyt"),
    ({"output": "/logs/%j.out"}, "#SBATCH --output=/logs/%j.out\n"),
    ({"error": "/logs/%j.err"}, "#SBATCH --error=/logs/%j.err\n"),
    ({"slurm_logs_folder": "/logs/jobs"}, "#SBATCH --output=/logs/jobs/%x-%j.log\n"),
    ({"requeue": True}, "#SBATCH --requeue\n"),
    ({"requeue": False}, "#SBATCH --no-requeue\n"),
    ({"mail_user": "a@b.c"}, "#SBATCH --mail-user=a@b.c\n#SBATCH --mail-type=ALL\n"),
    ({"mail_user": "a@b.c", "mail_type": "END"}, "#SBATCH --mail-type=END\n"),
    ({"depends_job_id": "17"}, "#SBATCH --dependency=afterok:17\n"),
    ({"depends_job_id": "17", "run_on_dependency_fail": True}, "#SBATCH --dependency=afterany:17\n"),
    ({"randomize_start_duration": 30}, "\nsleep $((RANDOM % 31))\n"),
    ({"interface": "ib0"}, " --interface ib0"),
    ({"interface": "ib0", "scheduler_interface": "eth1"}, " --interface ib0"),
    ({"security": True}, " --protocol tls://"),
]
# Fields for the number of jobs: test_slurm.py. Fields that must keep their default: test_job_files.py.
ABOUT_JOBS = {"workers", "tasks", "tasks_per_job", "max_array_size", "max_array_launch_parallel"}
ABOUT_THE_RUN = {"logging_dir", "job_id_position"}
REFUSED = {"stagger_max_array_jobs", "skip_completed", "requeue_signals"}


def script(device: str = "auto", one_per_core: bool = False, **settings: Any) -> str:
    return job_script(SlurmSettings(**settings), one_per_core, device, Path("/run/logs"))


@pytest.mark.parametrize(("settings", "line"), IN_SCRIPT, ids=lambda value: str(value))
def test_a_field_becomes_a_line_of_the_script(settings: dict[str, Any], line: str) -> None:
    assert line in script(**settings)


def test_no_field_is_ignored() -> None:
    told = {name for settings, _ in IN_SCRIPT for name in settings}
    assert told | ABOUT_JOBS | ABOUT_THE_RUN | REFUSED == set(SlurmSettings.model_fields)


def test_an_option_in_sbatch_args_takes_the_place_of_its_field() -> None:
    written = script(time="08:00:00", cpus_per_task=8, sbatch_args={"c": 2, "mem_per_cpu": "3G", "A": "project7"})
    assert written.count("--cpus-per-task") == written.count("--mem-per-cpu") == written.count("--account") == 1
    assert "#SBATCH --cpus-per-task=2\n" in written
    assert " --memory-limit 6.00GiB " in written
    assert "export OMP_NUM_THREADS=2\n" in written


@pytest.mark.parametrize(
    ("settings", "n_jobs"),
    [
        ({}, 1),
        ({"tasks": 200}, 200),
        ({"tasks": 200, "workers": 20}, 20),
        ({"tasks": 200, "tasks_per_job": 3}, 67),
        ({"tasks": 5000}, 1001),
        ({"tasks": 5000, "max_array_size": 400}, 400),
        ({"tasks": 5000, "max_array_launch_parallel": True}, 5000),
    ],
)
def test_workers_else_tasks_are_the_most_jobs_at_a_time(settings: dict[str, Any], n_jobs: int) -> None:
    assert SlurmSettings(**settings).max_jobs == n_jobs


@pytest.mark.parametrize(
    ("settings", "device", "one_per_core", "n_workers"),
    [
        ({}, "auto", False, 1),
        ({}, "cpu", True, 4),
        ({"sbatch_args": {"gres": "gpu:4"}}, "auto", False, 4),
        ({"sbatch_args": {"gres": "gpu:a100:2"}}, "cuda", False, 2),
        ({"sbatch_args": {"gres": "shard:8,gpu"}}, "auto", False, 1),
        ({"sbatch_args": {"gpus": "h200:8"}}, "auto", False, 8),
        ({"sbatch_args": {"G": 2}}, "auto", False, 2),
        ({"gpus_per_task": 2}, "auto", False, 2),
        ({"sbatch_args": {"gres": "gpu:4"}}, "cpu", False, 1),
        ({"sbatch_args": {"gres": "gpu:4"}}, "cpu", True, 4),
    ],
)
def test_a_job_holds_a_worker_for_each_gpu_else_one_or_one_for_each_core(
    settings: dict[str, Any], device: str, one_per_core: bool, n_workers: int
) -> None:
    job = slurm_job(SlurmSettings(**settings), one_per_core, device, Path("/run/logs"))
    assert job.n_workers == n_workers
    written = script(device, one_per_core, **settings)
    assert (f" --nworkers {n_workers} " in written) == (n_workers > 1)
    assert f"export OMP_NUM_THREADS={max(1, 4 // n_workers)}\n" in written
    assert (GPUS_VARIABLE in written) == (n_workers > 1 and device != "cpu")


def test_memory_that_is_left_to_slurm_is_not_limited_by_dask() -> None:
    assert " --memory-limit 0 " in script(sbatch_args={"mem": 0})
    assert " --memory-limit 0 " in script(sbatch_args={"mem_per_gpu": "90G"})


@pytest.mark.parametrize(
    "settings",
    [{"mem_per_cpu_gb": None}, {"sbatch_args": {"mem_per_cpu": False}}, {"sbatch_args": {"mem-per-cpu": False}}],
)
def test_a_site_that_refuses_options_of_memory_gets_none(settings: dict[str, Any]) -> None:
    written = script(**settings)
    assert "#SBATCH --mem" not in written
    assert " --memory-limit 0 " in written
    assert "#SBATCH --cpus-per-task=4\n" in written


def test_options_that_are_left_out_still_decide_what_is_made_from_them() -> None:
    written = script(cpus_per_task=6, gpus_per_task=2, sbatch_args={"c": False, "time": False, "gpus_per_task": False})
    for option in ("cpus-per-task", "time", "gpus-per-task"):
        assert f"--{option}" not in written
    assert "export OMP_NUM_THREADS=6\n" in written
    assert "--nworkers" not in written


def test_an_interface_that_the_flow_s_machine_has_not_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    for settings in ({"interface": "ib99"}, {"interface": "lo", "scheduler_interface": "ib99"}):
        workers = slurm_workers(SlurmSettings(**settings), False, "cpu", 1, tmp_path)
        with pytest.raises(ConfigError, match=r"no interface ib99; it has .*lo.*\. Set scheduler_interface"), workers:
            pass


@pytest.mark.parametrize(
    ("time", "longest"),
    [
        ("08:00:00", 28800 - 600),
        ("00:30:00", 1800 - 90),
        ("30", 1800 - 90),
        ("30:00", 1800 - 90),
        ("1-00", 86400 - 600),
        ("1-12:30", 131400 - 600),
        ("1-00:00:30", 86430 - 600),
        ("00:01:00", 20),
    ],
)
def test_workers_leave_before_the_time_limit(time: str, longest: int) -> None:
    assert lifetime_s(time)[0] == longest
    assert 0 <= lifetime_s(time)[1] <= longest / 4
    assert f"{LIFETIME_VARIABLE}=$(({longest} - SECONDS - RANDOM" in script(time=time)


def test_no_dashboard_of_a_worker_is_open_to_others() -> None:
    assert "--no-dashboard --dashboard-address 127.0.0.1:0 " in script()


def test_a_job_forgets_the_passwords_of_the_flow(tmp_path: Path) -> None:
    prologue = script().partition("\n\n")[2].splitlines()
    before_the_worker = "\n".join([*(line for line in prologue if not line.startswith(("#", "/"))), "env"])
    environment = {
        "PREFECT_API_AUTH_STRING": "secret",
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        "PATH": "/usr/bin",
    }
    line = ["bash", "-euc", before_the_worker]
    seen = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    assert "OMP_NUM_THREADS=4" in seen
    assert "PREFECT" not in seen


@pytest.mark.parametrize(("worker", "job"), [("job-3", "job-3"), ("job-3-1", "job-3"), ("job-12-0", "job-12")])
def test_a_worker_s_name_tells_its_job(worker: str, job: str) -> None:
    assert job_of(worker) == job
