"""The table of job kinds: one row for each kind of job that a file can describe.

Job files, flows, commands, plan, report and verification look up here what differs between the kinds.
What a row names but does not import is an entry point, `module:function`: it costs seconds to import, or lies in a
layer above this one.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.job_files import load_job_of
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.errors import ConfigError
from mlfilter_core.work.workload import Workload


@dataclass(frozen=True)
class JobKind:
    """A kind of job.

    Attributes:
        flow: Name of the flow, in the Prefect UI and as a command: `embed`.
        field: Field of `params` that every job of this kind has, and no job of another kind.
        config: Class of its jobs.
        summary: Help of its command: the work of a job.
        run: Entry point of the flow, `(config, overrides, **options) -> RunReport`.
        workload: Entry point of `(job) -> Workload`; raises a `MlfilterError` where rounds have yet to be done.
        plan: Entry point of `(job, workers, seed, findings) -> Plan`; None where a job has no plan.
        instead_of_plan: Advice where a job has no plan.
        command: Entry point of `(kind) -> function`, the function of its command; its signature is the options.
        old_command: Name of the command in ML-Filter, if it had one.
        rounds: Names of the workloads before the one of `workload`, which make what that one depends on.
        course: Entry point of `(job) -> Iterator[Workload]`: the rounds that a job needs, then its workload. The next
            one is asked for once the one before has ended.
        has_speed: Whether documents per second describe the speed of its runs.
        step: Name of this kind in a pipeline, as in `--train-config`; None where it is no part of one.
        is_optional_step: Whether a pipeline may leave it out.
        outputs: Entry point of a `verification.output_kinds.OutputKind`: which output files are of this kind, and how
            one is checked; None where nothing is verified.
        title: Title of its sections in reports: `Embedding`; empty for the flow's name.
        markdown: Entry point of `(OutputFacts) -> str`, Markdown about the outputs for the Prefect UI; None where there
            is none.
        pictures: Entry point of `(OutputFacts) -> Mapping[str, str]`, SVG pictures of the outputs by their titles;
            None where there are none.
    """

    flow: str
    field: str
    config: type[Job]
    summary: str
    run: str
    workload: str
    plan: str | None = None
    instead_of_plan: str = ""
    command: str = "flows.running.script:job_command"
    old_command: str | None = None
    rounds: Sequence[str] = ()
    course: str | None = None
    has_speed: bool = True
    step: str | None = None
    is_optional_step: bool = False
    outputs: str | None = None
    title: str = ""
    markdown: str | None = None
    pictures: str | None = None

    @property
    def command_name(self) -> str:
        """Name of its command: `train-head`."""
        return self.flow.replace("_", "-")


_kinds = [
    JobKind(
        flow="embed",
        title="Embedding",
        field="input_dir",
        config=EmbeddingJob,
        summary="Embed a corpus: one HDF5 file for each source file.",
        run="flows.embed:embed",
        workload="mlfilter_core.embedding.work:embedding_workload",
        plan="mlfilter_core.plan.embedding_plan:plan_embedding",
        step="embed",
        outputs="mlfilter_core.verification.embedding_files:FILES_OF_EMBEDDINGS",
        pictures="mlfilter_core.run_report.pictures:pictures_of_embeddings",
        old_command="run_embedding_pipeline",
    ),
    JobKind(
        flow="cluster",
        title="Clusters",
        field="n_clusters",
        config=ClusterJob,
        summary="Group the documents of a corpus by topic: one file of clusters for each HDF5 file.",
        run="flows.cluster:cluster",
        workload="mlfilter_core.clustering.work:cluster_workload",
        instead_of_plan="it takes as long as reading the embeddings twice",
        rounds=("sample", "centroids"),
        course="mlfilter_core.clustering.work:cluster_course",
        outputs="mlfilter_core.verification.cluster_files:FILES_OF_CLUSTERS",
        pictures="mlfilter_core.run_report.pictures:pictures_of_clusters",
        markdown="mlfilter_core.run_report.summaries:summary_of_clusters",
        step="cluster",
        is_optional_step=True,
    ),
    JobKind(
        flow="train_head",
        title="Training",
        field="heads",
        config=TrainingJob,
        summary="Train heads on labelled embeddings: one safetensors file for each head.",
        run="flows.train_head:train_head",
        workload="mlfilter_core.training.work:training_workload",
        plan="mlfilter_core.plan.training_plan:plan_training",
        has_speed=False,
        outputs="mlfilter_core.verification.trained_heads:TRAINED_HEADS",
        pictures="mlfilter_core.run_report.pictures:pictures_of_heads",
        markdown="mlfilter_core.run_report.summaries:summary_of_heads",
        step="train",
        is_optional_step=True,
    ),
    JobKind(
        flow="annotate",
        title="Scoring",
        field="regression_head_checkpoints",
        config=AnnotationJob,
        summary="Score embeddings: one annotated JSONL file for each HDF5 file.",
        run="flows.annotate:annotate",
        workload="mlfilter_core.annotating.work:annotation_workload",
        plan="mlfilter_core.plan.annotation_plan:plan_annotation",
        step="annotate",
        outputs="mlfilter_core.verification.annotated_files:ANNOTATED_FILES",
        pictures="mlfilter_core.run_report.pictures:pictures_of_annotations",
        old_command="run_annotation_pipeline",
    ),
    JobKind(
        flow="deduplicate",
        title="Duplicates",
        field="threshold",
        config=DeduplicationJob,
        summary="Remove near-duplicates of a corpus: one file of kept documents for each HDF5 file.",
        run="flows.deduplicate:deduplicate",
        workload="mlfilter_core.deduplication.work:deduplicate_workload",
        instead_of_plan="`ml_filter deduplicate --dry-run` shows what thresholds would remove",
        command="flows.running.deduplicate_command:deduplicate_command",
        rounds=("divide", "compare", "group"),
        course="mlfilter_core.deduplication.work:deduplicate_course",
        outputs="mlfilter_core.verification.duplicate_files:FILES_OF_DUPLICATES",
        markdown="mlfilter_core.run_report.summaries:summary_of_duplicates",
        step="deduplicate",
        is_optional_step=True,
    ),
    JobKind(
        flow="filter",
        title="Filtering",
        field="keep",
        config=FilterJob,
        summary="Keep the best documents of annotated files: one file of documents for each.",
        run="flows.filter:filter",
        workload="mlfilter_core.filtering.work:filter_workload",
        instead_of_plan="`ml_filter filter --dry-run` shows what it would keep",
        command="flows.running.filter_command:filter_command",
        rounds=("survey",),
        course="mlfilter_core.filtering.work:filter_course",
        outputs="mlfilter_core.verification.filtered_files:FILTERED_FILES",
        pictures="mlfilter_core.run_report.pictures:pictures_of_limits",
        markdown="mlfilter_core.run_report.summaries:summary_of_filter",
        step="filter",
        is_optional_step=True,
    ),
]


def kinds() -> tuple[JobKind, ...]:
    """Returns all rows, in the order in which a pipeline runs them."""
    return tuple(_kinds)


def register(kind: JobKind) -> None:
    """Adds a row, for this process: a kind of job that another package brings.

    Raises:
        ValueError: A row has the same flow, field or config.
    """
    for other in _kinds:
        if {kind.flow, kind.field, kind.config} & {other.flow, other.field, other.config}:
            raise ValueError(f"job kind {kind.flow} has the flow, field or config of job kind {other.flow}")
    _kinds.append(kind)


def kind_of_flow(flow: str) -> JobKind | None:
    """Returns the kind whose flow or round has this name; None if there is none."""
    return next((kind for kind in _kinds if flow == kind.flow or flow in kind.rounds), None)


def kind_of_job(job: Job) -> JobKind:
    """Returns the kind of a job.

    Raises:
        LookupError: Its class is in no row.
    """
    for kind in _kinds:
        if type(job) is kind.config:
            return kind
    raise LookupError(f"no kind of job has the class {type(job).__name__}; see mlfilter_core.job_kinds.register")


def workload_of(job: Job) -> Workload[Any]:
    """Returns what a job is to do, after its rounds.

    Raises:
        MlfilterError: As the function of its kind.
    """
    workload: Workload[Any] = load_entry_point(kind_of_job(job).workload)(job)
    return workload


def course_of(job: Job) -> Iterator[Workload[Any]]:
    """Yields what a job is to do: its rounds, if any, then its workload. Each begins after the one before has ended.

    Raises:
        MlfilterError: As the function of its kind.
    """
    course = kind_of_job(job).course
    if course is None:
        yield workload_of(job)
    else:
        yield from load_entry_point(course)(job)


def load_any_job(config: Path, overrides: Mapping[str, Any]) -> Job:
    """Returns the job of a file of any kind; if its kind is not recognised, it is read as an embedding job.

    Raises:
        ConfigError: As `load_job_of`.
    """
    return load_job_of(config, _config_of, overrides)


def load_job_of_kind(config: Path, kind: JobKind, overrides: Mapping[str, Any]) -> Job:
    """Returns the job of a file that must be of one kind.

    Raises:
        ConfigError: The file is of another kind; or as `load_job_of`.
    """

    def config_of(content: Mapping[str, Any]) -> type[Job]:
        fields = _fields(content)
        other = next((other for other in _kinds if other.field in fields), kind)
        if kind.field not in fields and other is not kind:
            raise ConfigError(
                f"{config} is a job file of {other.flow}, as it has params.{other.field}; run it with `ml_filter "
                f"{other.command_name}`, or give one of {kind.flow}"
            )
        return kind.config

    return load_job_of(config, config_of, overrides)


def _config_of(content: Mapping[str, Any]) -> type[Job]:
    fields = _fields(content)
    return next((kind.config for kind in _kinds if kind.field in fields), EmbeddingJob)


def _fields(content: Mapping[str, Any]) -> Mapping[str, Any]:
    params = content.get("params")
    return params if isinstance(params, Mapping) else {}


def load_entry_point(name: str) -> Any:
    """Returns what `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
