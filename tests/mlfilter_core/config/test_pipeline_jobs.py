import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.pipeline_jobs import PipelineJobs
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.errors import ConfigError
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, write_topics

EMBEDDINGS, CLUSTERS, SCORED, DEDUPLICATED = "out/embeddings", "out/clusters", "out/annotated_data", "out/deduplicated"
KINDS = {
    "embed": EmbeddingJob,
    "cluster": ClusterJob,
    "train": TrainingJob,
    "annotate": AnnotationJob,
    "deduplicate": DeduplicationJob,
    "filter": FilterJob,
}
PARAMS: dict[str, dict[str, Any]] = {
    "embed": {"input_dir": "corpus", "text_field": "text", "embedding_model": "model"},
    "cluster": {"embeddings_directory": EMBEDDINGS, "n_clusters": "auto"},
    "train": {"embeddings_directory": EMBEDDINGS, "heads": {"good": {}}},
    "annotate": {
        "embeddings_directory": EMBEDDINGS,
        "clusters_directory": CLUSTERS,
        "output_keys": ["cluster"],
        "regression_head_checkpoints": {"good": "good.pt"},
    },
    "deduplicate": {
        "embeddings_directory": EMBEDDINGS,
        "clusters_directory": CLUSTERS,
        "annotated_directory": SCORED,
        "threshold": 0.9,
    },
    "filter": {"annotated_directory": DEDUPLICATED, "keep": {"scores": {"good": {}}}},
}


def jobs_with(changes: dict[str, dict[str, Any]], left_out: tuple[str, ...] = ()) -> PipelineJobs:
    """Returns jobs that agree, but for changes of the parameters of some steps."""
    jobs = {
        step: kind.model_validate({"params": {"output_dir": "out", **PARAMS[step], **changes.get(step, {})}})
        for step, kind in KINDS.items()
    }
    return PipelineJobs(**{step: None if step in left_out else job for step, job in jobs.items()})  # type: ignore[arg-type]


NO_CLUSTERS: dict[str, dict[str, Any]] = {
    "annotate": {"clusters_directory": None, "output_keys": ["document_id"]},
    "deduplicate": {"clusters_directory": None, "threshold": "exact"},
}
LISTED_ONLY: dict[str, Any] = {"write_documents": False, "annotated_directory": None}


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, ()),
        ({"filter": {"annotated_directory": SCORED, "embeddings_directory": EMBEDDINGS}}, ("deduplicate",)),
        ({"filter": {"annotated_directory": SCORED}, "deduplicate": LISTED_ONLY}, ()),
        ({"deduplicate": {"annotated_directory": None}}, ("filter",)),
        (NO_CLUSTERS, ("cluster", "train")),
        ({"annotate": {"embeddings_directory": f"{EMBEDDINGS}/de", "glob_pattern": "*"}}, ()),
        ({"embed": {"embedding_dir": "embeddings", "output_dir": str(Path("out").absolute())}}, ()),
    ],
)
def test_jobs_that_read_what_the_others_write_agree(
    changes: dict[str, dict[str, Any]], left_out: tuple[str, ...]
) -> None:
    jobs_with(changes, left_out).check()


@pytest.mark.parametrize(
    ("step", "params", "left_out", "message"),
    [
        *(
            (step, {"embeddings_directory": "other"}, (), f"{step} step: params.embeddings_directory is other, and the "
             "embed step writes out/embeddings; give that")
            for step in ("cluster", "train", "annotate", "deduplicate")
        ),
        ("annotate", {"embeddings_directory": "out/embeddings_2"}, (), "is out/embeddings_2, and the embed step"),
        ("annotate", {"embeddings_directory": "s3://bucket/out"}, (), "is s3://bucket/out, and the embed step writes"),
        *(
            (step, {"clusters_directory": "old/clusters"}, (), f"{step} step: params.clusters_directory is "
             "old/clusters, and the cluster step writes out/clusters")
            for step in ("annotate", "deduplicate")
        ),
        ("annotate", {"centroids": "old.safetensors"}, (), "params.centroids is old.safetensors, and the cluster step "
         "writes out/clusters.safetensors"),
        ("annotate", {}, ("cluster", "deduplicate"), "out/clusters.safetensors is not a file of centroids"),
        ("deduplicate", {"annotated_directory": "old"}, (), "is old, and the annotate step writes out/annotated_data"),
        ("deduplicate", {"annotated_directory": None}, (), "deduplicate step: the filter step needs scored documents; "
         "set params.annotated_directory to out/annotated_data"),
        ("filter", {"annotated_directory": SCORED}, (), "is out/annotated_data, and the deduplicate step writes "
         "out/deduplicated"),
        ("filter", {}, ("deduplicate",), "is out/deduplicated, and the annotate step writes out/annotated_data"),
        ("filter", {"embeddings_directory": EMBEDDINGS}, (), "deduplicated documents are not the rows of the embeddin"),
    ],
)  # fmt: skip
def test_a_job_that_reads_something_else_is_refused(
    step: str, params: dict[str, Any], left_out: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        jobs_with({step: params}, left_out).check()
    assert message in str(error.value)


def test_clusters_that_are_there_need_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(60) % 3)
    run_steps(cluster_job(tmp_path))
    monkeypatch.chdir(tmp_path)
    jobs = jobs_with({}, ("cluster",))
    jobs.check()
    given = ClusterJob.model_validate(
        {"params": {**PARAMS["cluster"], "output_dir": "out", "centroids": "missing.safetensors"}}
    )
    with pytest.raises(ConfigError, match=r"missing\.safetensors is not a file of centroids"):
        dataclasses.replace(jobs, cluster=given).check()
