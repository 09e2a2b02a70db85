"""Survey and filter on the CPU, beside `zstd -d` and `cp`.

Annotated files of 20,000 documents with their texts, 4 KB each, as JSON lines and as Zstandard; and of 400,000
documents with id and scores alone. The filter keeps half of the documents. Rates are megabytes of JSON lines per
second, in one process.

    python benchmarks/filter_cpu.py --json benchmarks/results/filter_cpu.json
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson
from measure import alternate, parser, publish
from source_rates import copy, decompress, write_source

from mlfilter_core.annotating.annotated_format import Compression, provenance_path
from mlfilter_core.config.filtering import FilterParameters
from mlfilter_core.files.identity import file_identity
from mlfilter_core.files.publishing import publish_json
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.filter_file import filter_file
from mlfilter_core.filtering.filter_request import FilterRequest
from mlfilter_core.filtering.make_survey import make_survey
from mlfilter_core.filtering.survey import SurveyRequest, load_survey
from mlfilter_core.filtering.thresholds import find_thresholds

N_SHORT, SHORT = 20, "short"  # times as many documents without text


def main() -> None:
    """Measures and publishes."""
    options = parser(__doc__)
    options.add_argument("--documents", type=int, default=20_000, help="documents with texts (default: 20000)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder, arguments.documents)
        mb = {name: bytes_of_lines(files, name) / 1e6 for name in files}
        cpu_s: dict[str, list[float]] = {}
        runs: dict[str, Callable[[], object]] = {}
        for name, file in files.items():
            compression: Compression = "zstd" if file.path.suffix == ".zst" else None
            request = request_for(folder, file, compression)
            runs[f"{name}_survey"] = partial(timed, cpu_s, f"{name}_survey", partial(make_survey, file, request.survey))
            runs[f"{name}_filter"] = partial(timed, cpu_s, f"{name}_filter", partial(filter_file, file, request))
        runs["copy"] = lambda: copy(files["text"].path, folder / "copy.jsonl")
        runs["zstd"] = lambda: decompress(files["zstd_text"].path)
        seconds = alternate(arguments.rounds, runs)
    figures = {}
    for name in files:
        for step in ("survey", "filter"):
            figures[f"{name}_{step}_mb_per_s"] = mb[name] / seconds[f"{name}_{step}"]
            figures[f"{name}_{step}_cpu_mb_per_s"] = mb[name] / statistics.median(cpu_s[f"{name}_{step}"])
    figures |= {"copy_mb_per_s": mb["text"] / seconds["copy"], "zstd_mb_per_s": mb["text"] / seconds["zstd"]}
    publish(figures, {"documents": f"{arguments.documents} with texts"}, arguments.json)


def timed(cpu_s: dict[str, list[float]], name: str, run: Callable[[], object]) -> None:
    """Runs and adds the seconds of CPU time."""
    started = time.process_time()
    run()
    cpu_s.setdefault(name, []).append(time.process_time() - started)


def write_files(folder: Path, n_documents: int) -> dict[str, TaskFile]:
    """Writes annotated files with provenance, as the annotation does."""
    scores = {f"score_head{k}": lambda i, k=k: (i * (k + 7919)) % 10_007 / 10_007 for k in range(2)}
    paths = {
        "text": write_source(folder / "text.jsonl", n_documents, **scores)[0],
        "zstd_text": write_source(folder / "zstd_text.jsonl.zst", n_documents, **scores)[0],
        SHORT: folder / f"{SHORT}.jsonl",
    }
    records = (
        {"document_id": f"document-{i:09d}", **{name: of(i) for name, of in scores.items()}}
        for i in range(N_SHORT * n_documents)
    )
    paths[SHORT].write_bytes(b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in records))
    for path in paths.values():
        made = {"output": file_identity(path), "columns": list(scores)}
        target = provenance_path(folder, path.name)
        target.parent.mkdir(exist_ok=True)
        publish_json(target, made)
    return {name: TaskFile(path.name, name, folder) for name, path in paths.items()}


def bytes_of_lines(files: dict[str, TaskFile], name: str) -> int:
    """Returns the bytes of a file's lines, decompressed."""
    return files["text" if name == "zstd_text" else name].path.stat().st_size


def request_for(folder: Path, file: TaskFile, compression: Compression) -> FilterRequest:
    """Surveys a file, and returns a request to keep half of its documents."""
    keep = {"scores": {"head0": {"percentile": 50}}}
    params = FilterParameters.model_validate(
        {
            "annotated_directory": folder,
            "output_dir": folder / f"out-{file.stem}",
            "keep": keep,
            "compression": compression,
        }
    )
    survey = SurveyRequest.of(params)
    make_survey(file, survey)
    return FilterRequest.of(params, find_thresholds(params.keep, lambda: [load_survey(file, survey)]))


if __name__ == "__main__":
    main()
