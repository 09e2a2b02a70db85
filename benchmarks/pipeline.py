"""The whole way from JSONL to filtered JSONL, compared with a plain script.

MiniLM, texts cut at 512 tokens, two heads 384-1000-1, the best 30 % of the documents by the first score. Ours embeds,
annotates and filters each file with what the flows call, without Prefect and Dask; once in three jobs, once with
`annotate_inline`. The plain script, `plain_pipeline.py`, does the same with sentence-transformers, with its fastest of
three batch sizes. The kept documents must be the same in float32. Then both as commands, from the start of the process
to its end: the flows with Prefect and Dask, and the script, both with what they load.

    python benchmarks/pipeline.py --json benchmarks/results/pipeline.json
"""

import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plain_pipeline
import torch
from embed_cpu import MODEL, REAL_CORPUS, REPOSITORY, model_files, read_texts
from measure import alternate, parser, publish
from plain_pipeline import HEADS, MAX_LENGTH, PERCENTILE

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.embedding.work import embedding_workload
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.job_kinds import course_of
from mlfilter_core.work.workload import run_files

N_FILES = 4
BATCH_SIZES = (32, 64, 128)
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}  # and what the figures call them
COMMAND_ROUNDS = 3  # at most: a command takes half a minute
SCORES_ATOL = 1e-5  # float32 embeddings differ by 1e-6
JOBS: dict[str, type[Job]] = {"embed": EmbeddingJob, "annotate": AnnotationJob, "filter": FilterJob}

Figures = dict[str, float]
Params = dict[str, dict[str, Any]]


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__)
    options.add_argument("--corpus", type=Path, default=REAL_CORPUS, help="JSONL file with a text in each line")
    options.add_argument("--documents", type=int, default=400, help="documents taken from it (default: 400)")
    options.add_argument("--no-bfloat16", action="store_true", help="leave it out: it is slow where processors lack it")
    options.add_argument("--no-flow", action="store_true", help="leave out the commands")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    texts, origin = read_texts(arguments.corpus, arguments.documents)
    figures: Figures = {}
    kept: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", texts)
        write_heads(folder / "heads")
        batch_sizes = {}
        for dtype, prefix in DTYPES.items():
            if dtype == "bfloat16" and arguments.no_bfloat16:
                continue
            script = plain_pipeline.load_model(model_files().folder, dtype)
            batch_sizes[dtype] = best_batch_size(script, texts)
            measured, kept[prefix] = speed(folder, texts, dtype, script, batch_sizes[dtype], arguments.rounds)
            figures |= {f"{prefix}_{name}": value for name, value in measured.items()}
        check_same_scores(kept["fp32"])
        for way, lines in kept.get("bf16", {}).items():
            figures[f"bf16_{way}_kept_as_in_fp32"] = in_common(lines, kept["fp32"][way])
        if not arguments.no_flow:
            seconds = commands(folder, batch_sizes["float32"], min(arguments.rounds, COMMAND_ROUNDS))
            for name, way in (("flows", ""), ("script", "script_")):
                figures[f"{name}_command_s"] = seconds[name]
                figures[f"{name}_command_documents_per_s"] = len(texts) / seconds[name]
                work_s = len(texts) / figures[f"fp32_{way}documents_per_s"]
                figures[f"{name}_command_beside_work_s"] = seconds[name] - work_s
    about = {
        "documents": f"{len(texts)} of {origin}, in {N_FILES} files",
        "threads": str(arguments.threads),
        "script": f"batches of {batch_sizes}, its fastest of {BATCH_SIZES}",
    }
    publish(figures, about, arguments.json)


def speed(
    folder: Path, texts: list[str], dtype: str, script: Any, batch_size: int, rounds: int
) -> tuple[Figures, dict[str, list[str]]]:
    """Returns documents/s, ratios and shares in one dtype, and the kept lines of ours and of the script."""
    job = EmbeddingJob.model_validate({"params": params_of(folder, folder, dtype)["embed"]})
    encoder: Encoder = embedding_workload(job).work.encoder()  # the one of all runs, which is loaded once in a process
    tokenized, heads = encoder.tokenize(texts), plain_pipeline.load_heads(folder / "heads")
    outputs: dict[str, Path] = {}
    steps: list[Figures] = []

    def new_output(way: str) -> Path:
        outputs[way] = Path(tempfile.mkdtemp(prefix=way, dir=folder))
        return outputs[way]

    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: steps.append(run_jobs(params_of(folder, new_output("ours"), dtype))),
        "script": lambda: plain_pipeline.run(folder / "corpus", new_output("script"), script, heads, batch_size),
        "inline": lambda: run_jobs(inline(params_of(folder, new_output("inline"), dtype))),
        "encoder": lambda: encoder.encode(tokenized),
    }
    seconds = alternate(rounds, ways)
    del steps[0]  # the warm-up
    of_steps = {step: statistics.median(each[step] for each in steps) for step in steps[0]}
    slowest = max(of_steps, key=lambda step: of_steps[step])
    kept = {way: kept_lines(output) for way, output in outputs.items()}
    if kept["inline"] != kept["ours"]:
        raise RuntimeError("three jobs and annotate_inline do not write the same documents")
    return {
        "documents_per_s": len(texts) / seconds["ours"],
        "inline_documents_per_s": len(texts) / seconds["inline"],
        "script_documents_per_s": len(texts) / seconds["script"],
        "vs_script": seconds["script"] / seconds["ours"],
        "inline_vs_script": seconds["script"] / seconds["inline"],
        "slower_than_slowest_step": seconds["ours"] / of_steps[slowest] - 1,
        "slower_than_encoder": seconds["ours"] / seconds["encoder"] - 1,
        **{f"{step}_share": of_step / seconds["ours"] for step, of_step in of_steps.items()},
    }, kept


