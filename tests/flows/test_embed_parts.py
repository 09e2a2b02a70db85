"""Large files through the embedding flow: parts as tasks, and one of them that fails or kills its worker."""

import json
import os
import signal
from pathlib import Path

import dask
import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.embed import embed
from flows.running.report import FilesFailedError
from mlfilter_core.embedding import work as embed_work_module
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.work import EmbedWork, embed_work
from mlfilter_core.files.task_files import WHOLE, TaskFile
from mlfilter_core.verification.embedding_files import check_embeddings
from mlfilter_core.verification.output_kinds import RelatedFiles, VerifyRequest
from tests.flows.conftest import WriteJob
from tests.flows.dask_workers import last_task_runs

N = 300


@pytest.fixture
def large(corpus: Path) -> Path:
    records = [{"id": f"d{i}", "text": f"ba be bi {i} " * (i % 7 + 1)} for i in range(N)]
    path = corpus / "a/large.jsonl"
    path.write_text("\n".join(["{broken", *map(json.dumps, records)]))
    return path


def test_parts_of_a_file_are_tasks_and_make_one_output(
    embed_job: WriteJob, large: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    job = embed_job(split=3, max_rejected_fraction=0.5)
    report = embed(job, {"params.glob_pattern": "a/*"})
    assert [(row.source, row.status) for row in report.reports] == [
        ("a/large.jsonl", "embedded"),
        ("a/x.jsonl", "embedded"),
    ]
    assert (report.reports[0].documents, report.reports[0].rejected, report.reports[0].resumed) == (N, 1, 0)
    names = {run.name for run in last_task_runs(client, 8)}
    assert names == {
        f"embed a/{file}.jsonl{part}" for file in ("large", "x") for part in ("", " (1 of 3)", " (2 of 3)", " (3 of 3)")
    }
    rows = [json.loads(line) for line in (report.logs / "files.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == ["a/large.jsonl", "a/x.jsonl"]
    check = check_embeddings("embeddings/a/large.h5", VerifyRequest(tmp_path / "out"), RelatedFiles())
    assert not check.problems and check.counts.lines == N + 1
    assert {row.status for row in embed(job, {"params.glob_pattern": "a/*"}).reports} == {"skipped"}


class LosingWork(EmbedWork):
    """Work whose parts are gone when it reports them, like those that another run has joined."""

    def run(self, file: TaskFile) -> EmbedReport:
        report = super().run(file)
        if file.part != WHOLE:
            Path(report.output).unlink()
        return report


def test_a_part_that_is_gone_is_made_when_its_file_is_joined(
    embed_job: WriteJob, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_work_module, "embed_work", lambda params: LosingWork(**vars(embed_work(params))))
    job = embed_job(split=3, max_rejected_fraction=0.5)
    (report,) = embed(job, {"params.glob_pattern": "a/large*"}).reports
    assert (report.status, report.documents, report.rejected) == ("embedded", N, 1)


class DeadlyWork(EmbedWork):
    """Work that dies on one part."""

    def run(self, file: TaskFile) -> EmbedReport:
        if file.part.number == 2 and file.part.of > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(file)


def test_a_part_that_kills_its_worker_fails_its_file_and_the_others_stay(
    embed_job: WriteJob, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = embed_job(split=3, max_rejected_fraction=0.5)
    with monkeypatch.context() as patched:
        patched.setattr(embed_work_module, "embed_work", lambda params: DeadlyWork(**vars(embed_work(params))))
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": 0}),
            pytest.raises(FilesFailedError, match=r"1 of 1 files failed(?s:.*)a/large.jsonl: its worker died while"),
        ):
            embed(job, {"params.glob_pattern": "a/large*"})
    parts = tmp_path / "out" / "embeddings/a/.large.h5.parts"
    assert (parts / "1-of-3.h5").exists() and not (parts / "2-of-3.h5").exists()
    (report,) = embed(job, {"params.glob_pattern": "a/large*"}).reports
    assert (report.documents, report.rejected) == (N, 1)
    assert 0 < report.resumed < N
    assert not parts.exists()
