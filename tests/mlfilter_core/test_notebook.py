"""The public interface of the core, as a notebook uses it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import mlfilter_core
from mlfilter_core.errors import HeadError
from tests.conftest import TINY_DIM
from tests.mlfilter_core.clustering.topics import cluster_job, write_topics

TEXTS = ["a text", "a longer text than the other", "c"]


@pytest.fixture
def head(tmp_path: Path) -> Path:
    torch.save(torch.nn.Sequential(torch.nn.Linear(TINY_DIM, 1)).state_dict(), tmp_path / "head.pt")
    return tmp_path / "head.pt"


def test_what_is_exported_is_documented() -> None:
    for name in mlfilter_core.__all__:
        assert getattr(mlfilter_core, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'load_decoder'"):
        mlfilter_core.load_decoder  # noqa: B018


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import mlfilter_core, sys; print({'torch', 'h5py', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_texts_are_embedded_and_scored_as_by_jobs(tmp_path: Path, tiny_model: Path, head: Path) -> None:
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "corpus" / "x.jsonl").write_text("\n".join(lines))
    embed = {"input_dir": str(tmp_path / "corpus"), "output_dir": str(tmp_path), "embedding_model": str(tiny_model)}
    annotate = {
        **{"embeddings_directory": str(tmp_path / "embeddings"), "output_dir": str(tmp_path), "output_keys": ["id"]},
        "regression_head_checkpoints": {"quality": str(head)},
    }
    keep = {"scores": {"quality": {"percentile": 50}}}
    filter_ = {"annotated_directory": str(tmp_path / "annotated_data"), "output_dir": str(tmp_path), "keep": keep}
    cluster = {"embeddings_directory": str(tmp_path / "embeddings"), "output_dir": str(tmp_path), "n_clusters": 1}
    for name, params in (("embed", embed), ("annotate", annotate), ("filter", filter_), ("cluster", cluster)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"params": params}))
        (report,) = mlfilter_core.run_in_process(mlfilter_core.load_job(tmp_path / f"{name}.yaml"))
        assert report.documents == len(TEXTS)
    (listed,) = (tmp_path / "clusters.jsonl").read_text().splitlines()
    assert json.loads(listed)["documents"] == len(TEXTS)

    encoder = mlfilter_core.load_encoder(str(tiny_model), device="cpu")
    embeddings = mlfilter_core.embed_texts(encoder, TEXTS)
    with mlfilter_core.open_embeddings(tmp_path / "embeddings" / "x.h5") as file:
        np.testing.assert_allclose(embeddings, file.embeddings(slice(None)), atol=1e-6)
    columns = mlfilter_core.score_embeddings(mlfilter_core.load_heads({"quality": head}), embeddings)
    annotated = [json.loads(line) for line in (tmp_path / "annotated_data" / "x.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(columns["score_quality"], [line["score_quality"] for line in annotated], rtol=1e-5)
    kept = [json.loads(line) for line in (tmp_path / "filtered" / "x.jsonl").read_text().splitlines()]
    scores = sorted(line["score_quality"] for line in annotated)
    assert sorted(line["score_quality"] for line in kept) == scores[1:]


def test_a_head_of_another_width_is_refused(head: Path) -> None:
    with pytest.raises(HeadError, match="the embeddings"):
        mlfilter_core.score_embeddings(mlfilter_core.load_heads({"quality": head}), np.ones((2, 3), np.float32))


def test_centroids_that_are_given_are_not_found_again(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(30) % 3)
    mlfilter_core.run_in_process(cluster_job(tmp_path))
    centroids, other = tmp_path / "out/clusters.safetensors", tmp_path / "other"
    job = cluster_job(tmp_path, n_clusters="auto", centroids=centroids, output_dir=other)
    (report,) = mlfilter_core.run_in_process(job)
    assert report.status == "clustered"
    assert not (other / "clusters.safetensors").exists()
    assert (other / "clusters/x.parquet").read_bytes() == (tmp_path / "out/clusters/x.parquet").read_bytes()
