"""What is known of outputs without opening them, beside the real outputs of every kind of job."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.job_kinds import workload_of
from mlfilter_core.run_report import read_outputs, stating_work
from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.known_outputs import KNOWN_DIR
from mlfilter_core.run_report.page import render
from mlfilter_core.run_report.pictures import pictures_of
from mlfilter_core.run_report.read_outputs import TooManyToOpenError
from mlfilter_core.run_report.stating_work import stating
from mlfilter_core.run_report.write_report import as_json, write_report
from mlfilter_core.verification.output_kinds import output_kinds
from mlfilter_core.work.workload import Workload, run_files
from tests import pipeline_folder
from tests.deduplicated_folder import deduplicate
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps
from tests.pipeline_folder import job, make_pipeline

N_FILES = 3  # of each kind; two of them are not in the sample


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The output folder of a pipeline, which tests copy; `inline` beside it has annotated files alone."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline(folder, tiny_model)
    run_inline(folder, tiny_model)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of these folders, whose reports read as those of very many outputs do."""
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.setattr(read_outputs, "MOST_READ", 2)
    for module in (read_outputs, stating_work):
        monkeypatch.setattr(module, "MOST_SAMPLED", 1)
    yield tmp_path / "run"


@pytest.fixture(params=["out", "inline"])
def out(folder: Path, request: pytest.FixtureRequest) -> Path:
    return folder / str(request.param)


def run_inline(folder: Path, model: Path) -> None:
    """Embeds and scores a corpus, and keeps the scores alone."""
    heads = {name: folder / "out" / "heads" / f"{name}.safetensors" for name in ("good", "fine")}
    inline = {"annotate_inline": {"regression_head_checkpoints": heads, "device": "cpu"}, "keep_embeddings": False}
    source = {"input_dir": folder / "corpus", "text_field": "text", "embedding_model": model, "max_batch_tokens": 512}
    asked = job(EmbeddingJob, {**source, **inline, "output_dir": folder / "inline"})
    run_stating(workload_of(asked), folder / "inline")


def run_stating(workload: Workload[Any], output_dir: Path) -> None:
    """Runs a workload as a flow does that has very many files."""
    workload.work.prepare(workload.files)
    with stating(workload.work, output_dir, "train", len(workload.files)) as (work, remember):
        for report in run_files(workload.files, work):
            remember(report)


