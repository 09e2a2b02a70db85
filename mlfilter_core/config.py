"""What people write: the YAML job files, and the flow parameters made from them."""

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlfilter_core.documents import DocumentSchema
from mlfilter_core.errors import in_one_line
from mlfilter_core.lines import DEFAULT_MAX_LINE_BYTES
from mlfilter_core.windows import DEFAULT_COMMIT_DOCUMENTS

HEAD_NAME = re.compile(r"[A-Za-z0-9_.-]+")
DEFAULT_EMBEDDING_DIR = "embeddings"
ANNOTATED_DIR = "annotated_data"
UNKEPT_DIR = ".embeddings"


def _with_titles_in_order(schema: dict[str, Any]) -> None:
    """Completes what forms show: pydantic gives a section no title, and PostgreSQL forgets the order of fields."""
    for position, (name, field) in enumerate(schema.get("properties", {}).items()):
        field.setdefault("title", name.replace("_", " ").title())
        field["position"] = position


class Written(BaseModel):
    """What people write: unknown fields are refused, and nothing changes after."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), json_schema_extra=_with_titles_in_order
    )

    @field_validator("*")
    @classmethod
    def _usable_strings(cls, value: Any) -> Any:
        if any("\0" in str(part) for part in (value if isinstance(value, tuple) else (value,))):
            raise ValueError("holds a NUL character, which no file and no dataset can have in its name")
        try:
            return value.expanduser() if isinstance(value, Path) else value
        except RuntimeError as error:  # ~nobody/x
            raise ValueError(f"{in_one_line(error)} Write the path in full") from error


class Ensemble(Written):
    """Several scores as one."""

    heads: tuple[str, ...] = Field(
        min_length=2, description="Names of scores, without prefix: of a head, or <head>_<target>."
    )
    combine: Literal["mean", "median", "min", "max", "weighted", "agreement"] = Field(
        "mean", description="How. agreement: the number of scores that reach their thresholds."
    )
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="Of each score, with weighted: the weighted mean."
    )
    thresholds: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict, description="Of each score, with agreement: a score reaches its own or is above."
    )
    at_least: int | None = Field(
        None, ge=1, description="So many scores must reach theirs for label_<name> to be true. Unset: all."
    )

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> "Ensemble":
        for name, way, values in (("weights", "weighted", self.weights), ("thresholds", "agreement", self.thresholds)):
            if self.combine == way and set(values) != set(self.heads):
                raise ValueError(f"combine: {way} needs {name} of {', '.join(self.heads)}, and of no others")
            if self.combine != way and values:
                raise ValueError(f"{name} go with combine: {way}")
        if self.at_least is not None and (self.combine != "agreement" or self.at_least > len(self.heads)):
            raise ValueError(f"at_least goes with combine: agreement, and is {len(self.heads)} at most")
        if len(set(self.heads)) < len(self.heads):
            raise ValueError("a score is named twice")
        return self


class Scoring(Written):
    """With which heads to score, and what to write beside the scores."""

    regression_head_checkpoints: dict[str, str] = Field(
        min_length=1, description="Name of each score, and the checkpoint of the head that gives it."
    )
    output_keys: tuple[str, ...] = Field(
        ("document_id",),
        description='What to write beside the scores: names in the HDF5 file, else keys of the source document; "*" '
        "is the whole source document.",
    )
    score_prefix: str = Field("score_", description="Set before a head's name in the output.")
    ensembles: dict[str, Ensemble] = Field(
        default_factory=dict, description="Name of each score that is made of others, and how."
    )
    integer_scales: dict[str, tuple[int, int]] = Field(
        default_factory=dict,
        description="Lowest and highest whole number of a score, as in {education: [0, 5]}: int_score_education is the "
        "score rounded and cut to them.",
    )
    batch_size: int = Field(2048, ge=1, description="Embeddings scored in one pass.")
    device: str = Field("cpu", description="Where the heads compute: cpu, cuda, mps or auto.")
    model_dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Heads' precision.")
    compression: Literal["gzip", "zstd"] | None = Field(None, description="Of the annotated files.")
    allow_mismatched_head: bool = Field(
        False, description="Score with a head that was trained on the embeddings of another encoder; it is recorded."
    )

    @field_validator("regression_head_checkpoints", "ensembles")
    @classmethod
    def _usable_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not HEAD_NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may have letters, digits, _, . and - only")
        return value

    @field_validator("integer_scales")
    @classmethod
    def _have_numbers(cls, value: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        for name, (lowest, highest) in value.items():
            if lowest >= highest:
                raise ValueError(f"{name}: the scale from {lowest} to {highest} is empty; write the lower first")
        return value


class EmbeddingPipelineParameters(Written):
    """What to embed, with which encoder, and where to."""

    input_dir: Path = Field(description="Folder that holds the source JSONL files.")
    glob_pattern: str = Field(
        "**/*.jsonl*",
        min_length=1,
        description="Which files below input_dir: .jsonl, .jsonl.gz or .jsonl.zst. ** is any number of folders.",
    )
    text_field: str | None = Field(
        None, description="Key of the text to embed. Unset: the keys_to_index, joined by a line feed, are."
    )
    keys_to_index: tuple[str, ...] | None = Field(
        None,
        description="Keys stored beside each embedding; without text_field also the text. Default: text, "
        "or none with text_field.",
    )
    id_key: str | None = Field(
        None, description="Key of the document's id. Unset: document_id, doc_id, id or uuid, else file:line."
    )
    save_labels: bool = Field(False, description="Store labels beside the embeddings.")
    label_key: str | tuple[str, ...] | None = Field(
        None,
        description="Key or keys of the labels, such as scores.score. Unset: label, else score, else scores.score.",
    )
    output_dir: Path = Field(description="Folder for everything that the run writes.")
    embedding_dir: str = Field(
        DEFAULT_EMBEDDING_DIR, min_length=1, description="Folder of the HDF5 files in output_dir."
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    embedding_model: str = Field(
        min_length=1,
        description="Hugging Face model id, local folder, or package:<package>/<folder> for a model that an "
        "installed Python package ships.",
    )
    model_revision: str | None = Field(None, description="Branch, tag or commit of a model id.")
    trust_remote_code: bool = Field(False, description="Run Python code that the model's repository ships.")
    batch_size: int | None = Field(
        None, ge=1, description="Most documents in one forward pass. Unset: max_batch_tokens alone limits it."
    )
    writer_batch_size: int = Field(1024, ge=1, description="Documents written to HDF5 at a time.")
    commit_documents: int = Field(
        DEFAULT_COMMIT_DOCUMENTS,
        ge=1,
        description="Documents after which what is encoded is flushed to disk, to outlive the machine; it outlives its "
        "process every 4096. Fewer than these are sorted in smaller windows, which is slower.",
    )
    max_length: int | None = Field(
        None, ge=3, description="Most tokens of a document; longer ones are cut. Unset: the model's own maximum."
    )
    padding: bool | Literal["longest", "max_length"] = Field(
        True, description="true or longest: to the longest of a batch; max_length: always to max_length."
    )
    truncation: bool | Literal["longest_first", "only_first", "do_not_truncate"] = Field(
        True, description="false or do_not_truncate: documents above max_length are rejected, not cut."
    )
    pooling: Literal["cls", "mean", "max", "last_token"] | None = Field(
        None, description="How token embeddings become one. Unset: as the model is configured, else mean."
    )
    prompt: str | None = Field(None, description="Set before each text. Unset: the model's own default prompt.")
    max_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Most tokens in one forward pass. auto: each worker finds the size that is fastest there."
    )
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Precision of the forward pass; pooling is float32 always. auto: bfloat16 where it is fast.",
    )
    embedding_dtype: Literal["float32", "float16"] = Field("float32", description="Precision in the file.")
    label_dtype: Literal["float32", "float64", "int8", "int16", "int32", "int64"] = Field(
        "float32",
        description="Type of stored labels; one out of its range, or a fraction in an integer, is a rejected line.",
    )
    device: str = Field("auto", description="auto (CUDA, then MPS, then CPU), cpu, mps, cuda or cuda:<n>.")
    on_bad_record: Literal["reject", "fail"] = Field(
        "reject", description="What a bad line does: goes to rejected/ with its reason, or fails its file."
    )
    max_rejected_fraction: float = Field(
        0.5, ge=0, le=1, description="A file of which a larger share is rejected fails: its keys are likely wrong."
    )
    max_line_bytes: int = Field(DEFAULT_MAX_LINE_BYTES, ge=1024, description="A longer line is rejected.")
    overwrite: bool = Field(False, description="Replace finished files that another request made.")
    annotate_inline: Scoring | None = Field(
        None, description="Heads to score each file with once it is embedded; fields as in an annotation job."
    )
    keep_embeddings: bool = Field(True, description="false: each HDF5 file is removed once it is annotated.")
    compression: Literal["infer", "gzip", "zstd"] | None = Field(
        "infer", description="Accepted from older files; each file's first bytes tell its compression."
    )

    @field_validator("padding")
    @classmethod
    def _can_pad(cls, value: bool | str) -> bool | str:
        if value is False:
            raise ValueError("texts of different lengths share a batch only when padded; use true")
        return value

    @field_validator("embedding_dir")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
            raise ValueError("must be a folder below output_dir; change output_dir for another place")
        return value

    @field_validator("keys_to_index")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = [key.replace("/", "_") for key in value or ()]  # as in the HDF5 file
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f'"{twice}" would be stored twice (/ becomes _ in the file); list it once')
        return value

    @model_validator(mode="after")
    def _has_text(self) -> "EmbeddingPipelineParameters":
        if self.text_field is None and self.keys_to_index == ():
            raise ValueError("text_field and keys_to_index are both empty; name the key of the text")
        return self

    @model_validator(mode="after")
    def _keeps_something(self) -> "EmbeddingPipelineParameters":
        if not self.keep_embeddings and self.annotate_inline is None:
            raise ValueError("keep_embeddings: false leaves nothing without annotate_inline; name the heads there")
        return self

    @property
    def annotated_output_dir(self) -> Path:
        return self.output_dir / ANNOTATED_DIR

    @property
    def embedding_output_dir(self) -> Path:
        """Embeddings that do not stay lie apart from those that do, so that none of those is removed."""
        return self.output_dir / (self.embedding_dir if self.keep_embeddings else UNKEPT_DIR)

    @property
    def results_dir(self) -> Path:
        """Where what stays lies."""
        return self.embedding_output_dir if self.keep_embeddings else self.annotated_output_dir

    @property
    def rejected_output_dir(self) -> Path:
        """`rejected/`; below it one folder for each further folder of embeddings, which has rejects of its own."""
        own = "" if self.embedding_dir == DEFAULT_EMBEDDING_DIR else self.embedding_dir
        return self.output_dir / "rejected" / own

    def schema_of_documents(self) -> DocumentSchema:
        """Where the records keep their text, id, index values and labels."""
        index_keys = self.keys_to_index
        if index_keys is None:
            index_keys = () if self.text_field else ("text",)
        label_keys = (self.label_key,) if isinstance(self.label_key, str) else self.label_key
        return DocumentSchema(
            text_keys=(self.text_field,) if self.text_field else index_keys,
            id_key=self.id_key,
            index_keys=index_keys,
            label_keys=label_keys if self.save_labels else (),
            label_dtype=self.label_dtype,
        )


class AnnotationPipelineParameters(Scoring):
    """Which embeddings to score, with which heads, and what to write beside the scores."""

    embeddings_directory: Path = Field(description="Folder of the HDF5 files, searched recursively.")
    glob_pattern: str = Field("**/*", min_length=1, description="Which .h5 or .hdf5 files below it.")
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    source_dir: Path | None = Field(
        None, description="Where the source files lie now, if not where they were embedded from."
    )
    output_dir: Path = Field(description="Annotated files go to annotated_data/ in it.")
    overwrite: bool = Field(False, description="Replace finished files that another request made.")
    embedding_dtype: str | None = Field(None, description="Accepted from older files; read as stored.")
    label_dtype: str | None = Field(None, description="Accepted from older files; labels are not read.")

    @property
    def annotated_output_dir(self) -> Path:
        return self.output_dir / ANNOTATED_DIR


class LocalSettings(Written):
    """Workers on this machine, and this machine's share of the files."""

    workers: int = Field(
        -1,
        ge=-1,
        description="Worker processes. -1: to embed, one for each GPU, else one; to annotate, one for each core.",
    )
    tasks: int = Field(1, ge=1, description="Shards that the files are dealt into, over all machines.")
    local_tasks: int = Field(-1, ge=-1, description="Shards that this machine takes; -1: all that are left.")
    local_rank_offset: int = Field(0, ge=0, description="First shard that this machine takes.")
    logging_dir: Path | None = Field(None, description="Folder of the log files. Default: <output_dir>/logs.")

    @field_validator("workers", "local_tasks")
    @classmethod
    def _at_least_one(cls, value: int) -> int:
        if value == 0:
            raise ValueError("at least one is needed; -1 chooses")
        return value

    @model_validator(mode="after")
    def _shards_exist(self) -> "LocalSettings":
        if self.local_rank_offset + max(self.local_tasks, 1) > self.tasks:
            raise ValueError(
                f"shards {self.local_rank_offset} to {self.local_rank_offset + max(self.local_tasks, 1) - 1} "
                f"(local_rank_offset, local_tasks) are asked for, but tasks is {self.tasks}"
            )
        return self

    @property
    def ranks(self) -> range:
        """The shards that this machine takes."""
        end = self.tasks if self.local_tasks < 0 else self.local_rank_offset + self.local_tasks
        return range(self.local_rank_offset, end)


