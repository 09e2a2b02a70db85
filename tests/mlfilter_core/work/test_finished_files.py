"""The ledger of finished files, beside the real work of every kind of job."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.errors import FileError, OtherRequestError, OutputConflictError
from mlfilter_core.files import ledger as ledger_module
from mlfilter_core.files.ledger import SUFFIX
from mlfilter_core.job_kinds import workload_of
from mlfilter_core.work.finished_files import FOLDER, FinishedFiles
from mlfilter_core.work.workload import Workload, run_files
from tests.pipeline_folder import KEEP, job, make_pipeline

KINDS = ("embed", "annotate", "filter", "annotated while embedding")
Make = Callable[..., Workload[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder of a pipeline, which tests copy: a ledger is of no use in a copy with other times."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline(folder, tiny_model)
    return folder


@pytest.fixture
def make(made: Path, tmp_path: Path, tiny_model: Path) -> Make:
    """Returns the workload of a kind of job over a copy of the pipeline; keyword arguments are parameters."""
    shutil.copytree(made, tmp_path / "run")
    out = tmp_path / "run" / "out"
    source = {"input_dir": tmp_path / "run" / "corpus", "text_field": "text", "embedding_model": tiny_model}
    labels = {"keys_to_index": ["language"], "save_labels": True, "label_key": "label", "id_key": "id"}
    embedding = {**source, **labels, "max_batch_tokens": 512}
    heads = {"regression_head_checkpoints": {name: out / "heads" / f"{name}.safetensors" for name in ("good", "fine")}}

    def make(kind: str, **params: Any) -> Workload[Any]:
        of_outputs = {"embeddings_directory": out / "embeddings", "output_dir": out}
        if kind == "embed":
            asked = job(EmbeddingJob, {**embedding, "output_dir": out, **params})
        elif kind == "annotated while embedding":
            inline = {"annotate_inline": {**heads, "device": "cpu"}, "keep_embeddings": False}
            asked = job(EmbeddingJob, {**embedding, "output_dir": tmp_path / "inline", **inline, **params})
        elif kind == "annotate":
            asked = job(AnnotationJob, {**of_outputs, **heads, "device": "cpu", **params})
        else:
            annotated = {"annotated_directory": out / "annotated_data", "keep": KEEP, "write_dropped": True}
            asked = job(FilterJob, {**of_outputs, **annotated, **params})
        return workload_of(asked)

    return make


def ledger_of(workload: Workload[Any]) -> Path:
    return workload.output_dir / FOLDER / workload.flow


def run(workload: Workload[Any]) -> None:
    """Runs a workload as a flow does."""
    with FinishedFiles(workload) as finished:
        to_do = [file for file in workload.files if finished.find(file) is None]
        for file, report in zip(to_do, run_files(to_do, workload.work), strict=True):
            finished.add(file, report)


def found(workload: Workload[Any]) -> list[Any]:
    with FinishedFiles(workload) as finished:
        return [finished.find(file) for file in workload.files]


def unread(workload: Workload[Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Returns what is found without a look at the outputs; None for files whose outputs it would take to tell."""
    with monkeypatch.context() as patched:
        patched.setattr(type(workload.work), "finished", lambda *_, **__: None)
        return found(workload)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remove", [True, False], ids=["made by this run", "found by this run"])
def test_the_next_run_opens_no_output_and_reports_the_same(
    kind: str, remove: bool, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = make(kind)
    for path in [path for file in workload.files if remove for path in workload.work.outputs(file)]:
        path.unlink(missing_ok=True)
    run(workload)
    expected = [workload.work.finished(file, read_content=False) for file in workload.files]
    assert None not in expected
    told = unread(workload, monkeypatch)
    assert told == expected
    assert list(map(repr, told)) == list(map(repr, expected)), "also the types"
    assert found(workload) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_any_changed_file_is_looked_at_again(kind: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(kind)
    run(workload)
    (first, *others), n_changed = workload.files, 0
    for path in workload.work.evidence(first):
        existed = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if existed else b""
        status = path.stat() if existed else None
        for change in (lambda: path.write_bytes(content[:-1] or b"x"), path.touch, path.unlink):  # noqa: B023
            change()
            if existed or path.exists():
                told = unread(workload, monkeypatch)
                assert told[0] is None, f"{path.name} was changed"
                assert None not in told[1:], f"only {path.name} was changed"
                n_changed += 1
        if status is not None:
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert unread(workload, monkeypatch)[0] is None, "written with the size and the time of before"
            assert None not in found(workload), "and is as before"
    assert n_changed >= 6
    assert others


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("embed", {"max_length": 32}),
        ("embed", {"embedding_dtype": "float16"}),
        ("annotate", {"output_keys": ["document_id", "language"]}),
        ("filter", {"keep": {"scores": {"good": {"percentile": 70}}}, "write_dropped": True}),
    ],
)
def test_another_request_is_not_taken_for_the_one_that_made_the_outputs(
    kind: str, params: dict[str, Any], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make(kind))
    other = make(kind, **params) if kind != "filter" else _filter_by_other_limits(make, params)
    assert set(unread(other, monkeypatch)) == {None}
    if kind != "filter":
        with pytest.raises(OtherRequestError):
            found(other)


