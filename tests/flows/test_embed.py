import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from safetensors.torch import save_file

from flows.annotate import annotate
from flows.embed import embed
from flows.running import report as report_module
from flows.running import run_files as run_files_module
from flows.running.report import FilesFailedError, print_report
from flows.watching import logs as logs_module
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.embedding import work as embed_work_module
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.work import EmbedWork, embed_work, embedding_workload
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.errors import ConfigError, EncoderError, HeadError, OtherSettingsError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.run_report import read_outputs, stating_work
from mlfilter_core.run_report.collect import collect
from mlfilter_core.work.run_log import RunLog
from tests.flows.conftest import WriteJob
from tests.flows.dask_workers import last_task_runs


def test_the_flow_equals_the_direct_computation(
    embed_job: WriteJob, corpus: Path, tmp_path: Path, tiny_encoder: Encoder
) -> None:
    report = embed(embed_job(keys_to_index=["id"]))
    assert [row.source for row in report.reports] == ["a/x.jsonl", "b/x.jsonl", "b/y.jsonl"]
    assert report.totals()["documents"] == 21
    for name in ("a/x", "b/x", "b/y"):
        records = [json.loads(line) for line in (corpus / f"{name}.jsonl").read_text().splitlines()]
        with EmbeddingFile(tmp_path / "out" / "embeddings" / f"{name}.h5", "train") as file:
            assert file.column("document_id", slice(0, None)) == [record["id"] for record in records]
            assert file.column("index/id", slice(0, None)) == [record["id"] for record in records]
            expected = tiny_encoder.encode(tiny_encoder.tokenize([record["text"] for record in records])).embeddings()
            np.testing.assert_allclose(file.embeddings(slice(0, None)), expected, atol=1e-5)


def test_a_file_that_fails_does_not_stop_the_others(
    embed_job: WriteJob, corpus: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    (corpus / "a" / "broken.jsonl").write_text('{"text": "fine"}\n[1]\n{"text": 3}\n')
    job = embed_job()
    with pytest.raises(FilesFailedError, match=r"1 of 4 files failed.*\n.*a/broken.jsonl: 2 of 3 lines are rejected"):
        embed(job, {"files_per_task": 1})
    outputs = tmp_path / "out" / "embeddings"
    assert sorted(path.name for path in outputs.rglob("*.h5")) == ["x.h5", "x.h5", "y.h5"]
    states = {run.name: run.state_type for run in last_task_runs(client, 4)}
    assert states["embed a/broken.jsonl"] == "FAILED"
    assert states["embed b/y.jsonl"] == "COMPLETED"

    (corpus / "a" / "broken.jsonl").write_text('{"text": "mended"}\n')
    report = embed(job)
    assert [row.status for row in report.reports] == ["embedded", "skipped", "skipped", "skipped"]


def test_lines_about_single_tasks_of_a_very_large_run_are_in_files_only(
    embed_job: WriteJob,
    corpus: Path,
    tmp_path: Path,
    client: SyncPrefectClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would fill Prefect's database; what failed is there."""
    (corpus / "a" / "broken.jsonl").write_text('{"text": 3}\n')
    monkeypatch.setattr(logs_module, "MOST_TASKS_WITH_LINES", 3)
    with pytest.raises(FilesFailedError):
        embed(embed_job(), {"files_per_task": 1})
    (broken, *_) = last_task_runs(client, 4)
    run = client.read_flow_run(broken.flow_run_id)  # type: ignore[arg-type]
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))

    messages = [log.message for log in client.read_logs(of_run)]
    assert any("a/broken.jsonl: 1 of 1 lines are rejected" in message for message in messages)
    assert not [message for message in messages if "b/x.jsonl" in message or "Completed()" in message]
    lines = (tmp_path / "out" / "logs" / f"embed-{run.name}" / "flow.log").read_text()
    assert "embed: b/x.jsonl embedded, 7 documents" in lines