def run_jobs(params: Params) -> Figures:
    """Does the work of jobs on their files as the flows do; returns the seconds of each step."""
    seconds = {}
    for name, of_job in params.items():
        job = JOBS[name].model_validate({"params": of_job})
        started = time.perf_counter()
        for workload in course_of(job):
            run_files(workload.files, workload.work)
            seconds[workload.flow] = time.perf_counter() - started
            started = time.perf_counter()
    return seconds


def params_of(folder: Path, output: Path, dtype: str) -> Params:
    """Returns the parameters of the three jobs, as a user writes them."""
    embedded, annotated = str(output / "embeddings"), str(output / "annotated_data")
    source = {"input_dir": str(folder / "corpus"), "text_field": "text", "id_key": "id"}
    model = {"embedding_model": MODEL, "max_length": MAX_LENGTH, "model_dtype": dtype}
    heads = {"regression_head_checkpoints": {name: str(folder / "heads" / f"{name}.pt") for name in HEADS}}
    keep = {"scores": {HEADS[0]: {"percentile": PERCENTILE}}}
    common = {"output_dir": str(output)}
    return {
        "embed": {**source, **model, **common},
        "annotate": {"embeddings_directory": embedded, **heads, **common},
        "filter": {"annotated_directory": annotated, "embeddings_directory": embedded, "keep": keep, **common},
    }


def inline(params: Params) -> Params:
    """Returns the parameters of two jobs, the first of which also annotates."""
    scoring = {"regression_head_checkpoints": params["annotate"]["regression_head_checkpoints"]}
    return {"embed": {**params["embed"], "annotate_inline": scoring}, "filter": params["filter"]}


def commands(folder: Path, batch_size: int, rounds: int) -> Figures:
    """Returns the seconds of the flows and of the script as commands, in float32, from start to end of the process."""
    run = functools.partial(subprocess.run, cwd=REPOSITORY, check=True, capture_output=True)

    def flows() -> None:
        output = Path(tempfile.mkdtemp(prefix="flows", dir=folder))
        line = [sys.executable, "flows/pipeline.py"]
        for name, of_job in params_of(folder, output, "float32").items():
            job_file = output / f"{name}.yaml"
            job_file.write_text(json.dumps({"params": of_job}))  # JSON is YAML
            line += [f"--{name}-config", str(job_file)]
        run(line)

    def script() -> None:
        output = tempfile.mkdtemp(prefix="script", dir=folder)
        places = (model_files().folder, folder / "heads", folder / "corpus", output)
        options = ("--batch-size", str(batch_size), "--threads", str(torch.get_num_threads()))
        run([sys.executable, "benchmarks/plain_pipeline.py", *map(str, places), *options])

    return alternate(rounds, {"flows": flows, "script": script})


def best_batch_size(script: Any, texts: list[str]) -> int:
    """Returns the batch size with which sentence-transformers is fastest; on all texts, as it sorts them by length."""
    script.encode(texts[: min(BATCH_SIZES)], show_progress_bar=False)  # warms up
    seconds = {}
    for size in BATCH_SIZES:
        started = time.perf_counter()
        script.encode(texts, batch_size=size, show_progress_bar=False)
        seconds[size] = time.perf_counter() - started
    return min(seconds, key=lambda size: seconds[size])


def kept_lines(output: Path) -> list[str]:
    """Returns the lines of the kept documents, in the order of the corpus."""
    folder = output / "filtered" if (output / "filtered").exists() else output
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def check_same_scores(kept: Mapping[str, list[str]]) -> None:
    """Checks that ours and the script keep the same documents, with the same fields and scores.

    Raises:
        RuntimeError: They do not.
    """
    ours, theirs = ([json.loads(line) for line in kept[way]] for way in ("ours", "script"))
    if [document["id"] for document in ours] != [document["id"] for document in theirs]:
        raise RuntimeError("ours and the script keep other documents")
    for mine, other in zip(ours, theirs, strict=True):
        names = [f"score_{head}" for head in HEADS]
        scores, expected = ([document.pop(name) for name in names] for document in (mine, other))
        np.testing.assert_allclose(scores, expected, atol=SCORES_ATOL)
        if mine != other:
            raise RuntimeError(f"ours and the script write document {mine['id']} with other fields")


def in_common(kept: list[str], others: list[str]) -> float:
    """Returns the share of the kept documents that are among others."""
    ids, other_ids = ({json.loads(line)["id"] for line in lines} for lines in (kept, others))
    return len(ids & other_ids) / len(ids)


def write_corpus(folder: Path, texts: list[str]) -> None:
    """Writes the documents to `N_FILES` files."""
    folder.mkdir()
    n_of_file = -(-len(texts) // N_FILES)
    for start in range(0, len(texts), n_of_file):
        records = [{"id": str(i), "text": texts[i]} for i in range(start, min(start + n_of_file, len(texts)))]
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{start // n_of_file}.jsonl").write_text("".join(lines))


def write_heads(folder: Path) -> None:
    """Writes heads with random weights, which are as slow as trained ones."""
    folder.mkdir()
    torch.manual_seed(0)
    for name in HEADS:
        torch.save(plain_pipeline.new_head().state_dict(), folder / f"{name}.pt")


if __name__ == "__main__":
    main()
