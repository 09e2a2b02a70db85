"""Jobs whose folders are in stores, with the real work of embedding and annotating."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from mlfilter_core.annotating.work import annotation_workload
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.job_files import load_job
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.work import EmbedWork, embedding_workload
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ConfigError, HeadError, OtherRequestError, StoreError
from mlfilter_core.files import stores
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.workload import SomeFilesFailedError, Workload, run_files
from tests.conftest import TINY_DIM, within
from tests.s3_servers import DENIED, EXPIRED, SLOW_DOWN, Faults, moto_server, rclone_server, store, times

MakeJob = Callable[..., Any]
NAMES = ("a/x.jsonl", "b/x.jsonl.gz", "b/y.jsonl")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Path]:
    """The folder of a bucket that rclone serves, with a corpus of two files in it."""
    folder = tmp_path / "buckets" / "bucket"
    write_corpus(folder / "corpus")
    with rclone_server(tmp_path / "buckets", os.environ):
        yield folder


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    """moto, with the same corpus."""
    write_corpus(tmp_path / "corpus")
    with moto_server(os.environ) as server:
        store().mkdir("bucket")
        store().put(str(tmp_path / "corpus"), "bucket/", recursive=True)
        yield server


def write_corpus(folder: Path) -> None:
    for n, name in ((5, "a/x.jsonl"), (7, "b/y.jsonl")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        records = [{"id": f"{name}-{i}", "text": "word " * (1 + (7 * i + n) % 11)} for i in range(n)]
        lines = [*map(json.dumps, records), *(["[1]"] if n == 5 else [])]  # one file has a bad line
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def embed_job(tmp_path: Path, tiny_model: Path) -> MakeJob:
    def make(**params: Any) -> EmbeddingJob:
        return load_job(
            {
                "params": {
                    "input_dir": "s3://bucket/corpus",
                    "text_field": "text",
                    "output_dir": "s3://bucket/run",
                    "embedding_model": str(tiny_model),
                    "max_batch_tokens": 512,
                    "device": "cpu",
                    **params,
                },
                "staging_dir": str(tmp_path / "staging"),
            },
            EmbeddingJob,
        )

    return make


def run(workload: Workload[Any]) -> list[Any]:
    """Does what a run does, in this process: the files that are not finished, in a session."""
    finished = {file.relative: workload.work.finished(file, read_content=False) for file in workload.files}
    to_do = [file for file in workload.files if finished[file.relative] is None]
    done: dict[str, Any] = {}
    if to_do:
        workload.work.prepare(workload.files)
        with workload.work.session(to_do):
            done = {file.relative: report for file, report in zip(to_do, run_files(to_do, workload.work), strict=True)}
    return [finished[file.relative] or done[file.relative] for file in workload.files]


def staged_files(job: Job) -> list[str]:
    left = [path for path in job.staging.rglob("*") if path.is_file()]
    return sorted(path.name for path in left if path.name != "to_do.json")


def test_outputs_in_a_store_equal_those_on_this_machine(bucket: Path, embed_job: MakeJob, tmp_path: Path) -> None:
    job = embed_job()
    reports = run(embedding_workload(job))
    assert [report.output for report in reports] == [f"s3://bucket/run/embeddings/{n}.h5" for n in ("a/x", "b/y")]
    assert [report.rejected for report in reports] == [1, 0]
    local = embed_job(input_dir=str(bucket / "corpus"), output_dir=str(tmp_path / "out"))
    run(embedding_workload(local))
    for name in ("a/x", "b/y"):
        put, made = bucket / "run" / "embeddings" / f"{name}.h5", tmp_path / "out" / "embeddings" / f"{name}.h5"
        with h5py.File(put) as one, h5py.File(made) as other:
            assert (one["train/embeddings"][:] == other["train/embeddings"][:]).all()
            assert list(one["train/document_id"]) == list(other["train/document_id"])
        with EmbeddingFile(put, "train") as file:
            assert file.provenance is not None
            source = file.provenance.source
            assert (source["folder"], source["path"]) == ("s3://bucket/corpus", f"{name}.jsonl")
            assert source["bytes"] == (bucket / "corpus" / f"{name}.jsonl").stat().st_size
            assert len(source["version"]) == 32
    rejected = Path("rejected/a/x.jsonl")
    assert (bucket / "run" / rejected).read_bytes() == (tmp_path / "out" / rejected).read_bytes()
    assert not (bucket / "run" / "rejected" / "b").exists()
    assert staged_files(job) == []


def test_finished_files_are_found_without_fetching_any(faults: Faults, embed_job: MakeJob) -> None:
    first = run(embedding_workload(embed_job()))
    faults.requests.clear()
    again = run(embedding_workload(embed_job()))
    assert [report.status for report in again] == ["skipped", "skipped"]
    assert [report.documents for report in again] == [report.documents for report in first]
    assert [report.output for report in again] == [report.output for report in first]
    fetched = [request for request in faults.requests if ".json" not in request.rpartition(".mlfilter")[2]]
    assert set(fetched) == {"GET /bucket"}, "two listings, and receipts"
    assert faults.count("GET /bucket") == 2


def test_a_source_that_changed_since_conflicts_as_on_this_machine(bucket: Path, embed_job: MakeJob) -> None:
    run(embedding_workload(embed_job()))
    name = "bucket/corpus/b/y.jsonl"
    store().pipe_file(name, store().cat_file(name) + b'{"id": "new", "text": "word"}\n')
    with pytest.raises(
        SomeFilesFailedError, match=r"s3://bucket/run/.*b/y.h5 was made from another version of s3://bucket/corpus/b/y"
    ):
        run(embedding_workload(embed_job()))
    reports = run(embedding_workload(embed_job(overwrite=True)))
    assert [(report.status, report.documents) for report in reports] == [("skipped", 5), ("embedded", 8)]


def test_a_copied_source_is_known_by_its_content(bucket: Path, embed_job: MakeJob) -> None:
    run(embedding_workload(embed_job()))
    store().rm("bucket/run/.mlfilter", recursive=True)
    before = (bucket / "run" / "embeddings" / "a" / "x.h5").stat().st_mtime_ns
    assert [report.status for report in run(embedding_workload(embed_job()))] == ["skipped", "skipped"]
    assert (bucket / "run" / "embeddings" / "a" / "x.h5").stat().st_mtime_ns == before


def test_another_request_is_refused(bucket: Path, embed_job: MakeJob) -> None:
    run(embedding_workload(embed_job()))
    with pytest.raises(OtherRequestError, match=r"s3://bucket/run/embeddings/a/x.h5 was made by .*max_length: .* 16"):
        run(embedding_workload(embed_job(max_length=16)))


def test_inputs_from_a_store_and_outputs_on_this_machine(bucket: Path, embed_job: MakeJob, tmp_path: Path) -> None:
    job = embed_job(output_dir=str(tmp_path / "out"))
    reports = run(embedding_workload(job))
    assert [report.output for report in reports] == [
        str(tmp_path / "out" / "embeddings" / f"{n}.h5") for n in ("a/x", "b/y")
    ]
    assert staged_files(job) == []
    assert [report.status for report in run(embedding_workload(job))] == ["skipped", "skipped"]
    (tmp_path / "out" / "embeddings" / "b" / "y.h5").unlink()
    assert [report.status for report in run(embedding_workload(job))] == ["skipped", "embedded"]


def test_inputs_on_this_machine_and_outputs_in_a_store(bucket: Path, embed_job: MakeJob) -> None:
    job = embed_job(input_dir=str(bucket / "corpus"))
    run(embedding_workload(job))
    assert (bucket / "run" / "embeddings" / "b" / "y.h5").exists()
    assert (bucket / "corpus" / "b" / "y.jsonl").exists()
    assert [report.status for report in run(embedding_workload(job))] == ["skipped", "skipped"]


def test_faults_of_the_store_only_cost_time(
    faults: Faults, embed_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = iter(range(2))
    faults.rules += [
        times(7, SLOW_DOWN, "GET /bucket"),
        times(7, SLOW_DOWN, "PUT /bucket/run/embeddings"),
        times(7, SLOW_DOWN, "PUT /bucket/run/.mlfilter/receipts"),
    ]
    faults.cut = lambda request: request == "GET /bucket/corpus/b/y.jsonl" and next(cuts, None) is not None
    reports = run(embedding_workload(embed_job()))
    assert [(report.status, report.documents) for report in reports] == [("embedded", 5), ("embedded", 7)]
    assert next(cuts, None) is None, "connections were cut"
    assert all(next(iter([rule("PUT /bucket/run/embeddings")]), None) is None for rule in faults.rules)


def test_an_output_appears_after_all_that_belongs_to_it(faults: Faults, embed_job: MakeJob) -> None:
    run(embedding_workload(embed_job()))
    puts = [request.removeprefix("PUT /bucket/run/") for request in faults.requests if "PUT /bucket/run/" in request]
    of_x = [name for name in puts if "a/x" in name]
    assert of_x == ["rejected/a/x.jsonl", "embeddings/a/x.h5", ".mlfilter/receipts/embed/a/x.jsonl.json"]


def test_a_put_that_fails_is_continued_without_embedding_again(
    faults: Faults, embed_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "ATTEMPTS", 1)
    faults.rules.append(times(1000, SLOW_DOWN, "PUT /bucket/run/embeddings/b"))
    with pytest.raises(OSError, match=r"s3://bucket/run/embeddings/b/y.h5"):
        run(embedding_workload(embed_job()))
    faults.rules.clear()
    workload = embedding_workload(embed_job())
    assert workload.work.outputs(workload.files[1])[0].exists(), "complete on this machine"
    put = faults.count("PUT /bucket/run/embeddings/a/x.h5")
    with workload.work.session(workload.files):
        report = workload.work.run(workload.files[1])
    assert report.status == "skipped", "nothing was embedded again"
    assert store().exists("bucket/run/embeddings/b/y.h5")
    assert faults.count("PUT /bucket/run/embeddings/a/x.h5") == put


def test_expired_credentials_end_the_run_and_are_named(faults: Faults, embed_job: MakeJob) -> None:
    workload = embedding_workload(embed_job())
    faults.rules += [times(1000, DENIED, "HEAD"), times(1000, EXPIRED, "")]
    with pytest.raises(StoreError, match=r"s3://bucket/corpus.*: the store refuses the credentials \(ExpiredToken"):
        workload.work.prepare(workload.files)
    with pytest.raises(StoreError, match="renew them and run again"):
        workload.work.run(workload.files[0])


def test_a_file_that_may_not_be_read_fails_alone(faults: Faults, embed_job: MakeJob) -> None:
    faults.rules.append(times(1000, DENIED, "GET /bucket/corpus/a/x.jsonl"))
    with pytest.raises(
        SomeFilesFailedError, match=r"a/x.jsonl: s3://bucket/corpus/a/x.jsonl: access is denied"
    ) as failed:
        run(embedding_workload(embed_job()))
    assert [report.source for report in failed.value.reports] == ["b/y.jsonl"]


def test_a_store_that_may_not_be_written_stops_a_run_before_the_first_file(faults: Faults, embed_job: MakeJob) -> None:
    workload = embedding_workload(embed_job())
    faults.rules.append(times(1000, DENIED, "PUT"))
    with pytest.raises(StoreError, match=r"s3://bucket/run/.mlfilter/runs/.*: access is denied"):
        with workload.work.session(workload.files):
            pytest.fail("not reached")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "s3://no-such-bucket/corpus",
            "s3://no-such-bucket/corpus does not exist .*; fix the URL, or create",
        ),
        ("s3://bucket/corpsu", "s3://bucket/corpsu does not exist, or has no files; fix the URL"),
        ("s3://bucket/corpus/a/x.jsonl", "s3://bucket/corpus/a/x.jsonl is a file; give its folder"),
        ("s3://bucket/corpus/a", r"no file below s3://bucket/corpus/a matches"),
    ],
)
def test_an_input_that_is_not_there_is_refused(faults: Faults, embed_job: MakeJob, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        embedding_workload(embed_job(input_dir=url, glob_pattern="**/*.jsonl.gz" if "matches" in message else "**/*"))


def test_denied_listings_are_refused(faults: Faults, embed_job: MakeJob) -> None:
    faults.rules.append(times(1000, DENIED, "GET /bucket"))
    with pytest.raises(ConfigError, match=r"s3://bucket/corpus: access is denied \(AccessDenied"):
        embedding_workload(embed_job())


def test_a_file_that_changes_while_it_is_staged_is_staged_again(faults: Faults, embed_job: MakeJob) -> None:
    name, changes = "bucket/corpus/b/y.jsonl", iter(range(2))
    content = store().cat_file(name)

    def change(request: str) -> None:
        if request == f"GET /{name}" and (n := next(changes, None)) is not None:
            store().pipe_file(name, content + b'{"id": "new", "text": "word"}\n' * (n + 1))

    faults.rules.append(change)
    reports = run(embedding_workload(embed_job()))
    assert [report.documents for report in reports] == [5, 9]


def test_a_file_that_always_changes_fails(faults: Faults, embed_job: MakeJob) -> None:
    name, numbers = "bucket/corpus/b/y.jsonl", itertools.count()
    content = store().cat_file(name)

    def change(request: str) -> None:
        if request == f"GET /{name}":
            store().pipe_file(name, content + b'{"text": "word"}\n' * (next(numbers) + 1))

    faults.rules.append(change)
    with pytest.raises(
        SomeFilesFailedError, match=r"b/y.jsonl changed while it was staged; run again when it is compl"
    ):
        run(embedding_workload(embed_job()))


def test_an_output_that_is_not_listed_yet_is_not_made_again(faults: Faults, embed_job: MakeJob) -> None:
    workload = embedding_workload(embed_job())  # lists the outputs, and sees none
    run(embedding_workload(embed_job()))
    put = faults.count("PUT /bucket/run/embeddings/a/x.h5")
    assert [report.status for report in run(workload)] == ["skipped", "skipped"]
    assert faults.count("PUT /bucket/run/embeddings/a/x.h5") == put


def test_a_second_run_is_refused(faults: Faults, embed_job: MakeJob) -> None:
    first, second = embedding_workload(embed_job()), embedding_workload(embed_job())
    with first.work.session(first.files):
        with pytest.raises(
            ConfigError, match=rf"another run, process {os.getpid()} on .*, writes there; wait for its end"
        ):
            with second.work.session(second.files):
                pytest.fail("not reached")
    with second.work.session(second.files):
        pass
    assert not store().exists("bucket/run/.mlfilter/runs")


def test_the_next_file_is_staged_while_one_is_read(
    faults: Faults, embed_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = embedding_workload(embed_job())
    first, second = workload.files
    make = EmbedWork.make

    def slowly(work: EmbedWork, file: TaskFile) -> EmbedReport:
        if file.relative == first.relative:  # the encoder is at the first file
            within(20, lambda: (second.folder / second.relative).exists())
        return make(work, file)

    monkeypatch.setattr(EmbedWork, "make", slowly)
    reports = run(workload)
    assert [report.status for report in reports] == ["embedded", "embedded"]
    assert faults.count(f"GET /bucket/corpus/{second.relative}") == 1


def test_a_worker_stages_one_file_ahead_at_most(faults: Faults, embed_job: MakeJob) -> None:
    for n in range(6):
        store().pipe_file(f"bucket/corpus/c/{n}.jsonl", b'{"id": "c", "text": "word"}\n')
    workload = embedding_workload(embed_job())
    with workload.work.session(workload.files):
        for file in workload.files:
            workload.work.run(file)
            there = [path for path in workload.files[0].folder.rglob("*.jsonl") if not path.name.startswith(".")]
            assert len(there) <= 1, "beside the one that was read"


def test_heads_and_embeddings_in_a_store_give_the_scores_of_those_here(
    bucket: Path, embed_job: MakeJob, tmp_path: Path
) -> None:
    run(embedding_workload(embed_job()))
    torch.save(torch.nn.Sequential(torch.nn.Linear(TINY_DIM, 1)).state_dict(), tmp_path / "head.pt")
    store().put_file(str(tmp_path / "head.pt"), "bucket/heads/head.pt")
    params: dict[str, Any] = {"output_keys": ["document_id", "text"], "source_dir": "s3://bucket/corpus"}

    def job(folder: str, output_dir: str, head: str, **other: Any) -> AnnotationJob:
        heads = {"regression_head_checkpoints": {"a": head}}
        written = {**params, "embeddings_directory": folder, "output_dir": output_dir, **heads, **other}
        return load_job({"params": written, "staging_dir": str(tmp_path / "staging")}, AnnotationJob)

    there = job("s3://bucket/run/embeddings", "s3://bucket/run", "s3://bucket/heads/head.pt")
    here = job(
        str(bucket / "run/embeddings"),
        str(tmp_path / "o"),
        str(tmp_path / "head.pt"),
        source_dir=str(bucket / "corpus"),
    )
    run(annotation_workload(there))
    run(annotation_workload(here))
    for name in ("a/x.jsonl", "b/y.jsonl"):
        one, other = bucket / "run/annotated_data" / name, tmp_path / "o/annotated_data" / name
        assert one.read_bytes() == other.read_bytes()
        assert "score_a" in one.read_text() and '"text":"word' in one.read_text()
    assert [report.status for report in run(annotation_workload(there))] == ["skipped", "skipped"]
    missing = job("s3://bucket/run/embeddings", "s3://bucket/other", "s3://bucket/heads/none.pt")
    with pytest.raises(HeadError, match=r"head a: the checkpoint s3://bucket/heads/none.pt does not exist"):
        annotation_workload(missing)


def test_sources_in_a_store_are_named_where_they_are_needed(bucket: Path, embed_job: MakeJob, tmp_path: Path) -> None:
    run(embedding_workload(embed_job(output_dir=str(tmp_path / "out"))))
    torch.save(torch.nn.Sequential(torch.nn.Linear(TINY_DIM, 1)).state_dict(), tmp_path / "head.pt")
    params = {"embeddings_directory": str(tmp_path / "out/embeddings"), "output_dir": str(tmp_path / "out")}
    params |= {"regression_head_checkpoints": {"a": str(tmp_path / "head.pt")}, "output_keys": ["text"]}  # type: ignore[dict-item]
    with pytest.raises(Exception, match=r"its source is in a store; set params.source_dir: s3://bucket/corpus"):
        run(annotation_workload(load_job({"params": params}, AnnotationJob)))


def test_documents_are_annotated_inline_from_a_store(bucket: Path, embed_job: MakeJob, tmp_path: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(TINY_DIM, 1)).state_dict(), tmp_path / "head.pt")
    store().put_file(str(tmp_path / "head.pt"), "bucket/heads/head.pt")
    inline = {"regression_head_checkpoints": {"a": "s3://bucket/heads/head.pt"}, "output_keys": ["document_id", "text"]}
    job = embed_job(annotate_inline=inline, keep_embeddings=False)
    reports = run(embedding_workload(job))
    assert reports[0].output == "s3://bucket/run/annotated_data/a/x.jsonl"
    assert len((bucket / "run/annotated_data/b/y.jsonl").read_text().splitlines()) == 7
    assert not list((bucket / "run").rglob("*.h5"))
    assert [report.status for report in run(embedding_workload(job))] == ["skipped", "skipped"]


def test_outputs_below_the_corpus_are_no_sources(bucket: Path, embed_job: MakeJob) -> None:
    job = embed_job(output_dir="s3://bucket/corpus")
    run(embedding_workload(job))
    assert [file.relative for file in embedding_workload(job).files] == ["a/x.jsonl", "b/y.jsonl"]
    below = embed_job(output_dir="s3://bucket/corpus/run")
    run(embedding_workload(below))
    assert [file.relative for file in embedding_workload(below).files] == ["a/x.jsonl", "b/y.jsonl"]
