"""The commands as people type them, in separate processes where these matter."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from safetensors.numpy import save_file
from typer.testing import CliRunner

from flows.commands.app import build_app
from flows.pipeline import pipeline
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.heads.trained_head import FORMAT
from mlfilter_core.versions import library_versions
from tests.conftest import WriteLines
from tests.flows.commands.processes import REPOSITORY, command, ml_filter, ml_filter_here
from tests.flows.conftest import WriteJob

SCRIPTS = ["flows/embed.py", "flows/annotate.py", "flows/pipeline.py"]
HEAVY = ("torch", "transformers", "prefect", "distributed", "h5py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_option_and_loads_nothing_heavy(script: str) -> None:
    done = command("-X", "importtime", script, "--help")
    assert done.returncode == 0
    options = re.split(r"\n  (?=--)", done.stdout.partition("Options:")[2])[1:]
    assert len(options) >= 3
    assert all(len(re.sub(r"--\S+|[A-Z=]{4,}", "", option).split()) > 3 for option in options)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported.intersection(HEAVY)


def test_the_version_is_shown() -> None:
    done = CliRunner().invoke(build_app(), ["--version"])
    assert (done.exit_code, done.output) == (0, f"mlfilter {library_versions()['mlfilter']}\n")


def test_every_command_is_accepted_with_hyphens_and_with_underscores() -> None:
    commands: dict[str, object] = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]
    known = {"run_embedding_pipeline", "run_annotation_pipeline", "aggregate_scores", "evaluate_predicted_annotations"}
    for name in {*commands, *known}:
        for written in (name.replace("_", "-"), name.replace("-", "_")):
            done = CliRunner().invoke(build_app(), [written, "--help"])
            assert done.exit_code == 0, (written, done.output)


@pytest.mark.parametrize("option", ["--config", "--config_file_path", "--config-file-path"])
@pytest.mark.parametrize("name", ["embed", "run_annotation_pipeline", "filter", "plan", "job_script"])
def test_the_job_file_has_three_options(name: str, option: str) -> None:
    done = CliRunner().invoke(build_app(), [name, option, "/none/my_job.yaml", "--set", "params.batch_size=8"])
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "/none/my_job.yaml does not exist" in done.output


def test_the_known_commands_embed_and_annotate(embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path) -> None:
    embedded = ml_filter("run_embedding_pipeline", "--config_file_path", embed_job())
    assert embedded.returncode == 0, embedded.stderr
    assert str(tmp_path / "out" / "embeddings") in embedded.stdout
    annotated = ml_filter_here("run_annotation_pipeline", "--config_file_path", annotate_job())
    assert annotated.exit_code == 0, annotated.output
    assert annotated.stdout.count('{"document_id":"a/x.jsonl-') == 3
    assert len(list((tmp_path / "out" / "annotated_data").rglob("*.jsonl"))) == 3


def test_over_finished_files_nothing_is_started_and_the_table_is_shown(
    embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path
) -> None:
    pipeline(embed_job(), annotate_job())
    both = ["--embed-config", embed_job(), "--annotate-config", annotate_job()]
    done = command("-X", "importtime", "flows/pipeline.py", *both, PREFECT_API_URL="")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ *[ab]/[xy].* skipped ", done.stdout, re.M)) == 6
    assert f"logs:    {tmp_path}/out/logs/annotate-finished-before\n" in done.stdout
    assert len((tmp_path / "out/logs/embed-finished-before/files.jsonl").read_text().splitlines()) == 3
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported.intersection({"torch", "transformers", "distributed", "prefect"})
    assert not list((tmp_path / "out").rglob("prefect.db"))


def test_set_replaces_values_of_the_job_file(embed_job: WriteJob, tmp_path: Path) -> None:
    replaced = ["--set", "params.max_length=8", "--set", "params.glob_pattern=b/*"]
    done = ml_filter_here("embed", "--config", embed_job(), *replaced)
    assert done.exit_code == 0, done.output
    assert [path.name for path in sorted((tmp_path / "out").rglob("*.h5"))] == ["x.h5", "y.h5"]
    with EmbeddingFile(tmp_path / "out" / "embeddings" / "b" / "y.h5", "train") as file:
        assert file.provenance is not None
        assert file.provenance.request["max_length"] == 8


def test_a_wrong_job_is_one_message_and_status_1(embed_job: WriteJob) -> None:
    done = ml_filter("run_embedding_pipeline", "--config_file_path", embed_job(batchsize=8))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "params.batchsize: unknown field; did you mean batch_size?" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"input_dir": "/none"}, "the folder /none does not exist; fix the path"),
        ({"glob_pattern": "*.txt"}, 'matches glob_pattern "*.txt"'),
        ({"text_field": "txt"}, "params.text_field"),
        ({"embedding_model": "/none/model"}, "embedding_model: the folder /none/model does not exist"),
        ({"annotate_inline": {"regression_head_checkpoints": {"q": "/none/q.pt"}}}, "/none/q.pt does not exist"),
    ],
)
def test_a_wrong_job_is_refused_before_anything_heavy_is_imported(
    params: dict[str, Any], message: str, embed_job: WriteJob, corpus: Path, tmp_path: Path
) -> None:
    job = embed_job(**params)
    done = command("-X", "importtime", "flows/embed.py", "--config", job, PREFECT_API_URL="")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert said[0].startswith("embed: ")
    assert str(tmp_path / "out") in said[0]
    assert said[1].startswith("error: ")
    assert message in "\n".join(said)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported.intersection({"torch", "transformers", "prefect", "distributed"})


def test_a_wrong_annotation_is_refused_before_anything_heavy_is_imported(
    embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path
) -> None:
    assert ml_filter_here("embed", "--config", embed_job()).exit_code == 0
    tensors = {"0.weight": np.zeros((1, 77), np.float32), "0.bias": np.zeros(1, np.float32)}
    save_file(tensors, tmp_path / "wide.safetensors", {"format": FORMAT})
    wide = {"regression_head_checkpoints": {"edu": str(tmp_path / "wide.safetensors")}}
    torch.save(torch.nn.Linear(77, 1).state_dict(), tmp_path / "wide.pt")
    of_torch = {"regression_head_checkpoints": {"edu": str(tmp_path / "wide.pt")}}
    for params, message in (
        (of_torch, "head edu: no layer of .*wide.pt takes embeddings of width 32, as those of .*/a/x.h5 are"),
        (wide, "head edu takes embeddings of width 77, but those of .*/a/x.h5 are 32 wide"),
        ({"output_keys": ["document_id", "lang"]}, "params.output_keys: 'lang' is neither in the files of embeddings"),
    ):
        job = annotate_job(**params)
        done = command("-X", "importtime", "flows/annotate.py", "--config", job, PREFECT_API_URL="")
        assert done.returncode == 1
        assert re.search(f"^error: {message}", done.stderr, re.MULTILINE), done.stderr
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert not imported.intersection({"torch", "transformers", "prefect", "distributed"})


def test_what_is_done_is_said_before_anything_heavy_is_imported(embed_job: WriteJob, corpus: Path) -> None:
    done = command("-X", "importtime", "flows/embed.py", "--config", embed_job(embedding_model="/none/model"))
    before = done.stderr.partition(f"embed: {corpus}")[0]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in before.splitlines()}
    assert "typer" in imported
    assert not imported.intersection(HEAVY)


def test_failed_files_are_a_table_of_the_others_and_status_1(embed_job: WriteJob, corpus: Path) -> None:
    (corpus / "a" / "broken.jsonl").write_text('{"txt": "a"}\n')
    done = command("flows/embed.py", "--config", embed_job())
    assert done.returncode == 1
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "failed" in rows["a/broken.jsonl"]
    assert "embedded" in rows["b/y.jsonl"]
    assert 'a/broken.jsonl: 1 of 1 lines are rejected (1 missing_key; first: line 1: "text" is missing' in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_an_output_folder_that_cannot_be_written_to_is_named(embed_job: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command("flows/embed.py", "--config", embed_job(output_dir=str(tmp_path / "file" / "out")))
    assert done.returncode == 1
    assert f"params.output_dir: {tmp_path}/file/out cannot be written to (Not a directory)" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_inspect_tells_what_a_file_holds(embed_job: WriteJob, tmp_path: Path) -> None:
    job = embed_job(hdf5_dataset_name="mine")
    assert ml_filter_here("embed", "--config", job).exit_code == 0
    done = ml_filter("inspect", tmp_path / "out" / "embeddings" / "a" / "x.h5", "--hdf5-dataset-name", "mine")
    assert done.returncode == 0, done.stderr
    assert "embeddings  5 x 32, all finite" in done.stdout
    refused = ml_filter_here("inspect", job)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"error: {job} is not an HDF5 file")


def test_a_reader_of_the_output_that_has_seen_enough_is_no_error(
    tiny_files: ModelFiles, tiny_encoder: Encoder, write_lines: WriteLines, tmp_path: Path
) -> None:
    write_lines("in/x.jsonl", [{"text": "a"}])
    request = EmbedRequest(tiny_files, EncoderSettings(), DocumentSchema(("text",)))
    file = tmp_path / "x.h5"
    embed_file(TaskFile("x.jsonl", "x", tmp_path / "in"), file, tmp_path / "bad", request, tiny_encoder)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [Path(sys.executable).parent / "ml_filter", "inspect", file],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_verify_proves_that_outputs_add_up_or_names_the_file_that_is_not_right(
    embed_job: WriteJob, annotate_job: WriteJob, corpus: Path, tmp_path: Path
) -> None:
    with open(corpus / "b" / "y.jsonl", "a") as source:
        source.write("\n{broken\n")
    assert ml_filter_here("embed", "--config", embed_job()).exit_code == 0
    assert ml_filter_here("annotate", "--config", annotate_job()).exit_code == 0
    proved = ml_filter("verify", tmp_path / "out", "--workers", "2")
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert proved.stdout.startswith(
        "3 files of embeddings, 3 annotated files: all right\n"
        "23 lines = 21 documents + 1 rejected + 1 blank; 21 annotated lines\nread "
    )
    assert ml_filter_here("verify", tmp_path / "out", "--quick").exit_code == 0
    (tmp_path / "out" / "rejected" / "b" / "y.jsonl").unlink()
    corpus.rename(tmp_path / "moved")
    refuted = ml_filter_here("verify", tmp_path / "out", "--quick", "--source-dir", tmp_path / "moved")
    assert refuted.exit_code == 1
    assert refuted.stdout.startswith(
        "embeddings/b/y.h5: it states 1 rejected lines, and rejected/b/y.jsonl is missing; embed it again\n"
        "3 files of embeddings, 3 annotated files: 1 not right\n"
    )
    nothing = ml_filter_here("verify", tmp_path / "moved")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert nothing.stderr.startswith(f"error: nothing to verify in {tmp_path}/moved; give the output_dir of a job")


def test_without_an_api_a_run_has_its_own_and_writes_nothing_elsewhere(embed_job: WriteJob, tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    own = {"HOME": str(home), "TMPDIR": str(temporary), "PREFECT_API_URL": ""}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    line = [sys.executable, "flows/embed.py", "--config", str(embed_job())]
    done = subprocess.run(line, cwd=REPOSITORY, env={**environment, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Starting temporary server") <= 1
    assert len(list((tmp_path / "out" / "logs" / "prefect").glob("*/prefect.db"))) == 1
    assert list(home.rglob("*")) == []
    assert list(temporary.rglob("*")) == []


def test_the_predecessor_s_imports_run_both_pipelines(
    embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path
) -> None:
    from ml_filter.annotation.annotation_pipeline import run_annotation_pipeline
    from ml_filter.annotation.embedding_pipeline import run_embedding_pipeline

    job = embed_job()
    run_embedding_pipeline(job)
    run_annotation_pipeline(annotate_job())
    report = run_embedding_pipeline(job, {"params.glob_pattern": "a/*"})
    assert [(row.source, row.status) for row in report.reports] == [("a/x.jsonl", "skipped")]
    assert len(list((tmp_path / "out" / "annotated_data").rglob("*.jsonl"))) == 3


def test_execution_settings_of_the_predecessor_are_accepted(embed_job: WriteJob) -> None:
    job = embed_job()
    written = yaml.safe_load(job.read_text())
    written["local_settings"] = {"tasks": 1, "local_tasks": 1, "local_rank_offset": 0, "workers": 4}
    written["running_on_slurm"] = False
    job.write_text(yaml.safe_dump(written))
    done = ml_filter_here("embed", "--config", job)
    assert done.exit_code == 0, done.output


def test_a_script_without_a_guard_is_told_so(embed_job: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "from ml_filter.annotation.embedding_pipeline import run_embedding_pipeline\n"
        f"run_embedding_pipeline(Path({str(embed_job())!r}))\n"
    )
    done = command(tmp_path / "script.py")
    assert done.returncode != 0
    assert 'call this below `if __name__ == "__main__":`' in done.stderr


def test_workers_do_not_import_the_script_that_starts_them(tmp_path: Path) -> None:
    script = """
import multiprocessing
from flows.running.script import hide_script_from_workers
if __name__ == "__main__":
    for hide in (lambda: None, hide_script_from_workers):
        hide()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(eval, ("hasattr(__import__('sys').modules['__main__'], 'hide_script_from_workers')",)))
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]
