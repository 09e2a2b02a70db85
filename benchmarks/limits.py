"""Measures how long a filter takes to find its limits in the surveys of a corpus, and how much memory.

A billion documents in files of 500,000, as hard links to 200 surveys (0.9 GB), so that files are read from the page
cache and not from a disk. Every case is what a filter run does before its first file, in a process of its own: it finds
and checks the annotated files, reads every survey in each pass, and stores the limits. NumPy's way, at a size that fits
in memory, is to load all scores with `np.load` and to call `np.partition`; both must find the same limit.

    python benchmarks/limits.py --json benchmarks/results/limits.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import parser, publish

from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.files.identity import file_identity
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.ranks import score_of
from mlfilter_core.filtering.stored_thresholds import THRESHOLDS_NAME
from mlfilter_core.filtering.survey import NO_GROUP, SUFFIX, Survey, SurveyRequest, write_survey
from mlfilter_core.filtering.work import FilterWork, filter_workload

PERCENTILE = 70
N_GROUPS = 20
N_DISTINCT = 200
FILES_PER_FOLDER = 1000
MEAN_TOKENS = 700
SMALL_FILE, N_SMALL_FILES = 1000, 100_000
MB = 1e6

Figures = dict[str, float]


def main() -> None:
    """Measures and publishes."""
    options = parser(__doc__)
    options.add_argument("--documents", type=int, default=10**9, help="number of documents (default: 10**9)")
    options.add_argument("--documents-per-file", type=int, default=500_000, help="(default: 500,000)")
    options.add_argument("--small-files", type=int, default=N_SMALL_FILES, help="files of 1,000 (default: 100,000)")
    options.add_argument("--of-numpy", type=int, default=10**8, help="documents for NumPy (default: 10**8)")
    options.add_argument("--folder", type=Path, help="folder of the files (default: that of temporary files)")
    arguments = options.parse_args()
    n_files = arguments.documents // arguments.documents_per_file
    n_of_numpy = max(1, min(n_files, arguments.of_numpy // arguments.documents_per_file))
    budget = arguments.documents * MEAN_TOKENS * (100 - PERCENTILE) // 100
    percentile: dict[str, Any] = {"scores": {"q": {"percentile": PERCENTILE}}}
    per_group, best_tokens = {**percentile, "per": "language"}, {"scores": {"q": {"best_tokens": budget}}}
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_corpus(folder / "all", n_files, arguments.documents_per_file, per_group)
        figures |= child("per_group", folder / "all", per_group)
        write_corpus(folder / "plain", n_files, arguments.documents_per_file, percentile)
        figures |= child("percentile", folder / "plain", percentile)
        figures |= child("best_tokens", folder / "plain", best_tokens)
        write_corpus(folder / "few", n_of_numpy, arguments.documents_per_file, percentile)
        figures |= child("percentile_of_few", folder / "few", percentile)
        figures |= child("numpy", folder / "few", None)
        write_corpus(folder / "small", arguments.small_files, SMALL_FILE, percentile)
        figures |= child("small_files", folder / "small", percentile)
    assert figures.pop("numpy_limit") == figures["percentile_of_few_limit"]
    figures = {key: value for key, value in figures.items() if not key.endswith("_limit")}
    figures["small_files_us_each"] = figures.pop("small_files_seconds") * 1e6 / arguments.small_files
    figures["percentile_of_few_vs_numpy"] = figures["numpy_seconds"] / figures["percentile_of_few_seconds"]
    about = {
        "documents": f"{n_files} files of {arguments.documents_per_file}",
        "documents for NumPy": f"{n_of_numpy} files of {arguments.documents_per_file}",
        "small files": f"{arguments.small_files} of {SMALL_FILE}",
        "load": f"{os.getloadavg()[1]:.1f} processes on average in the last five minutes",
        "cached": f"all surveys, which are links to {N_DISTINCT} files",
    }
    publish(figures, about, arguments.json)


def write_corpus(folder: Path, n_files: int, n_documents: int, keep: dict[str, Any]) -> None:
    """Writes annotated files, which are not read, and their surveys: a few, and links to them."""
    request = SurveyRequest.of(job_of(folder, keep).params)
    generator = np.random.default_rng(0)
    groups = tuple(f"g{i:02}" for i in range(N_GROUPS)) if "per" in keep else (NO_GROUP,)
    for i in range(n_files):
        stem = f"{i // FILES_PER_FOLDER:04}/{i:07}"
        file = TaskFile(f"{stem}.jsonl", stem, folder / "annotated_data")
        for path in (file.path, request.output(file)):
            path.parent.mkdir(parents=True, exist_ok=True)
        if i >= N_DISTINCT:
            of = i % N_DISTINCT
            request.output(file).hardlink_to(request.folder / f"0000/{of:07}{SUFFIX}")
            file.path.hardlink_to(file.folder / f"0000/{of:07}.jsonl")
            continue
        file.path.write_text("{}\n")
        survey = Survey(
            stem,
            ("q",),
            generator.normal(2.5, 1, (n_documents, 1)).astype(np.float32),
            generator.geometric(1 / MEAN_TOKENS, n_documents),
            generator.integers(len(groups), size=n_documents, dtype=np.uint8),
            groups,
            file_identity(file.path),
        )
        write_survey(survey, file, request, request.facts(file))


def job_of(folder: Path, keep: dict[str, Any]) -> FilterJob:
    params = {"annotated_directory": str(folder / "annotated_data"), "output_dir": str(folder / "out"), "keep": keep}
    return FilterJob.model_validate({"params": params})


def child(name: str, folder: Path, keep: dict[str, Any] | None) -> Figures:
    """Returns the figures of a process of its own."""
    command = [sys.executable, "-c", "import limits; limits.print_figures()", str(folder), json.dumps(keep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return {f"{name}_{key}": value for key, value in json.loads(done.stdout).items()}


def print_figures() -> None:
    """Finds a limit; prints it, the seconds, those of CPU time, and the peak memory of this process."""
    folder, keep = Path(sys.argv[1]), json.loads(sys.argv[2])
    since, cpu_since = time.perf_counter(), time.process_time()
    limit = limit_of_numpy(folder) if keep is None else limit_of_filter(folder, keep)
    seconds, cpu_seconds = time.perf_counter() - since, time.process_time() - cpu_since
    status = Path("/proc/self/status").read_text()
    peak_mb = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB
    print(json.dumps({"limit": limit, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}))


def limit_of_filter(folder: Path, keep: dict[str, Any]) -> float:
    job = job_of(folder, keep)
    (SurveyRequest.of(job.params).folder / THRESHOLDS_NAME).unlink(missing_ok=True)
    work = filter_workload(job).work
    assert isinstance(work, FilterWork)
    return score_of(min(work.request.thresholds.of_scores[0].ranks.values()))


def limit_of_numpy(folder: Path) -> float:
    surveys = sorted(folder.glob(f"out/filtered/.survey/*/*{SUFFIX}"))
    scores = np.concatenate([np.load(survey)["scores"][:, 0] for survey in surveys])
    place = len(scores) * PERCENTILE // 100
    scores.partition(place)
    return float(scores[place])


if __name__ == "__main__":
    main()