SbatchValue = str | int | float | bool

TIME_LIMIT = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
# Long names of the options that a field stands for, or that decide what a job is.
SHORT_OPTIONS = {
    **{"A": "account", "a": "array", "c": "cpus-per-task", "d": "dependency", "e": "error", "G": "gpus"},
    **{"J": "job-name", "N": "nodes", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time"},
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
    tasks: int = Field(1, ge=1, description="Most jobs at a time where workers does not say; files are not sharded.")
    tasks_per_job: int = Field(1, ge=1, description="Divides tasks: so many fewer jobs.")
    max_array_size: int = Field(1001, ge=1, description="Most jobs at a time in any case.")
    max_array_launch_parallel: bool = Field(False, description="true: max_array_size does not limit the jobs.")
    stagger_max_array_jobs: int = Field(0, ge=0, description="Refused unless 0: there are no arrays of jobs.")
    time: str = Field(
        "00:30:00",
        pattern=f"^{TIME_LIMIT.pattern}$",
        description="Time limit of a job: --time. Its workers leave before, and another job takes over.",
    )
    partition: str | None = Field(None, description="--partition. Unset: the cluster's default.")
    cpus_per_task: int = Field(4, ge=1, description="Cores of a job: --cpus-per-task.")
    mem_per_cpu_gb: float = Field(8, gt=0, description="Memory for each core, in GB: --mem-per-cpu.")
    gpus_per_task: int | None = Field(
        None, ge=0, description="GPUs of a job: --gpus-per-task. Here or in sbatch_args; each gets a worker."
    )
    job_name: str = Field("mlfilter", pattern=r"^[^\s/%]+$", description="Name in the queue: --job-name.")
    qos: str | None = Field(None, description="Quality of service: --qos.")
    account: str | None = Field(None, description="Account that is charged: --account.")
    sbatch_args: dict[str, SbatchValue] = Field(
        default_factory=dict,
        description="Any option of sbatch, in snake_case or dash-case, as in {gres: gpu:4}; true is a flag. One that a "
        "field stands for overrules the field.",
    )
    srun_args: dict[str, SbatchValue] = Field(
        default_factory=dict, description="With any, workers are started through srun with these options."
    )
    env_command: str | None = Field(None, description="Shell command run in the job before its workers.")
    condaenv: str | None = Field(None, description="Conda environment to activate in the job.")
    venv_path: str | None = Field(
        None,
        description="Virtual environment to activate in the job. Without it and condaenv: the Python of the flow.",
    )
    output: str | None = Field(None, description="File of a job's output: --output. Default: in slurm_logs_folder.")
    error: str | None = Field(None, description="File of a job's errors: --error. Default: where its output goes.")
    slurm_logs_folder: Path | None = Field(
        None, description="Folder of the jobs' output. Default: jobs in the folder of the run's logs."
    )
    logging_dir: Path | None = Field(None, description="Folder of the log files. Default: <output_dir>/logs.")
    skip_completed: bool = Field(True, description="Refused unless true: params.overwrite makes files anew.")
    requeue: bool = Field(True, description="Let Slurm start a preempted job again: --requeue, else --no-requeue.")
    requeue_signals: tuple[str, ...] = Field(
        ("SIGUSR1",), description="Refused unless left alone: workers leave before the time limit by themselves."
    )
    mail_user: str | None = Field(None, description="Who gets mail: --mail-user.")
    mail_type: str = Field("ALL", description="Events that are mailed, with mail_user: --mail-type.")
    depends_job_id: str | None = Field(None, description="Job that must end well first: --dependency=afterok.")
    run_on_dependency_fail: bool = Field(False, description="Or end in any way: --dependency=afterany.")
    job_id_position: int = Field(-1, description="Which word of what sbatch prints is the job's id.")
    randomize_start_duration: int = Field(0, ge=0, description="Most seconds that a job waits at its start.")
    interface: str | None = Field(
        None, description="Network interface of the flow's machine and of the nodes, such as ib0."
    )
    security: bool = Field(True, description="TLS between the flow and its workers, with certificates for the run.")

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
                "skip_completed: false is not offered; with params.overwrite, or another output_dir, all is made anew"
            )
        if self.requeue_signals != ("SIGUSR1",):
            raise ValueError(
                "requeue_signals is not offered; workers leave before the time limit, and another job takes over"
            )
        if self.stagger_max_array_jobs:
            raise ValueError(
                "stagger_max_array_jobs is not offered: there are no arrays; randomize_start_duration delays jobs"
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

    def srun_options(self) -> dict[str, str]:
        """Returns `srun_args` by their long names; the value of a flag is empty."""
        return _options(self.srun_args)


def _options(written: dict[str, SbatchValue]) -> dict[str, str]:
    named = {SHORT_OPTIONS.get(name, name.replace("_", "-")): value for name, value in written.items()}
    return {name: "" if value is True else str(value) for name, value in named.items() if value is not False}


class Parameters(Protocol):
    """What the parameters of every job have."""

    @property
    def output_dir(self) -> Path:
        """Folder for everything that the run writes."""


class Job(Written):
    """A run over files, and where it is done."""

    # Whether a machine without GPUs has a worker for each core by default, or one, as an encoder uses all cores.
    one_per_core: ClassVar[bool] = True

    if TYPE_CHECKING:  # a field of each kind of job

        @property
        def params(self) -> Parameters:
            """What to do."""

    dataset_name: str | None = Field(None, description="For use as ${dataset_name} in other fields.")
    running_on_slurm: bool = Field(False, description="Run on a Slurm cluster instead of this machine.")
    local_settings: LocalSettings | None = Field(None, description="Only without running_on_slurm.")
    slurm_settings: SlurmSettings | None = Field(None, description="Only with running_on_slurm.")
    files_per_task: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="Files that share a Prefect task. auto: one; several where they take some milliseconds each.",
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
        """Where its workers compute."""
        return "cpu"

    @property
    def settings_name(self) -> str:
        """The section of the job file that says where it runs."""
        return "slurm_settings" if self.running_on_slurm else "local_settings"

    @property
    def logging_dir(self) -> Path:
        settings = self.slurm if self.running_on_slurm else self.local
        return settings.logging_dir or self.params.output_dir / "logs"


class EmbeddingJob(Job):
    """A run of the embedding pipeline."""

    one_per_core: ClassVar[bool] = False

    params: EmbeddingPipelineParameters = Field(description="What to embed, with what, and where to.")

    @property
    def device(self) -> str:
        return self.params.device


class AnnotationJob(Job):
    """A run of the annotation pipeline."""

    params: AnnotationPipelineParameters = Field(description="What to score, with what, and where to.")

    @property
    def device(self) -> str:
        return self.params.device
