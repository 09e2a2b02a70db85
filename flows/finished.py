"""A run over files that are all finished: nothing is started for it, not even Prefect."""

import time
from typing import Any

from flows.report import RunReport, write_rows
from mlfilter_core.annotate_work import annotate_work
from mlfilter_core.config import AnnotationJob, EmbeddingJob
from mlfilter_core.corpus import EMBEDDING_SUFFIXES, SOURCE_SUFFIXES, find_files, shard
from mlfilter_core.embed_work import embed_work
from mlfilter_core.errors import MlfilterError
from mlfilter_core.work import Work


def finished_before(job: EmbeddingJob | AnnotationJob) -> RunReport | None:
    """Returns the report of a job of which every file is finished; None where there is something to do or to say."""
    started = time.monotonic()
    work: Work[Any]
    try:
        if isinstance(job, EmbeddingJob):
            files = find_files(job.params.input_dir, job.params.glob_pattern, SOURCE_SUFFIXES)
            work, output_dir = embed_work(job.params), job.params.results_dir
        else:
            files = find_files(job.params.embeddings_directory, job.params.glob_pattern, EMBEDDING_SUFFIXES)
            work, output_dir = annotate_work(job.params), job.params.annotated_output_dir
        reports = []
        # The last first: in the order of a run, what is left to do is at the end.
        for file in reversed(shard(files, job.local.ranks, job.local.tasks)):
            report = work.finished(file, read_content=False)
            if report is None:
                return None
            reports.append(report)
    except (MlfilterError, OSError):  # the run will say so
        return None
    flow = "embed" if isinstance(job, EmbeddingJob) else "annotate"
    logs = job.logging_dir / f"{flow}-finished-before"
    run = RunReport(flow, output_dir, logs, time.monotonic() - started, reports[::-1])
    write_rows(run)
    return run
