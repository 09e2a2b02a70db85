"""The tables of the data formats, compared with files that the project wrote."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.embedding.committed import MAGIC, PREFIX
from mlfilter_core.embedding_store.centroids import Cells, load_centroids, write_centroids
from mlfilter_core.embedding_store.fingerprint import FIELDS
from mlfilter_core.filtering.work import survey_workload
from mlfilter_core.heads.trained_head import TrainedHead, write_head
from mlfilter_core.job_kinds import course_of, workload_of
from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.facts import RejectFacts, RunFacts
from mlfilter_core.run_report.write_report import as_json
from mlfilter_core.work.run_log import RUN, RunLog
from mlfilter_core.work.workload import Workload
from tests.conftest import TINY_DIM
from tests.docs.pages import DOCS, REPOSITORY

FORMATS, HEADS, RECORDS = ((DOCS / "reference" / f"{name}.md").read_text() for name in ("formats", "heads", "records"))
NAME = "en/forum"


@pytest.fixture(scope="module")
def outputs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with embeddings, scores and a filtered corpus of one file."""
    folder = tmp_path_factory.mktemp("outputs")
    head = TrainedHead(
        [torch.ones(1, TINY_DIM)], [torch.zeros(1)], "relu", "regression", ["a"], dict.fromkeys(FIELDS), {"request": {}}
    )
    write_head(folder / "head.safetensors", head)
    source = {"input_dir": REPOSITORY / "examples" / "corpus", "glob_pattern": f"{NAME}.jsonl", "text_field": "text"}
    labels = {"keys_to_index": ["language"], "save_labels": True, "label_key": "scores.education", "id_key": "id"}
    scores = {"regression_head_checkpoints": {"a": folder / "head.safetensors"}, "allow_mismatched_head": True}
    params = {**source, **labels, "embedding_model": tiny_model, "output_dir": folder}
    embeddings = {"embeddings_directory": folder / "embeddings", "output_dir": folder}
    keep = {"annotated_directory": folder / "annotated_data", "keep": {"scores": "a"}}
    do(workload_of(job(EmbeddingJob, params)))
    do(workload_of(job(AnnotationJob, {**embeddings, **scores})))
    filtering = job(FilterJob, {**embeddings, **keep})
    do(survey_workload(filtering))
    do(workload_of(filtering))
    clustering = job(ClusterJob, {**embeddings, "n_clusters": 3})
    for step in course_of(clustering):
        do(step)
    deduplicating = {**embeddings, "clusters_directory": folder / "clusters", "threshold": 0.5}
    for workload in course_of(job(DeduplicationJob, deduplicating)):
        do(workload)
    return folder


def job(kind: type[Job], params: dict[str, Any]) -> Any:
    written = {name: str(value) if isinstance(value, Path) else value for name, value in params.items()}
    if "regression_head_checkpoints" in written:
        written["regression_head_checkpoints"] = {k: str(v) for k, v in written["regression_head_checkpoints"].items()}
    return kind.model_validate({"params": written})


def do(workload: Workload[Any]) -> None:
    workload.work.prepare(workload.files)
    for file in workload.files:
        workload.work.run(file)
    workload.work.conclude()


