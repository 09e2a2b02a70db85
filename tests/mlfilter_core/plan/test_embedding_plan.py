import functools
import gzip
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import SlurmSettings
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.wanted_keys import LABEL_ADVICE
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.files.disk_space import FreeSpace
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.plan import blocks as blocks_module
from mlfilter_core.plan import embedding_plan, encoder_trial, resources
from mlfilter_core.plan.embedding_plan import plan_embedding
from mlfilter_core.plan.encoder_trial import EncoderTrial
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Plan, PlannedWorkers
from tests.conftest import TINY_DIM, TINY_MAX_LENGTH, WriteLines, tiny_tokenizer

REPOSITORY = Path(__file__).parents[3]
WEB_PAGES = REPOSITORY / "shared" / "data" / "fineweb_edu_1000.jsonl"
HERE = PlannedWorkers(1, 1, 2, False, False, "1 worker on this machine")

WARNED = "so that it does not wait for tokens; set slurm_settings.cpus_per_task to 48"

PlanJob = Callable[..., Plan]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_trial, "MEASURED_S", 0.3)


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path) -> PlanJob:
    """Plans a job over tmp_path/in; keyword arguments replace parameters."""

    def planned(workers: PlannedWorkers = HERE, price_per_hour: float | None = None, **params: Any) -> Plan:
        written = {
            "input_dir": str(tmp_path / "in"),
            "text_field": "text",
            "output_dir": str(tmp_path / "out"),
            "embedding_model": str(tiny_model),
            "max_batch_tokens": 512,
            **params,
        }
        job = EmbeddingJob.model_validate({"params": written, "price_per_hour": price_per_hour})
        return plan_embedding(job, workers, 0, Findings())

    return planned


def facts_of(plan: Plan, name: str) -> Any:
    return plan.to_json()[name]


def records(n: int) -> list[dict[str, Any]]:
    return [{"id": f"doc-{i}", "text": "word " * (1 + 7 * i % 30), "score": i % 5} for i in range(n)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_of_a_small_corpus_all_is_known_and_right(
    plan: PlanJob, write_lines: WriteLines, tiny_encoder: Encoder, suffix: str, tmp_path: Path
) -> None:
    write_lines(f"in/a.jsonl{suffix}", [*records(20), b"{broken", b""])
    write_lines(f"in/b/c.jsonl{suffix}", records(7))
    made = plan(save_labels=True)
    assert made.problems == []
    documents = facts_of(made, "documents")
    tokens = sum(
        int(tiny_encoder.tokenize([record["text"] for record in own]).n_tokens.sum())
        for own in (records(20), records(7))
    )
    assert documents["documents"] == {"value": 27, "low": 27, "high": 27}
    assert documents["tokens"]["value"] == tokens
    assert documents["rejected_by_reason"]["not_json"]["value"] == 1
    assert documents["is_everything"]
    assert facts_of(made, "keys")["types"] == {
        **{"id": {"string": 27}, "text": {"string": 27}, "score": {"number": 27}},
    }
    assert facts_of(made, "encoder")["dim"] == TINY_DIM
    assert facts_of(made, "speed")["documents_per_s"] > 0
    assert not (tmp_path / "out").exists()


def test_the_predicted_size_is_that_of_the_files_that_a_run_writes(
    plan: PlanJob, write_lines: WriteLines, tmp_path: Path, tiny_encoder: Encoder, tiny_model: Path
) -> None:
    for i in range(3):
        write_lines(f"in/{i}.jsonl", records(500))
    keys = {"keys_to_index": ["id", "score"], "save_labels": True}
    made = plan(**keys)
    job = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "out", "embedding_model": str(tiny_model)}
    request = embed_work(EmbeddingJob(params={**job, "text_field": "text", **keys}).params).request
    written = 0
    for i in range(3):
        output = tmp_path / "out" / f"{i}.h5"
        embed_file(TaskFile(f"{i}.jsonl", str(i), tmp_path / "in"), output, tmp_path / "bad", request, tiny_encoder)
        written += output.stat().st_size
    assert facts_of(made, "outputs")["bytes"]["value"] == pytest.approx(written, rel=0.05)


