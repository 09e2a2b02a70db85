import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.deduplicate import deduplicate
from flows.embed import embed
from flows.running.report import FilesFailedError
from flows.running.start import run_job_file
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.errors import JobError
from tests.flows.conftest import WriteJob, cluster_job_file, deduplication_job_file
from tests.flows.dask_workers import last_task_runs
from tests.mlfilter_core.clustering.topics import run_steps, write_vectors
from tests.mlfilter_core.deduplication.corpora import planted

WRITTEN = ("duplicates.arrow", "deduplicated/a/x.jsonl", "deduplicated/b/x.jsonl", "deduplicated/b/y.jsonl")


def cluster(folder: Path) -> None:
    run_steps(load_job(cluster_job_file(folder), ClusterJob, {}))


def test_the_flow_equals_the_direct_computation(embed_job: WriteJob, tmp_path: Path, client: SyncPrefectClient) -> None:
    embed(embed_job())
    cluster(tmp_path)
    report = deduplicate(deduplication_job_file(tmp_path))
    assert [(row.embeddings, row.status, row.documents) for row in report.reports] == [
        ("a/x.h5", "deduplicated", 5),
        ("b/x.h5", "deduplicated", 7),
        ("b/y.h5", "deduplicated", 9),
    ]
    names = {run.name for run in last_task_runs(client, 9)}
    assert names == {
        *(f"{verb} {file}.h5" for verb in ("divide", "deduplicate") for file in ("a/x", "b/x", "b/y")),
        *("compare cells-0", "compare texts-0", "group duplicates.arrow"),
    }
    directly = deduplication_job_file(tmp_path, output_dir=str(tmp_path / "directly"))
    run_steps(load_job(directly, DeduplicationJob, {}))
    for path in WRITTEN:
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "directly" / path).read_bytes()
    for name in ("a/x", "b/x", "b/y"):
        one, other = (pq.read_table(tmp_path / out / f"duplicates/{name}.parquet") for out in ("out", "directly"))
        assert one.equals(other)
    n_kept = sum(row.kept for row in report.reports)
    lines = [path.read_text().splitlines() for path in sorted((tmp_path / "out/deduplicated").rglob("*.jsonl"))]
    assert 0 < n_kept < 21
    assert sum(map(len, lines)) == n_kept
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["deduplicate-summary"]))
    (summary,) = client.read_artifacts(artifact_filter=wanted, limit=1, sort="CREATED_DESC")
    assert "group" in str(summary.data)
    assert [row.status for row in deduplicate(deduplication_job_file(tmp_path)).reports] == ["skipped"] * 3


def test_a_broken_file_stops_the_job_and_is_named(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x.h5", planted(60, 20))
    cluster(tmp_path)
    (tmp_path / "out/embeddings/broken.h5").write_bytes(b"no HDF5")
    with pytest.raises(FilesFailedError, match=r"broken\.h5"):
        deduplicate(deduplication_job_file(tmp_path, write_documents=False))
    assert not (tmp_path / "out/duplicates.arrow").exists()


def test_the_command_sees_what_changed_since_groups_were_found(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x.h5", planted(60, 20))
    cluster(tmp_path)
    job = deduplication_job_file(tmp_path, write_documents=False)
    (row,) = run_job_file("deduplicate", job).reports
    assert row.status == "deduplicated"
    (again,) = run_job_file("deduplicate", job).reports
    assert again.status == "skipped"
    with pytest.raises(JobError, match="threshold"):
        run_job_file("deduplicate", deduplication_job_file(tmp_path, write_documents=False, threshold=0.95))
    before = (tmp_path / "out/duplicates/x.parquet").read_bytes()
    (tmp_path / "out/duplicates.arrow").unlink()
    run_job_file("deduplicate", deduplication_job_file(tmp_path, write_documents=False))
    assert (tmp_path / "out/duplicates.arrow").exists()
    assert (tmp_path / "out/duplicates/x.parquet").read_bytes() == before


def test_it_runs_as_a_script_and_shows_what_other_thresholds_would_remove(tmp_path: Path) -> None:
    vectors = planted(300, 100)
    write_vectors(tmp_path / "out/embeddings/x.h5", vectors, [f"text {i}" for i in range(len(vectors))])
    cluster(tmp_path)
    command = [sys.executable, "flows/deduplicate.py"]
    job = ["--config", str(deduplication_job_file(tmp_path, write_documents=False))]
    done = subprocess.run([*command, *job], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out/duplicates/x.parquet")
    n_duplicates = table.num_rows - table["duplicate_of"].null_count
    assert f"kept {300 - n_duplicates} of 300 documents" in done.stdout
    summary = json.loads((tmp_path / "out/duplicates.json").read_text())
    assert summary["largest"][0]["shown"][0]["text"].startswith("text ")
    done = subprocess.run([*command, *job, "--dry-run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = {words[0]: words for line in done.stdout.splitlines() if (words := line.split())}
    assert shown["0.90"][1] == str(n_duplicates)
    assert sum(threshold in shown for threshold in ("0.80", "0.81", "0.95", "0.99")) == 4
    assert not (tmp_path / "out/duplicates/.trial").exists()
