import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from flows.pipeline import pipeline
from flows.running.start import run_pipeline
from mlfilter_core.errors import ConfigError
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import verify
from tests.flows.conftest import WriteJob, cluster_job_file, deduplication_job_file


def filter_job_file(folder: Path, annotated: str) -> Path:
    params = {
        "annotated_directory": str(folder / "out" / annotated),
        "output_dir": str(folder / "out"),
        "keep": {"scores": {"linear": {"percentile": 50}}, "per": "cluster"},
    }
    (folder / "filter.yaml").write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": 1}}))
    return folder / "filter.yaml"


def records_in(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (line for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines())
    return {record["document_id"]: record for record in map(json.loads, lines)}


def test_all_steps_in_a_row(embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    annotate = annotate_job(
        clusters_directory=str(out / "clusters"), output_keys=["document_id", "text", "n_tokens", "cluster"]
    )
    jobs = {
        "embed": embed_job(),
        "cluster": cluster_job_file(tmp_path),
        "annotate": annotate,
        "deduplicate": deduplication_job_file(tmp_path, annotated_directory=str(out / "annotated_data")),
        "filter": filter_job_file(tmp_path, "deduplicated"),
    }
    reports = pipeline(**{f"{step}_config": path for step, path in jobs.items()})
    assert [report.flow for report in reports] == list(jobs)
    tables = [pq.read_table(path).to_pylist() for path in sorted((out / "duplicates").rglob("*.parquet"))]
    unique = {row["document_id"] for table in tables for row in table if row["duplicate_of"] is None}
    scored, deduplicated = records_in(out / "annotated_data"), records_in(out / "deduplicated")
    assert 0 < len(unique) < len(scored) == 21
    assert deduplicated == {name: scored[name] for name in unique}
    kept = set[str]()
    for cluster in {record["cluster"] for record in deduplicated.values()}:
        of_cluster = {name: r["score_linear"] for name, r in deduplicated.items() if r["cluster"] == cluster}
        from_best = sorted(of_cluster.values(), reverse=True)
        limit = from_best[len(from_best) - len(from_best) // 2 - 1]  # all documents of equal scores are kept
        kept |= {name for name, score in of_cluster.items() if score >= limit}
    assert records_in(out / "filtered").keys() == kept
    result = verify(VerifyRequest(out), n_workers=1)
    assert result.is_right, result.wrong
    again = run_pipeline({step: (path, {}) for step, path in jobs.items()})
    assert {row.status for report in again for row in report.reports} == {"skipped"}


def test_jobs_that_do_not_agree_embed_nothing(embed_job: WriteJob, annotate_job: WriteJob, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"filter step: params\.annotated_directory is .*, and the deduplicate step"):
        pipeline(
            embed_job(),
            annotate_job(),
            cluster_config=cluster_job_file(tmp_path),
            deduplicate_config=deduplication_job_file(
                tmp_path, annotated_directory=str(tmp_path / "out/annotated_data")
            ),
            filter_config=filter_job_file(tmp_path, "annotated_data"),
        )
    assert not (tmp_path / "out").exists()