def facts_of(out: Path, **options: Any) -> dict[str, Any]:
    """Returns the facts of a report, without its time."""
    facts: dict[str, Any] = json.loads(as_json(collect(out, **options)))
    del facts["made"]
    return facts


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The outputs that are opened from now on."""
    found: list[str] = []
    read = read_outputs.read_output

    def reading(kind: Any, path: str, request: Any) -> Any:
        found.append(path)
        return read(kind, path, request)

    monkeypatch.setattr(read_outputs, "read_output", reading)
    return found


def test_a_report_after_another_opens_the_sample_alone_and_has_the_same_facts(out: Path, opened: list[str]) -> None:
    expected = facts_of(out)
    write_report(out)
    opened.clear()
    assert facts_of(out) == expected
    heads = [f"heads/{name}.safetensors" for name in ("fine", "good")]  # their facts are not remembered
    sample = ["embeddings/a/x.h5", *heads, "annotated_data/a/x.jsonl", "filtered/a/x.jsonl"]
    assert opened == (sample if out.name == "out" else ["annotated_data/a/x.jsonl"])
    assert expected["totals"]["documents"] == N_FILES * 30
    assert expected["scores"]["n"] == 30


def test_files_of_clusters_are_counted_without_opening_them(folder: Path, opened: list[str]) -> None:
    run_steps(cluster_job(folder))
    expected = facts_of(folder / "out")
    write_report(folder / "out")
    opened.clear()
    assert facts_of(folder / "out") == expected
    assert [path for path in opened if path.startswith("clusters")] == ["clusters/a/x.parquet"]
    assert expected["clustered"]["files"] == N_FILES and expected["clustered"]["documents"] == N_FILES * 30


def test_files_of_duplicates_are_counted_without_opening_them(folder: Path, opened: list[str]) -> None:
    run_steps(cluster_job(folder))
    deduplicate(folder / "out")
    expected = facts_of(folder / "out")
    write_report(folder / "out")
    opened.clear()
    assert facts_of(folder / "out") == expected
    assert [path for path in opened if path.startswith("duplicates")] == ["duplicates/a/x.parquet"]
    found = expected["deduplicated"]
    assert found["files"] == N_FILES and 0 < found["kept"] < found["documents"] == N_FILES * 30
    assert 0 < found["kept_tokens"] < found["tokens"]


def test_the_statistics_say_what_they_are_of(folder: Path) -> None:
    facts = collect(folder / "out")
    assert {name: str(sample) for name, sample in facts.samples.items()} == {
        "document_tokens": "1 of 3 files",
        "scores": "1 of 3 files",
    }
    assert facts.document_tokens.n == 30 and facts.totals.documents == 90
    assert "the statistics of scores are those of 1 of 3 files, evenly spaced; counts are of all files" in facts.notices
    page = render(facts)
    assert "Scores of 30 documents, from 1 of 3 files" in page
    assert "90 % of the documents have at most 10, from 1 of 3 files. Truncated: 0" in " ".join(page.split())
    assert list(pictures_of(facts, "embed")) == ["Tokens per document, from 1 of 3 files"]


def test_few_outputs_are_all_opened_and_have_no_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_outputs, "MOST_READ", 100)
    facts = collect(folder / "out", remembers=True)
    assert facts.samples == {} and facts.document_tokens.n == facts.totals.documents == 90
    assert not (folder / "out" / KNOWN_DIR).exists()


@pytest.mark.usefixtures("folder")
def test_a_run_of_many_files_states_what_it_makes(
    tmp_path: Path, tiny_model: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = tmp_path / "stated"
    monkeypatch.setattr(pipeline_folder, "run", lambda workload: run_stating(workload, stated / "out"))
    make_pipeline(stated, tiny_model)
    run_inline(stated, tiny_model)
    for name, n_heads in (("out", 2), ("inline", 0)):
        opened.clear()
        found = facts_of(stated / name, most_opened=max(0, n_heads - 1))
        assert len(opened) == n_heads + (3 if name == "out" else 1)
        shutil.rmtree(stated / name / KNOWN_DIR)
        assert facts_of(stated / name) == found


Change = Callable[[Path], None]


@pytest.mark.parametrize(
    "name", ["embeddings/y.h5", "annotated_data/y.jsonl", "annotated_data/.provenance/y.jsonl.json"]
)
@pytest.mark.parametrize(
    "change",
    [lambda path: path.touch(), lambda path: path.write_bytes(b"{}"), lambda path: path.unlink()],
    ids=["touched", "broken", "removed"],
)
def test_a_changed_output_is_opened_again(name: str, change: Change, folder: Path, opened: list[str]) -> None:
    out = folder / "out"
    write_report(out)
    change(out / name)
    opened.clear()
    found = facts_of(out)
    is_gone = name.startswith("embeddings") and not (out / name).exists()
    assert is_gone or name.replace(".provenance/", "").removesuffix(".json") in opened
    shutil.rmtree(out / KNOWN_DIR)
    assert found == facts_of(out)


def test_content_that_was_replaced_with_size_and_time_of_before_is_seen(folder: Path, opened: list[str]) -> None:
    out = folder / "out"
    write_report(out)
    path = out / "annotated_data" / ".provenance" / "y.jsonl.json"
    status = path.stat()
    path.write_bytes(
        path.read_bytes().replace(b'"documents":30', b'"documents":31').replace(b'"documents": 30', b'"documents": 31')
    )
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert facts_of(out)["totals"]["annotated"] == 91


def test_a_broken_ledger_or_another_group_means_that_outputs_are_opened(out: Path, opened: list[str]) -> None:
    expected = facts_of(out)
    n_outputs = len(opened)
    write_report(out)
    for segment in (out / KNOWN_DIR).iterdir():
        segment.write_bytes(segment.read_bytes().replace(b'"common"', b'"comnon"'))
    opened.clear()
    assert facts_of(out) == expected
    assert len(opened) == n_outputs
    shutil.rmtree(out / KNOWN_DIR)
    write_report(out)
    opened.clear()
    facts_of(out, group="other")
    assert len(opened) == n_outputs


def test_an_entry_without_what_it_has_in_common_with_others_is_of_no_use(out: Path, opened: list[str]) -> None:
    expected = facts_of(out)
    n_outputs = len(opened)
    write_report(out)
    for segment in (out / KNOWN_DIR).iterdir():
        lines = segment.read_bytes().splitlines(keepends=True)
        segment.write_bytes(b"".join(line for line in lines if b'["\\u0000' not in line))
    opened.clear()
    assert facts_of(out) == expected
    assert len(opened) == n_outputs


def test_a_caller_can_refuse_to_open_many(out: Path) -> None:
    with pytest.raises(TooManyToOpenError):
        collect(out, most_opened=1)
    write_report(out)
    collect(out, most_opened=1)  # of two heads


def test_facts_are_remembered_by_a_written_report_alone(out: Path) -> None:
    collect(out)
    assert not (out / KNOWN_DIR).exists()
    write_report(out)
    assert (out / KNOWN_DIR).exists()


def test_every_kind_but_heads_says_which_files_it_reads() -> None:
    assert [flow for flow, kind in output_kinds().items() if kind.evidence is None] == ["train_head"]
