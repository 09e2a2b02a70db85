"""The cluster flow: a sample of each file, the centroids of all, then a Prefect task for the clusters of each file."""

if __name__ == "__main__":
    # Before the imports below, for the reasons in flows/embed.py.
    from flows.running.script import run_script

    run_script("cluster")
    raise SystemExit

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_api.failures import expected_errors_as_states
from flows.prefect_api.left_running import never_left_running
from flows.running.report import FilesFailedError, RunReport
from flows.running.run_files import run_job
from flows.workers.local import workers_kept
from mlfilter_core.clustering.work import assignment_workload, centroids_to_find
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.job_files import load_job


@flow(name="cluster", validate_parameters=False)
@never_left_running()
@expected_errors_as_states
@workers_kept()
def cluster(config: Path | ClusterJob, overrides: Mapping[str, Any] = {}) -> RunReport:
    """Groups the documents of a corpus by topic: one file of clusters for each file of embeddings.

    Args:
        config: Path of a YAML job file on the machine that runs the flow, or the whole job.
        overrides: Values that replace those of `config`, by dotted name: `{"params.n_clusters": 1000}`.

    Raises:
        JobError: The job cannot run as it is configured.
        FilesFailedError: Some files failed; the others are finished.
    """
    job = load_job(config, ClusterJob, overrides)
    work = centroids_to_find(job)
    if work is not None:
        with suppress(FilesFailedError):  # the same files fail again below; the others give centroids
            run_job("sample", lambda _: work.samples(), job)
        run_job("find", lambda _: work.workload(), job)
    return run_job("cluster", assignment_workload, job)