def test_documents_in_chunks_are_estimated_with_all_their_embeddings(
    plan: PlanJob, write_lines: WriteLines, tmp_path: Path, tiny_model: Path
) -> None:
    write_lines("in/a.jsonl", [{"text": "x " * (1 + 7 * i % 30)} for i in range(300)])
    settings = {"chunks": {"tokens": 8, "overlap": 2, "most": 4}}
    made = plan(**settings)
    assert made.problems == []
    job = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "out", "embedding_model": str(tiny_model)}
    work = embed_work(EmbeddingJob(params={**job, "text_field": "text", "max_batch_tokens": 512, **settings}).params)
    report = work.run(TaskFile("a.jsonl", "a", tmp_path / "in"))
    assert facts_of(made, "documents")["tokens"]["value"] == report.tokens
    written = (tmp_path / "out/embeddings/a.h5").stat().st_size
    assert facts_of(made, "outputs")["file_bytes"] == pytest.approx(written, rel=0.05)
    lines = [text for section in made.sections for _, text in section.lines]
    assert f"{report.chunks / report.documents:.1f} per document" in lines
    assert any("at most 4 chunks of 8 tokens, 2 of them shared" in line for line in lines)


def test_of_a_large_corpus_a_sample_is_read_and_the_interval_holds_the_truth(
    plan: PlanJob, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Encoder
) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", 2 << 10)
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 30)
    monkeypatch.setattr(blocks_module, "MAX_PREFIXES", 3)
    chosen = random.Random(0)
    contents = [
        [
            {"text": " ".join(chosen.choices(("tea", "cake", "bread", "milk"), k=chosen.randint(1, 60)))}
            for _ in range(n)
        ]
        for n in range(200, 600, 50)
    ]
    for i, own in enumerate(contents):
        write_lines(f"in/{i}.jsonl" + (".gz" if i % 2 else ""), own)
    documents = facts_of(plan(), "documents")
    n_documents = sum(map(len, contents))
    n_tokens = sum(int(tiny_encoder.tokenize([record["text"] for record in own]).n_tokens.sum()) for own in contents)
    assert documents["sampled_lines"] < n_documents
    assert documents["documents"]["low"] < documents["documents"]["high"]
    assert documents["documents"]["low"] <= n_documents <= documents["documents"]["high"]
    assert documents["tokens"]["low"] <= n_tokens <= documents["tokens"]["high"]


@pytest.mark.skipif(not WEB_PAGES.exists(), reason="needs the web pages beside the project")
def test_real_web_pages_are_estimated_within_the_interval(
    plan: PlanJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 30)
    (tmp_path / "in").mkdir()
    shutil.copy(WEB_PAGES, tmp_path / "in" / "pages.jsonl")
    documents = facts_of(plan(), "documents")
    assert documents["documents"]["low"] <= 1000 <= documents["documents"]["high"]
    assert documents["sampled_lines"] < 600
    assert documents["truncated"]["value"] > 0


def test_a_model_of_sentence_transformers_is_compared_with_it(
    plan: PlanJob, minilm: ModelFiles, tmp_path: Path
) -> None:
    (tmp_path / "in").symlink_to(REPOSITORY / "examples" / "corpus" / "en")
    compared = facts_of(plan(embedding_model=minilm.model), "encoder")["sentence_transformers"]
    assert compared["texts"] == 8 + 4  # of the corpus, and short and special ones
    assert compared["lowest_cosine"] > 0.9999


