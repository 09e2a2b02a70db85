import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from flows.annotate import annotate
from flows.cluster import cluster
from flows.embed import embed
from flows.filter import filter as filter_documents
from flows.running.report import FilesFailedError
from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.errors import ConfigError, OtherSettingsError
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import verify
from tests.flows.conftest import WriteJob, cluster_job_file

KEYS = ["document_id", "cluster", "cluster_name"]


@pytest.fixture
def annotate_clusters(annotate_job: WriteJob, tmp_path: Path) -> WriteJob:
    def write(**params: Any) -> Path:
        defaults = {"output_keys": KEYS, "clusters_directory": str(tmp_path / "out" / "clusters")}
        return annotate_job(**{**defaults, **params})

    return write


def records_in(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (line for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines())
    return {record["document_id"]: record for record in map(json.loads, lines) if "document_id" in record}


def test_a_filter_keeps_the_best_of_each_topic(
    embed_job: WriteJob, annotate_clusters: WriteJob, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed(embed_job())
    cluster(cluster_job_file(tmp_path))
    annotate(annotate_clusters())
    tables = [pq.read_table(path).to_pylist() for path in sorted((out / "clusters").rglob("*.parquet"))]
    expected = {row["document_id"]: row["cluster"] for table in tables for row in table}
    records = records_in(out / "annotated_data")
    assert {name: record["cluster"] for name, record in records.items()} == expected
    listed = map(json.loads, (out / "clusters.jsonl").read_text().splitlines())
    names = {row["cluster"]: row["name"] for row in listed}
    assert all(record["cluster_name"] == names[record["cluster"]] for record in records.values())

    job = {
        "annotated_directory": str(out / "annotated_data"),
        "output_dir": str(out),
        "keep": {"scores": {"linear": {"percentile": 50}}, "per": "cluster"},
    }
    (tmp_path / "filter.yaml").write_text(yaml.safe_dump({"params": job, "local_settings": {"workers": 1}}))
    filter_documents(tmp_path / "filter.yaml")
    kept = set[str]()
    for topic in names:
        scores = {name: record["score_linear"] for name, record in records.items() if record["cluster"] == topic}
        from_best = sorted(scores.values(), reverse=True)
        limit = from_best[len(from_best) - len(from_best) // 2 - 1]  # all documents of equal scores are kept
        kept |= {name for name, score in scores.items() if score >= limit}
    assert len(names) == 3
    assert records_in(out / "filtered").keys() == kept
    result = verify(VerifyRequest(out), n_workers=1)
    assert result.is_right, result.wrong
    assert [report.status for report in annotate(annotate_clusters()).reports] == ["skipped"] * 3


def test_annotated_files_of_other_clusters_are_not_taken_for_finished(
    embed_job: WriteJob, annotate_clusters: WriteJob, tmp_path: Path
) -> None:
    embed(embed_job())
    cluster(cluster_job_file(tmp_path))
    annotate(annotate_clusters())
    cluster(cluster_job_file(tmp_path, n_clusters=2, overwrite=True))
    with pytest.raises(OtherSettingsError, match=r"clusters.centroids_sha256: .* in the file, .* asked for"):
        annotate(annotate_clusters())
    (wrong, *_) = verify(VerifyRequest(tmp_path / "out"), n_workers=1).wrong
    assert "has the clusters of other centroids than" in wrong.problems[0]
    annotate(annotate_clusters(overwrite=True))
    assert verify(VerifyRequest(tmp_path / "out"), n_workers=1).is_right


def test_another_cluster_than_in_the_file_of_clusters_is_found(
    embed_job: WriteJob, annotate_clusters: WriteJob, tmp_path: Path
) -> None:
    embed(embed_job())
    cluster(cluster_job_file(tmp_path))
    annotate(annotate_clusters(output_keys=[*KEYS, "cluster_distance"]))
    path = tmp_path / "out/annotated_data/a/x.jsonl"
    first, *others = path.read_text().splitlines()
    changed = {**json.loads(first), "cluster": 7, "cluster_name": "another", "cluster_distance": 0.9}
    path.write_text("\n".join([json.dumps(changed), *others, ""]))
    (wrong,) = verify(VerifyRequest(tmp_path / "out"), n_workers=1).wrong
    for message in ("line 1: cluster is 7, and ", 'cluster_name is "another", and ', "cluster_distance is 0.9, and "):
        assert message in " ".join(wrong.problems)


def test_parts_of_a_file_have_their_clusters(embed_job: WriteJob, annotate_clusters: WriteJob, tmp_path: Path) -> None:
    embed(embed_job())
    cluster(cluster_job_file(tmp_path))
    annotate(annotate_clusters(split=2, batch_size=2))
    divided = records_in(tmp_path / "out/annotated_data")
    annotate(annotate_clusters(output_dir=str(tmp_path / "whole"), split=False))
    whole = records_in(tmp_path / "whole/annotated_data")
    assert len(divided) == 21
    assert {name: record["cluster"] for name, record in divided.items()} == {
        name: record["cluster"] for name, record in whole.items()
    }


def test_a_file_without_clusters_fails_alone(embed_job: WriteJob, annotate_clusters: WriteJob, tmp_path: Path) -> None:
    embed(embed_job())
    cluster(cluster_job_file(tmp_path))
    (tmp_path / "out/clusters/a/x.parquet").unlink()
    with pytest.raises(FilesFailedError, match=r"there is no .*x.parquet, the clusters of .*x.h5; cluster again"):
        annotate(annotate_clusters())
    assert len(records_in(tmp_path / "out/annotated_data")) == 16
    for name in ("x", "y"):
        (tmp_path / f"out/clusters/b/{name}.parquet").unlink()
    with pytest.raises(ConfigError, match=r"there is no .*\.parquet, the clusters of .*\.h5; cluster again"):
        annotate(annotate_clusters(overwrite=True))


def test_cluster_without_its_folder_is_a_key_of_the_documents(
    embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path
) -> None:
    embed(embed_job())
    advice = r"'cluster' is neither in .*; for the clusters of a cluster job, set params.clusters_directory"
    with pytest.raises(ConfigError, match=advice):
        annotate(annotate_job(output_keys=["cluster"]))
    annotate(annotate_job())
    provenance = tmp_path / "out/annotated_data/.provenance/a/x.jsonl.json"
    assert "clusters" not in json.loads(provenance.read_text())["request"]


def test_a_key_of_the_documents_does_not_take_the_place_of_the_cluster(
    embed_job: WriteJob, annotate_clusters: WriteJob, corpus: Path, tmp_path: Path
) -> None:
    for path in corpus.rglob("*.jsonl"):
        lines = [{**json.loads(line), "cluster": "own"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    clash = r'the documents already have a key "cluster"; leave it, or "\*", out of params.output_keys'
    embed(embed_job())
    cluster(cluster_job_file(tmp_path))
    with pytest.raises(FilesFailedError, match=clash):
        annotate(annotate_clusters(output_keys=["*", "cluster"]))
    embed(embed_job(keys_to_index=["cluster"], overwrite=True))
    cluster(cluster_job_file(tmp_path, overwrite=True))
    with pytest.raises(FilesFailedError, match=clash):
        annotate(annotate_clusters())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"output_keys": ["document_id"]}, "clusters_directory goes with cluster, cluster_distance, cluster_name in"),
        (
            {"clusters_directory": None, "centroids": "c.safetensors"},
            "centroids are those of clusters_directory, which is not set",
        ),
        ({"clusters_directory": "s3://bucket/clusters"}, "clusters_directory = 's3:"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    params: dict[str, Any], message: str, annotate_clusters: WriteJob
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job(annotate_clusters(**params), AnnotationJob)


def test_annotation_while_embedding_has_no_clusters(embed_job: WriteJob, heads: dict[str, str]) -> None:
    inline = {"regression_head_checkpoints": heads, "output_keys": KEYS, "clusters_directory": "out/clusters"}
    with pytest.raises(ConfigError, match="documents have clusters only after a cluster job, which needs the embeddin"):
        load_job(embed_job(annotate_inline=inline), EmbeddingJob)