def test_files_that_share_a_task_fail_by_themselves(
    embed_job: WriteJob, corpus: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    (corpus / "a" / "broken.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(FilesFailedError, match=r"1 of 4 files failed.*\n.*a/broken.jsonl: 1 of 1 lines are rejected"):
        embed(embed_job(), {"files_per_task": 10})
    assert len(list((tmp_path / "out" / "embeddings").rglob("*.h5"))) == 3
    (run,) = last_task_runs(client, 1)
    assert (run.name, run.state_type) == ("embed a/broken.jsonl and 3 more", "FAILED")
    assert run.state is not None
    assert "a/broken.jsonl: 1 of 1 lines" in str(run.state.message)


class DeadlyWork(EmbedWork):
    """Work that dies on one file, like a worker whose node has too little memory."""

    def run(self, file: TaskFile) -> EmbedReport:
        if "poison" in file.relative:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(file)


def test_a_file_that_kills_its_worker_fails_and_those_that_shared_its_task_are_done(
    embed_job: WriteJob, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(corpus / "a" / "x.jsonl", corpus / "a" / "poison.jsonl")
    monkeypatch.setattr(embed_work_module, "embed_work", lambda params: DeadlyWork(**vars(embed_work(params))))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(FilesFailedError, match=r"1 of 4 files failed(?s:.*)a/poison.jsonl: its worker died while"),
    ):
        embed(embed_job(), {"files_per_task": 3})
    outputs = {path.name for path in (tmp_path / "out" / "embeddings").rglob("*.h5")}
    assert outputs == {"x.h5", "y.h5"}


class ForgetfulWork(EmbedWork):
    """Work that reports a file that does not exist."""

    def run(self, file: TaskFile) -> EmbedReport:
        report = super().run(file)
        Path(report.output).unlink()
        return report


def test_a_run_is_not_completed_while_an_output_is_missing(
    embed_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_work_module, "embed_work", lambda params: ForgetfulWork(**vars(embed_work(params))))
    with pytest.raises(FilesFailedError, match=r"3 of 3 files failed(?s:.*)its task ended, but .*x\.h5 does not exist"):
        embed(embed_job())


def test_code_of_a_model_is_named_before_it_is_run(
    embed_job: WriteJob, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = load_job(embed_job(), EmbeddingJob, {"params.trust_remote_code": True})
    embedding_workload(job).work.prepare([])
    assert f"trust_remote_code: code of {tiny_model} is run" in caplog.text


def test_a_job_from_a_form_may_neither_set_what_the_site_refuses_nor_read_secrets(
    embed_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = yaml.safe_load(embed_job().read_text())
    monkeypatch.setenv("MLFILTER_REFUSED_FIELDS", "trust_remote_code")
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    with pytest.raises(ConfigError, match=r"params\.trust_remote_code: refused on this site"):
        embed({**form, "params": {**form["params"], "trust_remote_code": True}})
    with pytest.raises(ConfigError, match=r"params\.prompt: the variable HF_TOKEN looks like a secret"):
        embed(form, {"params.prompt": "${oc.env:HF_TOKEN}"})
    assert not (tmp_path / "out").exists()
    assert embed(form).failures == {}


def test_a_rerun_over_a_finished_tree_starts_no_worker(embed_job: WriteJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = embed_job()
    first = embed(job)

    def no_workers(*arguments: Any) -> None:
        raise AssertionError("workers were started")

    monkeypatch.setattr(run_files_module, "local_workers", no_workers)
    again = embed(job)
    assert [row.status for row in again.reports] == ["skipped"] * 3
    assert again.totals()["tokens"] == first.totals()["tokens"] > 0


def test_another_request_over_finished_files_is_an_error_unless_overwrite(
    embed_job: WriteJob, corpus: Path, tmp_path: Path
) -> None:
    embed(embed_job())
    (corpus / "a/new.jsonl").write_text('{"text": "not yet embedded"}\n')
    with pytest.raises(
        OtherSettingsError, match=r"3 of 4 files are finished with other (?s:.*)max_length: None in the file, 16 "
    ):
        embed(embed_job(max_length=16))
    assert not (tmp_path / "out/embeddings/a/new.h5").exists()  # of another encoder than the others
    report = embed(embed_job(max_length=16, overwrite=True))
    assert [row.status for row in report.reports] == ["embedded"] * 4


def test_an_error_that_every_file_would_meet_stops_the_run(embed_job: WriteJob, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="max_length is 65, but the model has positions for 64"):
        embed(embed_job(max_length=65))
    assert not list((tmp_path / "out").rglob("*.h5"))


def test_a_missing_input_folder_is_named(embed_job: WriteJob, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the folder {tmp_path}/nowhere does not exist"):
        embed(embed_job(input_dir=str(tmp_path / "nowhere")))


def test_shards_deal_every_file_to_one_machine(embed_job: WriteJob, tmp_path: Path) -> None:
    job = embed_job()
    for rank, names in ((0, ["a/x.jsonl", "b/y.jsonl"]), (1, ["b/x.jsonl"])):
        shard = {"tasks": 2, "local_tasks": 1, "local_rank_offset": rank}
        report = embed(job, {"local_settings": {**shard, "workers": 1}})
        assert [(row.source, row.status) for row in report.reports] == [(name, "embedded") for name in names]


def test_a_rerun_opens_no_finished_output(
    embed_job: WriteJob, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = embed_job()
    before = embed(job)
    (corpus / "b" / "new.jsonl").write_text(json.dumps({"id": "new", "text": "one more"}) + "\n")
    opened: list[str] = []
    finished = EmbedWork.finished

    def noted(work: EmbedWork, file: TaskFile, read_content: bool) -> EmbedReport | None:
        opened.append(file.relative)
        return finished(work, file, read_content)

    monkeypatch.setattr(EmbedWork, "finished", noted)
    report = embed(job)
    assert opened == ["b/new.jsonl"]
    assert [row.status for row in report.reports] == ["skipped", "embedded", "skipped", "skipped"]
    counts = [(row.source, row.documents, row.tokens) for row in report.reports if row.status == "skipped"]
    assert counts == [(row.source, row.documents, row.tokens) for row in before.reports]
    (segment, _) = sorted((tmp_path / "out" / "embeddings" / ".finished" / "embed").iterdir())
    segment.unlink()
    assert [row.status for row in embed(job).reports] == ["skipped"] * 4
    assert opened[1:] == ["a/x.jsonl", "b/x.jsonl", "b/y.jsonl"], "those that the other ledger does not have"


def test_artifacts_and_logs_tell_what_became_of_each_file(
    embed_job: WriteJob, corpus: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    with (corpus / "b" / "y.jsonl").open("a") as file:
        file.write("nonsense\n")
    report = embed(embed_job())
    artifacts = {artifact.key: artifact.data for artifact in client.read_artifacts(limit=2, sort="CREATED_DESC")}
    rows = {row["file"]: row for row in json.loads(str(artifacts["embed-files"]))}
    assert rows["b/y.jsonl"]["lines"] == 10
    assert rows["b/y.jsonl"]["rejected"] == 1
    assert rows["b/y.jsonl"]["output"] == str(tmp_path / "out" / "embeddings" / "b" / "y.h5")
    assert "| rejected | 1 |" in str(artifacts["embed-summary"])
    on_disk = [json.loads(line) for line in (report.logs / "files.jsonl").read_text().splitlines()]
    assert on_disk == list(rows.values())
    logged = "".join(path.read_text() for path in report.logs.glob("worker-*.log"))
    assert "b/y.jsonl: 9 documents, 1 rejected" in logged
    assert not (report.logs / "dask").exists()


def test_a_run_leaves_its_report(
    embed_job: WriteJob, corpus: Path, tmp_path: Path, client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "b" / "broken.jsonl").write_text("[1]\n")
    began = time.time()
    with pytest.raises(FilesFailedError) as raised:
        embed(embed_job(), {"files_per_task": 1})
    page = tmp_path / "out" / "report" / "index.html"
    assert raised.value.report.page == page
    facts = json.loads((page.parent / "report.json").read_text())
    assert (facts["totals"]["documents"], facts["totals"]["rejected"]) == (21, 0)
    (run,) = facts["runs"]
    assert (run["state"], run["files"], run["done"], run["failed"]) == ("finished, some files failed", 4, 3, 1)
    assert sum(worker["documents"] for worker in run["workers"]) == 21
    assert all(began < file["started"] < time.time() for file in facts["files"] if file["status"] == "embedded")
    assert sum(sum(rates) for rates in run["rates"]["documents"].values()) == pytest.approx(21, rel=1e-3)
    assert set(run["busy_s"]) == {"reading", "tokenizing", "encoding", "writing"}
    assert "b/broken.jsonl" in page.read_text()
    newest = client.read_artifacts(limit=5, sort="CREATED_DESC")
    summary = next(artifact for artifact in newest if artifact.key == "embed-summary")
    assert str(page) in str(summary.data)
    assert str(summary.data).count("](data:image/svg+xml;base64,") == 2
    print_report(raised.value.report)
    assert f"report:  {page}" in capsys.readouterr().out
    assert load_job(run["logs"] + "/job.yaml", EmbeddingJob).params.output_dir == tmp_path / "out"


def test_the_report_of_a_run_of_very_many_files_opens_none_but_a_sample(
    embed_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (read_outputs, stating_work):
        monkeypatch.setattr(module, "MOST_SAMPLED", 1)
    monkeypatch.setattr(read_outputs, "MOST_READ", 1)
    monkeypatch.setattr(report_module, "MOST_OPENED", 0)
    report = embed(embed_job())
    assert report.page == tmp_path / "out" / "report" / "index.html"
    facts = json.loads((report.page.parent / "report.json").read_text())
    assert (facts["totals"]["documents"], facts["samples"]["document_tokens"]) == (21, {"files": 1, "of": 3})
    rows = [json.loads(line) for line in (report.page.parent / "files.jsonl").read_text().splitlines()]
    assert rows == facts["files"] and facts["n_files"] == 3
    assert all(report.stated == () for report in report.reports)


def test_a_run_whose_report_cannot_be_written_is_finished_all_the_same(
    embed_job: WriteJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report").write_text("in the way")
    report = embed(embed_job())
    assert report.totals()["documents"] == 21
    assert report.page is None
    assert any("the report in" in line and "cannot be written" in line for line in caplog.messages)


def test_a_run_that_ends_before_its_time_leaves_the_files_that_it_finished(
    embed_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("the machine goes down")

    monkeypatch.setattr(run_files_module, "write_rows", fail)
    monkeypatch.setattr(RunLog, "end", fail)
    with pytest.raises(RuntimeError, match="the machine goes down"):
        embed(embed_job())
    facts = collect(tmp_path / "out")
    (run,) = facts.runs
    assert (run.state, run.done, run.documents) == ("ended by an error", 3, 21)
    assert run.error == "RuntimeError: the machine goes down"
    assert {file.status for file in facts.files} == {"embedded"}


def test_the_core_s_log_lines_reach_the_prefect_ui(embed_job: WriteJob, client: SyncPrefectClient) -> None:
    embed(embed_job())
    messages = [log.message for log in client.read_logs(limit=200, sort="TIMESTAMP_DESC")]
    assert any(message.startswith("b/y.jsonl: 9 documents") for message in messages)


def test_the_same_file_names_in_two_folders_stay_apart(embed_job: WriteJob, corpus: Path, tmp_path: Path) -> None:
    embed(embed_job())
    sizes = {name: EmbeddingFile(tmp_path / "out" / "embeddings" / name / "x.h5", "train").n_rows for name in "ab"}
    assert sizes == {"a": 5, "b": 7}
    shutil.copy(corpus / "a" / "x.jsonl", corpus / "a" / "x.jsonl.gz")
    with pytest.raises(ConfigError, match=r"a/x.jsonl and a/x.jsonl.gz .* would both be written to a/x"):
        embed(embed_job())


def test_each_folder_of_embeddings_has_rejects_of_its_own(embed_job: WriteJob, corpus: Path, tmp_path: Path) -> None:
    (corpus / "b" / "y.jsonl").write_text('{"text": "fine"}\n{"text": "fine"}\nbroken\n')
    embed(embed_job())
    (corpus / "b" / "y.jsonl").write_text('{"text": "mended"}\n')
    embed(embed_job(embedding_dir="again"))
    assert [
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("rejected/**/*.jsonl")
    ] == ["rejected/b/y.jsonl"]


def annotated(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("annotated_data/*/*.jsonl")}


def test_heads_given_to_the_embedding_job_write_what_an_annotation_job_would(
    embed_job: WriteJob, annotate_job: WriteJob, heads: dict[str, str], tmp_path: Path
) -> None:
    keys = ["document_id", "text"]
    embed(embed_job())
    annotate(annotate_job(output_keys=keys))
    inline = {"regression_head_checkpoints": heads, "output_keys": keys}
    for name, keeps in (("kept", True), ("not-kept", False)):
        job = embed_job(output_dir=str(tmp_path / name), annotate_inline=inline, keep_embeddings=keeps)
        report = embed(job)
        assert report.totals()["documents"] == 21
        assert annotated(tmp_path / name) == annotated(tmp_path / "out") != {}
        assert len(list((tmp_path / name).rglob("*.h5"))) == (3 if keeps else 0)
        again = embed(job)
        assert [row.status for row in again.reports] == ["skipped"] * 3
        assert again.totals()["tokens"] == report.totals()["tokens"] > 0
        assert {row.output for row in again.reports} == {row.output for row in report.reports}


def test_a_file_that_lost_its_scores_is_scored_without_being_embedded_again(
    embed_job: WriteJob, heads: dict[str, str], tmp_path: Path
) -> None:
    job = embed_job(annotate_inline={"regression_head_checkpoints": heads})
    embed(job)
    embeddings = tmp_path / "out/embeddings/b/x.h5"
    before = embeddings.stat().st_mtime_ns
    (tmp_path / "out/annotated_data/b/x.jsonl").unlink()
    embed(job)
    assert (tmp_path / "out/annotated_data/b/x.jsonl").exists()
    assert embeddings.stat().st_mtime_ns == before


def test_embeddings_that_stay_are_not_removed_by_a_run_whose_embeddings_do_not(
    embed_job: WriteJob, heads: dict[str, str], tmp_path: Path
) -> None:
    embed(embed_job())
    kept = sorted((tmp_path / "out").rglob("*.h5"))
    embed(embed_job(annotate_inline={"regression_head_checkpoints": heads}, keep_embeddings=False))
    assert sorted((tmp_path / "out").rglob("*.h5")) == kept
    assert len(annotated(tmp_path / "out")) == 3


@pytest.mark.parametrize("keeps", [True, False])
def test_scores_of_another_request_or_source_are_in_the_way(
    embed_job: WriteJob, heads: dict[str, str], corpus: Path, keeps: bool
) -> None:
    inline = {"regression_head_checkpoints": heads}
    embed(embed_job(annotate_inline=inline, keep_embeddings=keeps))
    fewer = {"regression_head_checkpoints": {"mlp": heads["mlp"]}}
    with pytest.raises(OtherSettingsError, match=r"3 of 3 files are (?s:.*)by another request: heads[.]"):
        embed(embed_job(annotate_inline=fewer, keep_embeddings=keeps))
    with pytest.raises(
        OtherSettingsError, match=r"3 of 3 files are finished with other (?s:.*)max_length: None in the file, 16 "
    ):
        embed(embed_job(annotate_inline=inline, keep_embeddings=keeps, max_length=16))
    (corpus / "b" / "y.jsonl").write_text('{"text": "changed"}\n')
    with pytest.raises(FilesFailedError, match=r"1 of 3 files failed(?s:.*)was made from another version of"):
        embed(embed_job(annotate_inline=inline, keep_embeddings=keeps))
    report = embed(embed_job(annotate_inline=fewer, keep_embeddings=keeps, overwrite=True))
    assert report.totals()["failed"] == 0
    assert report.totals()["documents"] == 13


def test_a_head_that_does_not_fit_stops_the_run_before_anything_is_embedded(
    embed_job: WriteJob, tmp_path: Path
) -> None:
    torch.save(torch.nn.Linear(5, 1).state_dict(), tmp_path / "narrow.pt")
    inline = {"regression_head_checkpoints": {"narrow": str(tmp_path / "narrow.pt")}}
    with pytest.raises(HeadError, match=r"head narrow takes embeddings of width 5, but those of .* are 32 wide"):
        embed(embed_job(annotate_inline=inline))
    weights = {"weight": torch.ones(1, 32), "bias": torch.ones(1)}
    save_file(weights, tmp_path / "other.safetensors", {"encoder_weights_sha256": "0" * 64})
    inline = {"regression_head_checkpoints": {"other": str(tmp_path / "other.safetensors")}}
    with pytest.raises(HeadError, match="head other was trained on embeddings of an encoder with weights 000000000000"):
        embed(embed_job(annotate_inline=inline))
    assert not list((tmp_path / "out").rglob("*.h5"))


def test_keeping_nothing_is_refused(embed_job: WriteJob) -> None:
    with pytest.raises(ConfigError, match="keep_embeddings: false leaves nothing without annotate_inline"):
        embed(embed_job(keep_embeddings=False))
