"""A fifth kind of job, defined here and in count_outputs.py: a kind needs nothing but its row in the table."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from pydantic import Field
from typer.testing import CliRunner

from flows.commands.app import build_app
from flows.pipeline import pipeline
from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import RunReport
from flows.running.run_files import run_job
from flows.running.script import command_of
from mlfilter_core import job_kinds
from mlfilter_core.config.execution import Job
from mlfilter_core.config.job_files import load_job
from mlfilter_core.config.written import Written
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.job_kinds import JobKind, kind_of_flow, kind_of_job, kinds, load_any_job, load_entry_point, register
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Plan, PlannedWorkers, Section
from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.facts import OutputFacts
from mlfilter_core.run_report.pictures import pictures_of
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import verify
from mlfilter_core.work.workload import ReportDefaults, Work, Workload
from tests.flows.dask_workers import last_task_runs


class CountParameters(Written):
    count_lines_of: Path = Field(description="Folder of text files.")
    output_dir: Path = Field(description="Counts go to counted/ in it.")


class CountJob(Job):
    params: CountParameters = Field(description="What to count.")


@dataclass(frozen=True)
class CountReport(ReportDefaults):
    PRINTED: ClassVar[Sequence[str]] = ("documents", "characters", "seconds")
    SUMMED: ClassVar[Sequence[str]] = ("documents", "characters")
    NO_COLUMNS: ClassVar[Sequence[str]] = ("secret",)

    text: str
    output: str
    status: Literal["counted", "skipped"]
    documents: int
    characters: int
    secret: str = ""
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0

    @staticmethod
    def remarks_on(reports: Sequence[Any]) -> list[str]:
        return [f"longest: {max(reports, key=lambda report: report.characters).text}"]


@dataclass(frozen=True)
class CountWork(Work[CountReport]):
    output_dir: Path

    def finished(self, file: TaskFile, read_content: bool) -> CountReport | None:
        output = self._output(file)
        if not output.exists():
            return None
        lines, characters = map(int, output.read_text().split())
        return CountReport(file.relative, str(output), "skipped", lines, characters)

    def make(self, file: TaskFile) -> CountReport:
        text = file.path.read_text()
        lines = len(text.splitlines())
        with publish(self._output(file)) as temporary:
            temporary.write_text(f"{lines} {len(text)}")
        return CountReport(file.relative, str(self._output(file)), "counted", lines, len(text), seconds=0.1)

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return (self._output(file),)

    def _output(self, file: TaskFile) -> Path:
        return file.output(self.output_dir, ".count")


def count_workload(job: CountJob) -> Workload[Any]:
    folder = job.params.output_dir / "counted"
    files = find_files(job.params.count_lines_of, "**/*", (".txt",))
    return Workload("count", files, CountWork(folder), folder)


@flow(name="count", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
def count(config: Path | CountJob, overrides: Mapping[str, Any] = {}) -> RunReport:
    """Counts lines."""
    return run_job("count", count_workload, load_job(config, CountJob, overrides))


def plan_count(job: CountJob, workers: PlannedWorkers, seed: int, findings: Findings) -> Plan:
    n_files = len(count_workload(job).files)
    section = Section("files", {"found": n_files}, [("files", f"{n_files} to count")])
    return Plan("count", [section], findings.problems, findings.warnings)


def pictures_of_counts(facts: OutputFacts) -> Mapping[str, str]:
    return {"Counts": f'<svg viewBox="0 0 {len(facts.files)} 1"></svg>'}


@pytest.fixture(autouse=True)
def count_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobKind]:
    monkeypatch.setattr(job_kinds, "_kinds", list(kinds()))
    kind = JobKind(
        flow="count",
        field="count_lines_of",
        config=CountJob,
        summary="Count the lines of text files.",
        run=f"{__name__}:count",
        workload=f"{__name__}:count_workload",
        plan=f"{__name__}:plan_count",
        outputs="tests.flows.count_outputs:COUNTS",
        pictures=f"{__name__}:pictures_of_counts",
    )
    register(kind)
    yield kind


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    for name, text in (("a/x.txt", "one\ntwo\n"), ("b/y.txt", "one\ntwo\nthree\n")):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    params = {"count_lines_of": str(tmp_path / "texts"), "output_dir": str(tmp_path / "out")}
    path = tmp_path / "count.yaml"
    path.write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": 1}}))
    return path


def ml_filter(*arguments: str | Path) -> str:
    done = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_its_job_files_are_told_from_others(job_file: Path, count_kind: JobKind) -> None:
    job = load_any_job(job_file, {})
    assert isinstance(job, CountJob)
    assert kind_of_job(job) is count_kind
    assert kind_of_flow("count") is count_kind


def test_its_command_runs_its_flow_over_every_file_once(
    job_file: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    shown = ml_filter("count", "--config-file-path", job_file)
    assert "count: 2 files" in shown
    assert "longest: b/y.txt" in shown
    assert (tmp_path / "out" / "counted" / "b" / "y.count").read_text() == "3 14"
    assert {run.name for run in last_task_runs(client, 2)} == {"count a/x.txt", "count b/y.txt"}
    (log,) = (tmp_path / "out" / "logs").glob("count-*/files.jsonl")
    assert '"characters":14' in log.read_text()
    assert "secret" not in log.read_text()
    assert "skipped" in ml_filter("count", "--config", job_file)


def test_its_outputs_are_verified_and_reported(job_file: Path, tmp_path: Path) -> None:
    count(job_file)
    out = tmp_path / "out"
    facts = collect(out)
    assert {(file.flow, file.file, file.documents) for file in facts.files} == {
        ("count", "a/x.txt", 2),
        ("count", "b/y.txt", 3),
    }
    assert "Counts" in pictures_of(facts, "count")
    ml_filter("report", out)
    assert "b/y.txt" in (out / "report" / "index.html").read_text()
    sound = verify(VerifyRequest(out), n_workers=1)
    assert sound.is_right
    assert "2 counts" in sound.summary()
    (out / "counted" / "a" / "x.count").write_text("2")
    (wrong,) = verify(VerifyRequest(out), n_workers=1).wrong
    assert wrong.problems == ("has 1 numbers instead of 2; count again",)


def test_it_has_a_plan(job_file: Path) -> None:
    assert "2 to count" in ml_filter("plan", "--config", job_file)


def test_another_kind_with_its_field_is_refused(count_kind: JobKind) -> None:
    with pytest.raises(ValueError, match="job kind sum has the flow, field or config of job kind count"):
        register(dataclasses.replace(count_kind, flow="sum", config=Job))


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.flow)
def test_every_row_names_what_there_is(kind: JobKind) -> None:
    entry_points = (kind.run, kind.workload, kind.plan, kind.command, kind.outputs, kind.pictures)
    assert all(load_entry_point(name) for name in entry_points if name is not None)
    assert kind.field in kind.config.model_fields["params"].annotation.model_fields  # type: ignore[union-attr]
    assert callable(command_of(kind.flow))


def test_the_pipeline_has_the_parameters_of_its_steps() -> None:
    steps = [kind.step for kind in kinds() if kind.step is not None]
    assert set(signature(pipeline.fn).parameters) == {f"{s}_{what}" for s in steps for what in ("config", "overrides")}
