"""Where a job runs: workers on this machine, or in Slurm jobs."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import Field, field_validator, model_validator

from mlfilter_core.config.written import Written
from mlfilter_core.files.urls import shown_path, url_of

DEFAULT_STAGING_DIR = "mlfilter_staging"  # in the folder where the run starts: /tmp is often memory, or of one node


class LocalSettings(Written):
    """Workers on this machine, and its share of the files."""

    workers: int = Field(
        -1,
        ge=-1,
        description="Worker processes. -1: one per GPU, or one, to embed or train; "
        "one per core, with 1 GiB each, to annotate or filter.",
    )
    tasks: int = Field(1, ge=1, description="Number of shards of the files, over all machines.")
    local_tasks: int = Field(
        -1, ge=-1, description="Number of shards for this machine. -1: all from local_rank_offset on."
    )
    local_rank_offset: int = Field(0, ge=0, description="First shard for this machine.")
    logging_dir: Path | None = Field(None, description="Folder of the log files. Default: <output_dir>/logs.")

    @field_validator("workers", "local_tasks")
    @classmethod
    def _at_least_one(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be at least 1, or -1 to choose automatically")
        return value

    @model_validator(mode="after")
    def _shards_exist(self) -> "LocalSettings":
        if self.local_rank_offset + max(self.local_tasks, 1) > self.tasks:
            raise ValueError(
                f"shards {self.local_rank_offset} to {self.local_rank_offset + max(self.local_tasks, 1) - 1} "
                f"(local_rank_offset, local_tasks) do not exist: tasks is {self.tasks}"
            )
        return self

    @property
    def ranks(self) -> range:
        """Shards for this machine."""
        end = self.tasks if self.local_tasks < 0 else self.local_rank_offset + self.local_tasks
        return range(self.local_rank_offset, end)


SbatchValue = str | int | float | bool

TIME_LIMIT = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
# Long names of the options that fields set, or that change what a job is.
SHORT_OPTIONS = {
    **{"A": "account", "a": "array", "c": "cpus-per-task", "d": "dependency", "e": "error", "G": "gpus"},
    **{"J": "job-name", "M": "clusters", "N": "nodes", "n": "ntasks", "o": "output"},
    **{"p": "partition", "q": "qos", "t": "time", "w": "nodelist", "x": "exclude"},
}
# A worker is one process on one node; the number of jobs is workers, or tasks.
ONE_PER_JOB = ("nodes", "ntasks", "ntasks-per-node")
REFUSED_OPTIONS = {
    "array": "each job is submitted by itself; set workers to the most jobs at a time",
    **dict.fromkeys(
        ("wrap", "parsable", "test-only", "wait", "help", "usage", "version"), "the job's script is made here"
    ),
}


class SlurmSettings(Written):
    """Workers as Slurm jobs."""

    workers: int = Field(-1, ge=-1, description="Most jobs at a time; -1: as many as tasks.")
    tasks: int = Field(1, ge=1, description="Most jobs at a time where workers is -1. Files are not sharded.")
    tasks_per_job: int = Field(1, ge=1, description="Divisor of tasks.")
    max_array_size: int = Field(1001, ge=1, description="Upper limit of the jobs at a time.")
    max_array_launch_parallel: bool = Field(False, description="true: ignore max_array_size.")
    stagger_max_array_jobs: int = Field(0, ge=0, description="Must be 0, as there are no job arrays.")
    time: str = Field(
        "00:30:00",
        pattern=f"^{TIME_LIMIT.pattern}$",
        description="Time limit of a job: --time. Its workers stop before it, and another job continues.",
    )
    partition: str | None = Field(None, description="--partition. Unset: the cluster's default.")
    cpus_per_task: int = Field(4, ge=1, description="Cores of a job: --cpus-per-task.")
    mem_per_cpu_gb: float | None = Field(
        8, gt=0, description="Memory per core, in GB: --mem-per-cpu. null: no such option, for sites that refuse it."
    )
    gpus_per_task: int | None = Field(
        None, ge=0, description="GPUs of a job, one worker each: --gpus-per-task. sbatch_args can set them, too."
    )
    job_name: str = Field("mlfilter", pattern=r"^[^\s/%]+$", description="Name in the queue: --job-name.")
    qos: str | None = Field(None, description="Quality of service: --qos.")
    account: str | None = Field(None, description="Account to charge: --account.")
    sbatch_args: dict[str, SbatchValue] = Field(
        default_factory=dict,
        description="More options of sbatch, in snake_case or dash-case, as in {gres: gpu:4}; true for a flag, "
        "false to leave the option of a field out. They override the fields.",
    )
    srun_args: dict[str, SbatchValue] = Field(
        default_factory=dict, description="Options of srun. Set: start workers through srun."
    )
    env_command: str | None = Field(None, description="Shell command to run in the job before its workers.")
    condaenv: str | None = Field(None, description="Conda environment to activate in the job.")
    venv_path: str | None = Field(
        None,
        description="Virtual environment to activate in the job. Without it and condaenv: the flow's Python.",
    )
    python: str | None = Field(
        None,
        description="Shell command that starts Python in the job, such as apptainer exec mlfilter.sif python. "
        "Default: that of venv_path or condaenv, else the flow's.",
    )
    output: str | None = Field(None, description="File of a job's output: --output. Default: in slurm_logs_folder.")
    error: str | None = Field(None, description="File of a job's errors: --error. Default: where its output goes.")
    slurm_logs_folder: Path | None = Field(
        None, description="Folder of the jobs' output. Default: jobs in the folder of the run's logs."
    )
    logging_dir: Path | None = Field(None, description="Folder of the log files. Default: <output_dir>/logs.")
    skip_completed: bool = Field(True, description="Must be true; use params.overwrite to replace finished files.")
    requeue: bool = Field(True, description="Let Slurm restart a preempted job: --requeue, otherwise --no-requeue.")
    requeue_signals: tuple[str, ...] = Field(
        ("SIGUSR1",), description="Must be the default; workers stop before the time limit on their own."
    )
    mail_user: str | None = Field(None, description="Recipient of mail: --mail-user.")
    mail_type: str = Field("ALL", description="Events to mail to mail_user: --mail-type.")
    depends_job_id: str | None = Field(None, description="Job that must succeed first: --dependency=afterok.")
    run_on_dependency_fail: bool = Field(False, description="Start even if that job failed: --dependency=afterany.")
    job_id_position: int = Field(-1, description="Position of the job's id among the words that sbatch prints.")
    randomize_start_duration: int = Field(0, ge=0, description="Most seconds of a random delay at a job's start.")
    interface: str | None = Field(
        None, description="Network interface of the nodes, and of the flow's machine, such as ib0."
    )
    scheduler_interface: str | None = Field(
        None, description="Network interface of the flow's machine, where it differs from that of the nodes."
    )
    security: bool = Field(
        True,
        description="TLS between the flow and its workers, with certificates made for the run.",
    )

    @field_validator("time", mode="before")
    @classmethod
    def _is_quoted(cls, value: Any) -> Any:
        if isinstance(value, int):  # YAML 1.1 reads 10:00:00 as 36000
            raise ValueError('write it in quotes, as in "10:00:00"')
        return value

    @field_validator("sbatch_args")
    @classmethod
    def _describe_a_job_with_workers(cls, value: dict[str, SbatchValue]) -> dict[str, SbatchValue]:
        for name, written in _options(value).items():
            if name in REFUSED_OPTIONS:
                raise ValueError(f"{name} cannot be used: {REFUSED_OPTIONS[name]}")
            if name in ONE_PER_JOB and written != "1":
                raise ValueError(f"{name}: {written} cannot be used: a job is one node; set workers for more jobs")
            # YAML 1.1 reads 10:00:00 as 36000, which would be minutes.
            if name == "time" and (written.isdigit() or not TIME_LIMIT.fullmatch(written)):
                raise ValueError(f'time: {written} is not a time limit; write it in quotes, as in "10:00:00"')
            if name == "cpus-per-task" and not written.isdigit():
                raise ValueError(f"cpus-per-task: {written} is not a number")
        return value

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> "SlurmSettings":
        if not self.skip_completed:
            raise ValueError(
                "skip_completed: false is not supported; to make all files again, set another output_dir, or "
                "params.overwrite: true"
            )
        if self.requeue_signals != ("SIGUSR1",):
            raise ValueError(
                "requeue_signals is not supported; workers stop before the time limit, and another job continues"
            )
        if self.stagger_max_array_jobs:
            raise ValueError(
                "stagger_max_array_jobs is not supported: there are no arrays; randomize_start_duration delays jobs"
            )
        return self

    @property
    def max_jobs(self) -> int:
        """Most jobs at a time."""
        n_jobs = self.workers if self.workers > 0 else -(-self.tasks // self.tasks_per_job)
        return n_jobs if self.max_array_launch_parallel else min(n_jobs, self.max_array_size)

    def sbatch_options(self) -> dict[str, str]:
        """Returns `sbatch_args` by their long names; the value of a flag is empty."""
        return _options(self.sbatch_args)

    def left_out_options(self) -> set[str]:
        """Returns the long names of the options that `sbatch_args` leaves out."""
        return {SHORT_OPTIONS.get(name, _dashed(name)) for name, value in self.sbatch_args.items() if value is False}

    def srun_options(self) -> dict[str, str]:
        """Returns `srun_args` by their long names; the value of a flag is empty."""
        return _options(self.srun_args)


def _options(written: dict[str, SbatchValue]) -> dict[str, str]:
    named = {SHORT_OPTIONS.get(name, _dashed(name)): value for name, value in written.items()}
    return {name: "" if value is True else str(value) for name, value in named.items() if value is not False}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class Parameters(Protocol):
    """Fields that the parameters of every job have."""

    URLS: ClassVar[Mapping[str, bool]]

    @property
    def output_dir(self) -> Path:
        """Folder of all outputs."""


AnyJob = TypeVar("AnyJob", bound="Job")


class Job(Written):
    """A run over files, and where it runs."""

    # Whether a machine without GPUs gets a worker per core by default. An encoder uses all cores with one worker.
    one_per_core: ClassVar[bool] = True

    if TYPE_CHECKING:  # a field of each kind of job

        @property
        def params(self) -> Parameters:
            """What to do."""

    dataset_name: str | None = Field(None, description="Value of ${dataset_name} in other fields.")
    running_on_slurm: bool = Field(False, description="Run on a Slurm cluster instead of this machine.")
    local_settings: LocalSettings | None = Field(None, description="Settings without running_on_slurm.")
    slurm_settings: SlurmSettings | None = Field(None, description="Settings with running_on_slurm.")
    files_per_task: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="Files per Prefect task. auto: one, or several where each takes less than seconds or there are "
        "more than 100,000.",
    )
    staging_dir: Path | None = Field(
        None,
        description="Folder for the files of URLs: staged inputs, unfinished outputs, logs. All workers share it. "
        f"Default: {DEFAULT_STAGING_DIR}.",
    )
    price_per_hour: float | None = Field(
        None,
        ge=0,
        description="Price of an hour of one GPU, where the workers have GPUs, otherwise of one core, in any currency. "
        "ml_filter plan then states what it costs to embed or to annotate.",
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port of a /metrics endpoint for Prometheus. Unset: none."
    )

    @model_validator(mode="after")
    def _one_kind_of_settings(self) -> "Job":
        if self.running_on_slurm and self.local_settings is not None:
            raise ValueError("running_on_slurm is true; replace local_settings by slurm_settings")
        if not self.running_on_slurm and self.slurm_settings is not None:
            raise ValueError("slurm_settings are given; set running_on_slurm: true, or remove them")
        return self

    @property
    def local(self) -> LocalSettings:
        return self.local_settings or LocalSettings()

    @property
    def slurm(self) -> SlurmSettings:
        return self.slurm_settings or SlurmSettings()

    @property
    def device(self) -> str:
        """Device of the workers."""
        return "cpu"

    @property
    def about(self) -> str:
        """What the job is about to do, on one line, after the name of its kind."""
        return f"to {self.params.output_dir}"

    @property
    def output_dir(self) -> Path:
        """The folder of this machine where outputs are made: `params.output_dir`, or its mirror."""
        return self.on_this_machine().params.output_dir

    @property
    def urls(self) -> dict[str, str]:
        """The fields of `params` that are URLs."""
        written = {name: getattr(self.params, name) for name in type(self.params).URLS}
        return {name: url for name, path in written.items() if path is not None and (url := url_of(path)) is not None}

    @property
    def staging(self) -> Path:
        """The folder in `staging_dir` that belongs to the URLs of this job."""
        key = " ".join(shown_path(getattr(self.params, name) or Path()) for name in type(self.params).URLS)
        name = f"{self.params.output_dir.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        return (self.staging_dir or Path(DEFAULT_STAGING_DIR)).absolute() / name

    def mirror(self, field: str) -> Path:
        """Returns the folder of this machine that stands for the URL of a field."""
        return self.staging / field

    def on_this_machine(self: "AnyJob") -> "AnyJob":
        """Returns the job with a folder of this machine in place of each URL."""
        if not self.urls:
            return self
        params: Any = self.params
        mirrors = {field: self.mirror(field) for field in self.urls}
        return self.model_copy(update={"params": params.model_copy(update=mirrors)})

    @property
    def settings_name(self) -> str:
        """Section of the job file that says where the job runs."""
        return "slurm_settings" if self.running_on_slurm else "local_settings"

    @property
    def logging_dir(self) -> Path:
        settings = self.slurm if self.running_on_slurm else self.local
        return settings.logging_dir or self.output_dir / "logs"
