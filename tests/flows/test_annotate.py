import json
from pathlib import Path

import numpy as np
import pytest
import torch
from prefect.client.orchestration import SyncPrefectClient
from safetensors.torch import save_file

from flows.annotate import annotate
from flows.embed import embed
from flows.pipeline import pipeline
from flows.running.report import FilesFailedError, print_report
from mlfilter_core.annotating import work as annotate_work_module
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ConfigError, HeadError, OtherSettingsError
from tests.conftest import TINY_DIM
from tests.flows.conftest import WriteJob, write_embeddings
from tests.flows.dask_workers import last_task_runs


def test_both_flows_equal_the_direct_computation(
    embed_job: WriteJob, annotate_job: WriteJob, heads: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    embedded, annotated = pipeline(embed_job(), annotate_job(output_keys=["document_id", "text"]))
    assert embedded.totals()["documents"] == annotated.totals()["documents"] == 21
    state = torch.load(heads["linear"], weights_only=True)
    for name in ("a/x", "b/x", "b/y"):
        records = [json.loads(line) for line in (corpus / f"{name}.jsonl").read_text().splitlines()]
        lines = (tmp_path / "out" / "annotated_data" / f"{name}.jsonl").read_text().splitlines()
        written = [json.loads(line) for line in lines]
        assert [list(record) for record in written] == [["document_id", "text", "score_linear", "score_mlp"]] * len(
            records
        )
        assert [(r["document_id"], r["text"]) for r in written] == [(r["id"], r["text"]) for r in records]
        with EmbeddingFile(tmp_path / "out" / "embeddings" / f"{name}.h5", "train") as file:
            embeddings = torch.from_numpy(file.embeddings(slice(0, None)))
        expected = embeddings @ state["0.weight"][0] + state["0.bias"]
        np.testing.assert_allclose([record["score_linear"] for record in written], expected, atol=1e-5)


def test_parts_of_a_file_are_tasks_and_make_the_same_output(
    annotate_job: WriteJob, tmp_path: Path, client: SyncPrefectClient
) -> None:
    write_embeddings(tmp_path / "out/embeddings/a.h5", 100)
    annotate(annotate_job(split=False, batch_size=16))
    output = tmp_path / "out/annotated_data/a.jsonl"
    whole = output.read_bytes()
    report = annotate(annotate_job(split=3, batch_size=16, overwrite=True), {"params.score_prefix": "s_"})
    assert [(row.status, row.documents) for row in report.reports] == [("annotated", 100)]
    names = {run.name for run in last_task_runs(client, 4)}
    assert names == {"annotate a.h5", *(f"annotate a.h5 ({i} of 3)" for i in (1, 2, 3))}
    assert output.read_bytes() == whole.replace(b'"score_', b'"s_')
    assert not list((tmp_path / "out").rglob("*.parts"))


def test_a_head_of_the_wrong_width_is_refused_before_the_first_file(annotate_job: WriteJob, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "a.h5", 3)
    write_embeddings(tmp_path / "out" / "embeddings" / "z.h5", 3, dim=48)
    with pytest.raises(HeadError, match=r"head linear takes embeddings of width 32, but those of .*z.h5 are 48 wide"):
        annotate(annotate_job())
    assert not (tmp_path / "out" / "annotated_data").exists()


def test_a_missing_head_is_refused(annotate_job: WriteJob, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "a.h5", 3)
    with pytest.raises(HeadError, match=r"head quality: the checkpoint .*nowhere.pt does not exist"):
        annotate(annotate_job(regression_head_checkpoints={"quality": str(tmp_path / "nowhere.pt")}))


def test_a_pipeline_whose_heads_are_missing_embeds_nothing(
    embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path
) -> None:
    missing = {"quality": str(tmp_path / "nowhere.pt")}
    with pytest.raises(HeadError, match=r"head quality: the checkpoint .*nowhere.pt does not exist"):
        pipeline(embed_job(), annotate_job(regression_head_checkpoints=missing))
    assert not (tmp_path / "out" / "embeddings").exists()


def test_scores_of_another_tool_are_not_replaced(annotate_job: WriteJob, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "a.h5", 3)
    old = tmp_path / "out" / "annotated_data" / "a.jsonl"
    old.parent.mkdir()
    old.write_text("the predecessor's")
    with pytest.raises(FilesFailedError, match=r"a.jsonl does not say which heads and embeddings made it"):
        annotate(annotate_job())
    assert old.read_text() == "the predecessor's"
    annotate(annotate_job(overwrite=True))
    assert len(old.read_text().splitlines()) == 3


def test_a_broken_file_of_embeddings_does_not_stop_the_others(annotate_job: WriteJob, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "embeddings"
    write_embeddings(folder / "whole.h5", 4)
    write_embeddings(folder / "cut.h5", 400)
    (folder / "cut.h5").write_bytes((folder / "cut.h5").read_bytes()[:9000])
    with pytest.raises(
        FilesFailedError, match=r"1 of 2 files failed(?s:.*)cut.h5 is not an HDF5 file, or is cut short"
    ):
        annotate(annotate_job())
    assert len((tmp_path / "out" / "annotated_data" / "whole.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "out" / "annotated_data" / "cut.jsonl").exists()


def test_a_rerun_skips_finished_files_and_notices_other_heads(
    annotate_job: WriteJob, heads: dict[str, str], tmp_path: Path
) -> None:
    write_embeddings(tmp_path / "out" / "embeddings" / "a.h5", 3)
    annotate(annotate_job())
    assert [row.status for row in annotate(annotate_job()).reports] == ["skipped"]
    only_one = {"linear": heads["linear"]}
    with pytest.raises(
        OtherSettingsError,
        match=r"a.jsonl was made by another request: heads[.]mlp: \w{12} in the file, None asked for",
    ):
        annotate(annotate_job(regression_head_checkpoints=only_one))
    report = annotate(annotate_job(regression_head_checkpoints=only_one, overwrite=True))
    assert [row.status for row in report.reports] == ["annotated"]


def test_a_source_that_changed_fails_its_file_alone(
    embed_job: WriteJob, annotate_job: WriteJob, corpus: Path, tmp_path: Path
) -> None:
    embed(embed_job())
    changed = corpus / "a" / "x.jsonl"
    changed.write_text(changed.read_text().replace("word", "WORD"))
    with pytest.raises(FilesFailedError, match=r"a/x.h5: .*a/x.jsonl changed since .* was made from it"):
        annotate(annotate_job(output_keys=["*"]))
    assert (tmp_path / "out" / "annotated_data" / "b" / "y.jsonl").exists()
    assert not (tmp_path / "out" / "annotated_data" / "a" / "x.jsonl").exists()


def test_embeddings_of_two_encoders_are_refused_before_the_first_file(
    embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path
) -> None:
    embed(embed_job(glob_pattern="a/*"))
    embed(embed_job(glob_pattern="b/*", prompt="query: "))
    message = (
        r"out/embeddings/a/x\.h5 and .*/out/embeddings/b/x\.h5 were made by different encoders, .*: they differ in "
        r"prompt \('' and 'query: '\)\. They are not comparable, nor are their scores; set glob_pattern to the files"
    )
    with pytest.raises(ConfigError, match=message):
        annotate(annotate_job())
    annotate(annotate_job(glob_pattern="a/*"))
    with pytest.raises(ConfigError, match=message):  # though those of one encoder are finished
        annotate(annotate_job())
    assert len(list((tmp_path / "out/annotated_data").rglob("*.jsonl"))) == 1


def test_of_very_many_files_the_tasks_compare_the_encoders(
    embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(embed_job(glob_pattern="a/*"))
    embed(embed_job(glob_pattern="b/*", prompt="query: "))
    monkeypatch.setattr(annotate_work_module, "MOST_CHECKED", 1)
    with pytest.raises(ConfigError, match=r"a/x\.h5 and .*/b/[xy]\.h5 were made by different encoders"):
        annotate(annotate_job())
    written = [path.parent.name for path in (tmp_path / "out/annotated_data").rglob("*.jsonl")]
    assert set(written) <= {"a"}


def test_a_mismatched_head_is_recorded_in_the_run_s_report(
    embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed(embed_job())
    weights = {"weight": torch.ones(1, TINY_DIM)}
    save_file(weights, tmp_path / "other.safetensors", {"encoder": json.dumps({"pooling": "cls"})})
    checkpoints = {"other": str(tmp_path / "other.safetensors")}
    with pytest.raises(HeadError, match=r"head other was trained on embeddings of .*they differ in pooling"):
        annotate(annotate_job(regression_head_checkpoints=checkpoints))
    print_report(annotate(annotate_job(regression_head_checkpoints=checkpoints, allow_mismatched_head=True)))
    remark = "head other was trained on the embeddings of another encoder: pooling ('cls' and 'mean')\n"
    assert remark in capsys.readouterr().out