def rows(page: str, heading: str, n: int = 0) -> dict[str, str]:
    """Returns a table of a section: the code in its first column, and the rest of the row."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[n]
    found: dict[str, str] = {}
    for line in table.splitlines()[2:]:
        _, first, rest = line.split("|", 2)
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", first), rest)
    return found


def words(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def load(path: Path) -> Any:
    return json.loads(path.read_bytes())


def test_embeddings_have_the_datasets_and_their_types(outputs: Path) -> None:
    table = rows(FORMATS, "Embeddings")
    with h5py.File(outputs / "embeddings" / f"{NAME}.h5") as file:
        group = file["train"]
        names = {*group, *(f"index/{key}" for key in group["index"])} - {"index"}
        named = {name.replace("index/language", "index/<key>") for name in names}
        assert named | {"embedding_scale", "first_chunk"} == table.keys()
        for name in names - {"labels", "index/language", "document_id"}:
            assert f"{group[name].dtype}" in table[name]
            assert group[name].fletcher32


def test_embeddings_have_the_attributes_and_their_keys(outputs: Path) -> None:
    table = rows(FORMATS, "Embeddings", 1)
    with h5py.File(outputs / "embeddings" / f"{NAME}.h5") as file:
        attributes = file["train"].attrs
        assert set(attributes) == {*table, "format_version"}
        for name, meaning in table.items():
            if name != "versions":
                assert set(json.loads(attributes[name])) <= words(meaning), name


def test_checkpoints_are_as_described() -> None:
    table = FORMATS.partition("## Checkpoints")[2].partition("\n## ")[0]
    assert f"| {len(MAGIC)} | `{MAGIC.decode()}`".replace("\n", "\\n") in table
    assert PREFIX.format == "<QQ16s"


def test_rejected_lines_have_the_keys(outputs: Path) -> None:
    line = json.loads((outputs / "rejected" / f"{NAME}.jsonl").read_text().splitlines()[0])
    assert line.keys() == rows(FORMATS, "Rejected lines").keys() - {"raw_base64"}


def test_clusters_have_the_columns_and_keys(outputs: Path, tmp_path: Path) -> None:
    columns, metadata, listed, tensors, centroids = (rows(FORMATS, "Clusters", n) for n in range(5))
    file = pq.ParquetFile(outputs / "clusters" / f"{NAME}.parquet")
    assert types_of(file.schema_arrow) == {name: type_in(meaning) for name, meaning in columns.items()}
    assert json.loads(file.metadata.metadata[b"mlfilter_clusters"]).keys() == metadata.keys()
    line = json.loads((outputs / "clusters.jsonl").read_text().splitlines()[0])
    assert line.keys() == listed.keys()
    assert all(near.keys() == words(listed["nearest"]) for near in line["nearest"])
    found = load_centroids(outputs / "clusters.safetensors")
    # The corpus is too small to have cells.
    numbers = np.arange(len(found.vectors))
    cells = Cells(found.vectors, numbers, numbers)
    write_centroids(tmp_path / "clusters.safetensors", dataclasses.replace(found, cells=cells))
    with safe_open(tmp_path / "clusters.safetensors", "numpy") as stored:
        stated = json.loads(stored.metadata()["mlfilter_clusters"])
        assert set(stored.keys()) == {name for names in tensors for name in re.findall(r"\w+", names)}
        names = [json.loads(line) for line in stored.get_tensor("names").tobytes().splitlines()]
    assert stated.keys() == centroids.keys()
    assert stated["found_on"].keys() == words(centroids["found_on"])
    assert len(names) == 3
    assert all(name.keys() == words(tensors["names"]) for name in names)


def test_duplicates_have_the_columns_and_keys(outputs: Path) -> None:
    columns, made, batch, facts, summary, shown = (rows(FORMATS, "Duplicates", n) for n in range(6))
    of_file = pq.ParquetFile(outputs / "duplicates" / f"{NAME}.parquet")
    assert types_of(of_file.schema_arrow) == {name: type_in(meaning) for name, meaning in columns.items()}
    stated = json.loads(of_file.metadata.metadata[b"mlfilter_duplicates"])
    assert stated.keys() == made.keys()
    assert stated["request"].keys() <= words(made["request"])
    assert stated["output"].keys() == words(made["output"]) - {"deduplicated/**/x.jsonl"}
    assert (outputs / "deduplicated" / f"{NAME}.jsonl").exists()
    with pa.ipc.open_file(outputs / "duplicates.arrow") as of_corpus:
        schema = of_corpus.schema
    assert types_of(schema) == {name: type_in(meaning) for name, meaning in batch.items()}
    found = json.loads(schema.metadata[b"mlfilter_duplicates"])
    assert schema.metadata.keys() == {b"mlfilter_duplicates", b"mlfilter_identities", b"mlfilter_names"}
    assert found.keys() == facts.keys()
    assert found["request"].keys() == words(facts["request"]) - {"cells_sha256"}
    assert found["corpus"].keys() == words(facts["corpus"]) - {"scores", "prefer: best"}
    whole = load(outputs / "duplicates.json")
    assert whole.keys() == {*facts, *summary}
    assert whole["recall"].keys() == words(summary["recall"]) - {"threshold: exact"}
    assert whole["largest"][0].keys() == words(summary["largest"])
    assert all(document.keys() == shown.keys() for group in whole["largest"] for document in group["shown"])


def types_of(schema: Any) -> dict[str, str]:
    return {field.name: str(field.type).replace("float", "float32") for field in schema}


def type_in(meaning: str) -> str:
    return meaning.split("|")[0].strip()


@pytest.mark.parametrize(
    ("folder", "heading", "left_out"), [("annotated_data", "Annotated files", 1), ("filtered", "Filtered files", 0)]
)
def test_provenance_has_the_keys(outputs: Path, folder: str, heading: str, left_out: int) -> None:
    made = load(outputs / folder / ".provenance" / f"{NAME}.jsonl.json")
    table = rows(FORMATS, heading, left_out)
    assert made.keys() == table.keys()
    assert set(made["request"]) <= words(table["request"])


def test_surveys_have_the_arrays(outputs: Path) -> None:
    table = rows(FORMATS, "Surveys")
    survey = np.load(outputs / "filtered" / ".survey" / f"{NAME}.npz")
    assert set(survey) == table.keys()
    for name in table:
        assert str(survey[name].dtype) in table[name]
    assert set(json.loads(survey["facts"].tobytes())) <= words(table["facts"])
    limits = load(outputs / "filtered" / ".survey" / "cuts.json")
    assert limits.keys() == rows(FORMATS, "Surveys", 1).keys()


def test_heads_have_the_metadata(outputs: Path) -> None:
    assert set(FIELDS) == rows(HEADS, "The contract between head and encoder").keys()
    with safe_open(outputs / "head.safetensors", "numpy") as file:
        assert set(file.metadata()) == rows(HEADS, "The format of trained heads").keys()


def test_run_records_have_the_keys(outputs: Path, tmp_path: Path) -> None:
    log = RunLog(tmp_path, "embed", outputs, 1, 0)
    log.end_by(ValueError())
    assert load(tmp_path / RUN).keys() == rows(RECORDS, "run.json").keys()


def test_reports_have_the_keys(outputs: Path) -> None:
    table = rows(RECORDS, "report.json")
    facts = json.loads(as_json(collect(outputs)))
    assert facts.keys() == table.keys()
    assert facts["totals"].keys() == words(table["totals"])
    assert facts["clustered"].keys() == words(table["clustered"]) - {"null", "clusters.jsonl"}
    assert words(table["runs"]) == RunFacts.__dataclass_fields__.keys()
    assert words(table["rejects"]) == RejectFacts.__dataclass_fields__.keys()