@pytest.mark.parametrize("max_length", [None, 3])
def test_static_embeddings_are_compared_as_well(
    plan: PlanJob, write_lines: WriteLines, tmp_path: Path, max_length: int | None
) -> None:
    static = StaticEmbedding(tiny_tokenizer(), embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"), create_model_card=False)
    write_lines("in/a.jsonl", records(9))
    compared = facts_of(plan(embedding_model=str(tmp_path / "static"), max_length=max_length), "encoder")
    assert compared["sentence_transformers"]["texts"] > 4
    assert compared["sentence_transformers"]["lowest_cosine"] > 0.9999


def test_a_plain_folder_is_not_compared_and_the_plan_says_so(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", records(3))
    made = plan()
    assert "not a sentence-transformers folder" in facts_of(made, "encoder")["sentence_transformers"]["skipped"]
    assert made.problems == []


def test_one_document_is_enough_for_a_plan(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", records(1))
    made = plan()
    assert made.problems == []
    assert facts_of(made, "documents")["documents"]["value"] == 1
    assert yaml.safe_load(made.recommended)["slurm_settings"]["workers"] == 1


def test_an_empty_corpus_is_no_problem_and_takes_no_time(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", [])
    write_lines("in/b.jsonl.gz", [])
    made = plan()
    assert made.problems == []
    assert facts_of(made, "files")["empty"] == 1  # a compressed file of no bytes is not empty
    assert "speed" not in made.to_json()


def test_all_problems_are_said_at_once(plan: PlanJob, write_lines: WriteLines, tmp_path: Path) -> None:
    write_lines("in/a.jsonl", records(30))
    write_lines("in/cut.jsonl.gz", records(30))
    (tmp_path / "in/cut.jsonl.gz").write_bytes((tmp_path / "in/cut.jsonl.gz").read_bytes()[:-9])
    (tmp_path / "file").touch()
    heads = {"absent": str(tmp_path / "absent.pt"), "wide": str(tmp_path / "wide.pt")}
    torch.save(torch.nn.Linear(TINY_DIM + 1, 1).state_dict(), tmp_path / "wide.pt")
    made = plan(
        text_field="txt",
        id_key="uid",
        output_dir=str(tmp_path / "file" / "out"),
        max_length=TINY_MAX_LENGTH + 1,
        annotate_inline={"regression_head_checkpoints": heads},
    )
    said = "\n".join(made.problems)
    for part in (
        "params.text_field: none of 30 sampled documents has 'txt' (did you mean 'text'?)",
        "params.id_key: none of 30 sampled documents has 'uid'",
        "params.output_dir: ",
        "cut.jsonl.gz: the compressed stream is broken",
        "head absent: the checkpoint",
        f"params.max_length is {TINY_MAX_LENGTH + 1}, but the model has positions for {TINY_MAX_LENGTH}",
        "would fail with more rejected lines than params.max_rejected_fraction",
    ):
        assert part in said
    assert said.count("head absent: the checkpoint") == 1


def test_a_head_that_does_not_fit_the_encoder_is_a_problem(
    plan: PlanJob, write_lines: WriteLines, tmp_path: Path
) -> None:
    write_lines("in/a.jsonl", records(3))
    torch.save(torch.nn.Linear(TINY_DIM + 1, 1).state_dict(), tmp_path / "wide.pt")
    made = plan(annotate_inline={"regression_head_checkpoints": {"wide": str(tmp_path / "wide.pt")}})
    (problem,) = made.problems
    assert problem.startswith(f"head wide takes embeddings of width {TINY_DIM + 1}, but those of ")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"input_dir": "/nowhere/at/all"}, "the folder /nowhere/at/all does not exist; fix the path"),
        ({"glob_pattern": "*.parquet"}, "no file below"),
        ({"embedding_model": "/nowhere/model"}, "embedding_model: the folder /nowhere/model does not exist"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not available on this machine"),
        (
            {"on_bad_record": "fail"},
            "params.on_bad_record: fail: 1 of 1 sampled blocks contain a line that is not a document",
        ),
    ],
)
def test_each_kind_of_wrong_job_is_a_problem(
    plan: PlanJob, write_lines: WriteLines, params: dict[str, Any], expected: str
) -> None:
    write_lines("in/a.jsonl", [*records(3), b"{"])
    assert any(expected in problem for problem in plan(**params).problems)


def test_two_sources_of_one_output_are_a_problem(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", records(3))
    write_lines("in/a.jsonl.gz", records(3))
    assert any("would both be written to a" in problem for problem in plan().problems)


def test_a_device_that_only_the_nodes_may_have_is_a_warning(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", records(3))
    nodes = PlannedWorkers(8, 4, 8, True, True, "2 Slurm jobs of 4 workers", {"partition": "gpu"})
    made = plan(nodes, device="cuda:99")
    assert made.problems == []
    said = "\n".join(made.warnings)
    assert "the Slurm nodes may have it" in said
    assert "the workers have GPUs and this machine has none" in said
    assert "7 of 8 workers would have nothing to do" in said
    settings = yaml.safe_load(made.recommended)["slurm_settings"]
    assert settings["partition"] == "gpu"
    SlurmSettings.model_validate(settings)


def test_a_large_file_is_work_for_several_workers(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", [{"text": "a", "not read": "x" * 1000} for _ in range(20_000)])
    nodes = PlannedWorkers(4, 1, 2, False, True, "4 Slurm jobs", {})
    assert not any("nothing to do" in warning for warning in plan(nodes).warnings)
    (undivided,) = [warning for warning in plan(nodes, split=False).warnings if "nothing to do" in warning]
    assert undivided.startswith("3 of 4 workers would have nothing to do: the corpus makes 1 task, as large files")


def test_too_little_room_is_a_problem(plan: PlanJob, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines("in/a.jsonl", [*records(100), b"{"])
    # A full disk is full for every file.
    monkeypatch.setattr(resources, "free_space", lambda folder: FreeSpace(folder, 1000, 1))
    said = "\n".join(plan().problems)
    assert "kB are needed, but 1 kB are free in" in said
    assert "2 files are created, but" in said
    assert "has room for 1 (inodes)" in said


def test_finished_files_are_left_out_and_those_of_another_request_are_problems(
    plan: PlanJob, write_lines: WriteLines, tmp_path: Path, tiny_model: Path
) -> None:
    for i in range(2):
        write_lines(f"in/{i}.jsonl", records(5 + i))
    job = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "out", "embedding_model": str(tiny_model)}
    work = embed_work(EmbeddingJob(params={**job, "text_field": "text"}).params)
    work.run(TaskFile("0.jsonl", "0", tmp_path / "in"))
    made = plan()
    assert made.problems == []
    assert facts_of(made, "files")["finished"] == 1
    assert facts_of(made, "documents")["documents"]["value"] == 6
    (problem,) = plan(max_length=8).problems
    assert "was made by another request: max_length: None in the file, 8 asked for" in problem


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_model_is_compiled_where_the_job_says_so(
    plan: PlanJob, write_lines: WriteLines, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    write_lines("in/a.jsonl", records(9))
    assert facts_of(plan(device="cpu", torch_compile=True), "encoder")["is_compiled"]
    job = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "out", "embedding_model": str(tiny_model)}
    params = EmbeddingJob(params={**job, "text_field": "text", "device": "cpu", "torch_compile": True}).params
    embed_work(params).run(TaskFile("a.jsonl", "a", tmp_path / "in"))
    with EmbeddingFile(tmp_path / "out" / "embeddings" / "a.h5", "train") as file:
        assert file.provenance is not None
        assert file.provenance.encoder["is_compiled"]


@pytest.mark.parametrize(("least_bytes", "attention"), [(1, "openvino"), (1 << 20, "unpadded")])
def test_openvino_is_measured_where_the_job_uses_it(
    plan: PlanJob, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch, least_bytes: int, attention: str
) -> None:
    monkeypatch.setattr("mlfilter_core.embedding.work.MIN_TRIAL_BYTES", least_bytes)
    write_lines("in/a.jsonl", [{"text": "some words"}])
    assert facts_of(plan(device="cpu"), "encoder")["attention"] == attention


def test_costs_are_those_of_the_measured_speed(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", records(60))
    made = plan(price_per_hour=3.0)
    hours, money, speed = (
        *(facts_of(made, "cost")[name] for name in ("hours", "money")),
        facts_of(made, "speed"),
    )
    core_hours = speed["threads"] / 3600
    n_tokens = facts_of(made, "documents")["tokens"]["value"]
    assert hours["per_billion_tokens"]["value"] == pytest.approx(1e9 / speed["tokens_per_s"] * core_hours)
    assert hours["per_million_documents"]["value"] == pytest.approx(
        n_tokens / 60 * 1e6 / speed["tokens_per_s"] * core_hours
    )
    assert hours["for_the_corpus"]["value"] == pytest.approx(n_tokens / speed["tokens_per_s"] * core_hours)
    assert money == {
        name: {key: pytest.approx(3 * hours_of[key]) for key in hours_of} for name, hours_of in hours.items()
    }


def test_the_cores_that_tokenizing_takes_are_those_of_the_two_speeds(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", records(60))
    speed = facts_of(plan(), "speed")
    cores = speed["encoder_tokens_per_s"] / speed["tokenizer_tokens_per_s"]
    assert speed["tokenizing_cores"] == pytest.approx(cores)
    assert 0 < cores < speed["threads"]
    assert speed["encoder_tokens_per_s"] == speed["tokens_per_s"]  # one CPU does both


@pytest.mark.parametrize(("n_cores", "is_enough"), [(11, False), (12, True)])
def test_too_few_cores_for_the_tokenizer_of_a_gpu_are_a_warning(
    plan: PlanJob, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch, n_cores: int, is_enough: bool
) -> None:
    write_lines("in/a.jsonl", records(9))

    def on_a_gpu(*arguments: Any) -> EncoderTrial | None:
        trial = encoder_trial.time_embedding(*arguments)
        assert trial is not None
        return replace(trial, device="cuda:0", tokenizer_tokens_per_s=2e5, encoder_tokens_per_s=2.1e6)

    monkeypatch.setattr(embedding_plan, "time_embedding", on_a_gpu)
    nodes = PlannedWorkers(4, 4, n_cores, True, True, "1 Slurm job of 4 workers", {"partition": "gpu"})
    made = plan(nodes)
    lines = [text for section in made.sections for _, text in section.lines]
    keeps_up = "10.5 cores for each GPU keep up with 2.1 million tokens/s of the encoder alone"
    assert f"200,000 tokens/s on one core: {keeps_up}" in lines
    said = [warning for warning in made.warnings if "does not wait for tokens" in warning]
    assert said == ([] if is_enough else [f"a worker has 11 cores, and its GPU needs 12 {WARNED}"])
    assert yaml.safe_load(made.recommended)["slurm_settings"]["cpus_per_task"] == 48
    assert facts_of(made, "cost")["unit"] == "GPU-hour"


def test_all_facts_are_json(plan: PlanJob, write_lines: WriteLines) -> None:
    write_lines("in/a.jsonl", records(9))
    made = json.loads(json.dumps(plan().to_json()))
    assert {"files", "keys", "documents", "encoder", "outputs", "speed", "problems", "warnings"} <= made.keys()


def test_gz_files_are_as_large_as_they_unpack(plan: PlanJob, write_lines: WriteLines) -> None:
    path = write_lines("in/a.jsonl.gz", records(400))
    files = facts_of(plan(), "files")
    assert files["bytes"] == path.stat().st_size
    assert files["decompressed_bytes"]["value"] == len(gzip.decompress(path.read_bytes()))


@pytest.mark.parametrize(("n_bad", "n_problems"), [(10, 0), (11, 1)])
def test_a_file_with_more_rejected_lines_than_allowed_is_a_problem(
    plan: PlanJob, write_lines: WriteLines, n_bad: int, n_problems: int
) -> None:
    write_lines("in/a.jsonl", [*records(20 - n_bad), *[b"[]"] * n_bad])
    problems = plan().problems
    assert len(problems) == n_problems
    assert all(f"a.jsonl ({n_bad} of 20 lines, most of them not_an_object)" in problem for problem in problems)


@pytest.mark.parametrize("label_key", [None, "label"])
def test_files_without_labels_among_labelled_ones_are_a_problem_with_what_helps(
    plan: PlanJob, write_lines: WriteLines, label_key: str | None
) -> None:
    plain = [{"id": str(i), "text": f"tea {i}"} for i in range(9)]
    write_lines("in/labelled.jsonl", [{**record, "label": 1} for record in plain[:5]])
    write_lines("in/plain.jsonl", plain[5:])
    made = plan(save_labels=True, label_key=label_key)
    assert [problem.partition("; ")[2] for problem in made.problems] == [LABEL_ADVICE]
    assert "plain.jsonl (4 of 4 lines, most of them missing_label); set params.glob_pattern to" in made.problems[0]
    facts = facts_of(made, "documents")
    assert (facts["documents"]["value"], facts["rejected_by_reason"]["missing_label"]["value"]) == (5, 4)
    assert plan(save_labels=True, label_key=label_key, glob_pattern="labelled*").problems == []
    assert plan(save_labels=False).problems == []


def test_lines_without_a_label_that_a_job_would_reject_are_a_warning_with_what_helps(
    plan: PlanJob, write_lines: WriteLines
) -> None:
    write_lines("in/a.jsonl", [{**record, "label": 1 if i else None} for i, record in enumerate(records(4))])
    made = plan(save_labels=True)
    assert made.problems == []
    (warning,) = (warning for warning in made.warnings if "label" in warning)
    assert warning.startswith("25 % of the sampled lines have no label and would be rejected, because of save_labels")
    assert warning.endswith(LABEL_ADVICE)


def test_a_file_of_which_some_was_read_is_a_problem_only_where_that_speaks_clearly(
    plan: PlanJob, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 4)
    good = [{"text": "tea " * 20}] * 400
    bad = [{"txt": "tea " * 20}] * 400
    write_lines("in/a.jsonl", [line for pair in zip(good, bad, strict=True) for line in pair])
    assert plan(max_rejected_fraction=0.45).problems == []
    assert len(plan(max_rejected_fraction=0.1).problems) == 1


def test_a_corpus_of_parquet_is_known_as_one_of_lines_is(plan: PlanJob, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist([*records(20), {"id": "x", "text": None}]), tmp_path / "in/a.parquet")
    made = plan(glob_pattern="**/*", max_rejected_fraction=0.1)
    assert made.problems == []
    documents = facts_of(made, "documents")
    assert documents["documents"] == {"value": 20, "low": 20, "high": 20}
    assert documents["rejected_by_reason"]["not_a_string"]["value"] == 1
    assert facts_of(made, "keys")["types"]["text"] == {"string": 20, "null": 1}
    wrong = plan(glob_pattern="**/*", text_field="texts")
    assert any("none of 21 sampled documents has 'texts' (did you mean 'text'?)" in line for line in wrong.problems)


def test_the_keys_of_a_tables_folders_are_known(plan: PlanJob, tmp_path: Path) -> None:
    for language in ("de", "en"):
        path = tmp_path / f"in/x.parquet/language={language}/part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(records(20)), path)
    made = plan(glob_pattern="**/*.parquet", keys_to_index=["language"])
    assert made.problems == []
    assert facts_of(made, "documents")["documents"] == {"value": 40, "low": 40, "high": 40}
    assert facts_of(made, "keys")["types"]["language"] == {"string": 40}