def _filter_by_other_limits(make: Make, params: dict[str, Any]) -> Workload[Any]:
    from mlfilter_core.filtering.work import survey_workload

    surveyed = make("filter")
    asked = job(FilterJob, json.loads(json.dumps({**surveyed.work.params.model_dump(mode="json"), **params})))
    run(survey_workload(asked))
    return workload_of(asked)


def test_outputs_that_another_format_of_a_filter_left_are_seen(make: Make) -> None:
    workload = make("filter")
    run(workload)
    output = workload.work.outputs(workload.files[0])[0]
    output.with_suffix(".jsonl.zst").write_bytes(b"older")
    with pytest.raises(OutputConflictError, match=r"\.jsonl\.zst was made by another request"):
        found(workload)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_ledger_or_with_a_broken_one_the_outputs_decide(kind: str, make: Make) -> None:
    workload = make(kind)
    run(workload)
    expected = found(workload)
    assert None not in expected
    for segment in ledger_of(workload).glob(f"*{SUFFIX}"):
        segment.write_bytes(segment.read_bytes()[:-40] + os.urandom(50))
    assert found(workload) == expected
    shutil.rmtree(ledger_of(workload))
    assert found(workload) == expected
    assert found(workload) == expected, "by the ledger that the run before left"
    assert len(list(ledger_of(workload).iterdir())) == 1


def test_a_copied_folder_is_right_with_the_ledger_that_came_along(make: Make, tmp_path: Path) -> None:
    workload = make("embed")
    run(workload)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=shutil.copy2)
    out = tmp_path / "copy" / "out"
    moved = job(EmbeddingJob, {**workload.work.params.model_dump(mode="json"), "output_dir": out})
    reports = found(workload_of(moved))
    assert [Path(report.output).is_relative_to(out) for report in reports] == [True] * 3
    truncated = Path(reports[0].output)
    truncated.write_bytes(truncated.read_bytes()[:-100])
    with pytest.raises(FileError):
        found(workload_of(moved))


def test_a_plan_leaves_no_ledger(make: Make) -> None:
    workload = make("embed")
    shutil.rmtree(ledger_of(workload), ignore_errors=True)
    with FinishedFiles(workload, remembers=False) as finished:
        assert None not in [finished.find(file) for file in workload.files]
    assert not ledger_of(workload).exists()


@pytest.mark.parametrize("changed", ["source", "output"])
def test_a_file_that_changes_while_it_is_compared_is_not_remembered(
    changed: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = make("embed" if changed == "source" else "filter")
    file = workload.files[0]
    path = file.path if changed == "source" else workload.work.outputs(file)[0]
    finished = type(workload.work).finished

    def changing(*args: Any, **kwargs: Any) -> Any:
        report = finished(*args, **kwargs)
        if changed == "source":
            path.touch()
        else:
            path.write_bytes(path.read_bytes()[:-1])
        return report

    monkeypatch.setattr(type(workload.work), "finished", changing)
    assert workload.work.run(file).versions == ()


def test_outputs_that_another_kind_of_job_replaces_are_not_remembered(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = make("annotated while embedding")
    file = workload.files[0]
    made = type(workload.work).make
    assert workload.work.run(file).versions != ()
    for path in workload.work.outputs(file):
        path.unlink(missing_ok=True)

    def replaced(work: Any, task: Any) -> Any:
        report = made(work, task)
        annotated = Path(report.output)
        annotated.write_text(annotated.read_text().replace("score_", "other_"))
        return report

    monkeypatch.setattr(type(workload.work), "make", replaced)
    assert workload.work.run(file).versions == ()


def test_a_file_that_cannot_be_looked_up_is_for_the_work_to_report(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make("embed")
    run(workload)
    expected = found(workload)

    def fail(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(ledger_module, "_version", fail)
    assert found(workload) == expected
    assert workload.work.run(workload.files[0]).versions == ()
