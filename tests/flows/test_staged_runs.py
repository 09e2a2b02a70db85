"""Whole runs whose folders are in a store: rclone's server, real workers."""

import json
import os
from pathlib import Path

import pytest

from flows.annotate import annotate
from flows.embed import embed
from tests.flows.conftest import WriteJob
from tests.s3_servers import KEY, SECRET, rclone_server, store


@pytest.mark.usefixtures("spawned_workers")
def test_a_corpus_in_a_store_is_embedded_and_scored_there_as_here(
    embed_job: WriteJob, annotate_job: WriteJob, corpus: Path, heads: dict[str, str], tmp_path: Path
) -> None:
    embed(embed_job())
    annotate(annotate_job(output_keys=["document_id", "text"]))
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    bucket, staging = tmp_path / "buckets" / "bucket", {"staging_dir": str(tmp_path / "staging")}
    with rclone_server(tmp_path / "buckets", os.environ):
        store().put(str(corpus), "bucket/", recursive=True)
        for head in heads.values():
            store().put_file(head, f"bucket/heads/{Path(head).name}")
        in_store = {
            "embeddings_directory": "s3://bucket/run/embeddings",
            "source_dir": "s3://bucket/corpus",
            "output_dir": "s3://bucket/run",
            "output_keys": ["document_id", "text"],
            "regression_head_checkpoints": {name: f"s3://bucket/heads/{Path(p).name}" for name, p in heads.items()},
        }
        embed_file = embed_job(input_dir="s3://bucket/corpus", output_dir="s3://bucket/run")
        embedded = embed(embed_file, staging)
        annotated = annotate(annotate_job(**in_store), staging)
        assert embedded.totals()["documents"] == annotated.totals()["documents"] == 21
        assert [row.status for row in embed(embed_file, staging).reports] == ["skipped"] * 3
    for name in ("a/x", "b/x", "b/y"):
        put, made = (folder / "annotated_data" / f"{name}.jsonl" for folder in (bucket / "run", tmp_path / "out"))
        assert [json.loads(line) for line in put.read_text().splitlines()] == [
            json.loads(line) for line in made.read_text().splitlines()
        ]
    _no_secret_in(bucket / "run", tmp_path / "staging")


def _no_secret_in(*folders: Path) -> None:
    """Checks that credentials are in no log, record or output."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "job.yaml" for path in files)
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content and KEY.encode() not in content, path
