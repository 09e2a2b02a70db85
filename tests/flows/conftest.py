"""Job files over small corpora, and the shared workers and server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import TINY_DIM
from tests.flows.dask_workers import api as api
from tests.flows.dask_workers import client as client
from tests.flows.dask_workers import fast_workers as fast_workers
from tests.flows.dask_workers import spawned_workers as spawned_workers
from tests.flows.dask_workers import workers as workers

WriteJob = Callable[..., Path]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files of 5, 7 and 9 documents, in two folders."""
    folder = tmp_path / "corpus"
    for n, name in ((5, "a/x.jsonl"), (7, "b/x.jsonl"), (9, "b/y.jsonl")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        records = [{"id": f"{name}-{i}", "text": "word " * (1 + (7 * i + n) % 11), "score": i} for i in range(n)]
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def heads(tmp_path: Path) -> dict[str, str]:
    """A linear head and an MLP for the tiny encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        linear = torch.nn.Sequential(torch.nn.Linear(TINY_DIM, 1))
        mlp = torch.nn.Sequential(torch.nn.Linear(TINY_DIM, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    torch.save(linear.state_dict(), tmp_path / "linear.pt")
    torch.save(mlp.state_dict(), tmp_path / "mlp.pt")
    return {"linear": str(tmp_path / "linear.pt"), "mlp": str(tmp_path / "mlp.pt")}


@pytest.fixture
def embed_job(tmp_path: Path, corpus: Path, tiny_model: Path) -> WriteJob:
    """Writes a job file for the corpus; keyword arguments replace parameters."""

    def write(**params: Any) -> Path:
        params = {
            "input_dir": str(corpus),
            "text_field": "text",
            "output_dir": str(tmp_path / "out"),
            "embedding_model": str(tiny_model),
            "max_batch_tokens": 512,  # to find the fastest size takes each worker 2 s of CPU time
            **params,
        }
        return _write_yaml(tmp_path / "embed.yaml", {"params": params, "local_settings": {"workers": 1}})

    return write


@pytest.fixture
def annotate_job(tmp_path: Path, heads: dict[str, str]) -> WriteJob:
    """Writes a job file for the embeddings in out/embeddings; keyword arguments replace parameters."""

    def write(**params: Any) -> Path:
        params = {
            "embeddings_directory": str(tmp_path / "out" / "embeddings"),
            "output_dir": str(tmp_path / "out"),
            "regression_head_checkpoints": heads,
            **params,
        }
        return _write_yaml(tmp_path / "annotate.yaml", {"params": params, "local_settings": {"workers": 1}})

    return write


def cluster_job_file(folder: Path, **params: Any) -> Path:
    """Writes a job file for the embeddings in out/embeddings; keyword arguments replace parameters."""
    defaults = {
        "embeddings_directory": str(folder / "out" / "embeddings"),
        "output_dir": str(folder / "out"),
        "n_clusters": 3,
        "device": "cpu",
    }
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"params": {**defaults, **params}, "local_settings": {"workers": 2}}))
    return path


def deduplication_job_file(folder: Path, **params: Any) -> Path:
    """Writes a job file for the embeddings and clusters in out/; keyword arguments replace parameters."""
    defaults = {
        "embeddings_directory": str(folder / "out" / "embeddings"),
        "clusters_directory": str(folder / "out" / "clusters"),
        "output_dir": str(folder / "out"),
        "threshold": 0.9,
        "device": "cpu",
    }
    path = folder / "deduplicate.yaml"
    path.write_text(yaml.safe_dump({"params": {**defaults, **params}, "local_settings": {"workers": 2}}))
    return path


def write_embeddings(path: Path, n_rows: int, dim: int = TINY_DIM) -> None:
    """Writes a plain file of embeddings, as another tool would."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["train/embeddings"] = np.random.default_rng(n_rows).standard_normal((n_rows, dim), np.float32)
        file["train/document_id"] = [f"{path.stem}-{i}" for i in range(n_rows)]


def _write_yaml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path
