"""Measures an export of embeddings, ids and scores, beside a copy of the file and pyarrow's own writer.

A file of 768 float32 and its annotated file, in one process; then several such files with a process for each core, from
the start of the processes. The copy is of the HDF5 file; pyarrow writes the embeddings alone, from memory, with its
defaults. Every output is on disk (fsync) when it counts as written.

    python benchmarks/export.py --json benchmarks/results/export.json
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from annotate_cpu import DIM, annotate, write_embeddings, write_heads
from measure import alternate, parser, publish

from mlfilter_core.exporting.export_file import export_file
from mlfilter_core.exporting.export_folder import export, look_at
from mlfilter_core.exporting.export_request import ExportRequest
from mlfilter_core.files.publishing import fsync
from mlfilter_core.files.task_files import TaskFile

N_FILES = 8


def main() -> None:
    """Measures and publishes."""
    options = parser(__doc__)
    options.add_argument("--documents", type=int, default=100_000, help="rows of the file (default: 100000)")
    options.add_argument("--folder", type=Path, help="folder of the files (default: that of temporary files)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        path = write_embeddings(folder / "x.h5", arguments.documents)
        annotate(path, write_heads(folder, 2))
        with h5py.File(path) as file:
            rows = file["train/embeddings"][:]
        vectors = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM)})

        def write_with_pyarrow() -> None:
            pq.write_table(vectors, folder / "y.parquet")
            fsync(folder / "y.parquet")

        def copy() -> None:
            shutil.copyfile(path, folder / "y.h5")
            fsync(folder / "y.h5")

        out = folder / "exported"
        requests = {
            "parquet": ExportRequest(folder, out, columns=("document_id", "embedding")),
            "parquet_with_scores": ExportRequest(folder, out, folder / "out"),
            "npy": ExportRequest(folder, out, format="npy"),
            "npy_with_scores": ExportRequest(folder, out, folder / "out", format="npy"),
        }
        cpu_s: dict[str, list[float]] = {name: [] for name in requests}
        runs = {
            name: lambda name=name, request=request: cpu_s[name].append(run(path, request))
            for name, request in requests.items()
        }
        (folder / "many").mkdir()
        for i in range(N_FILES):
            os.link(path, folder / "many" / f"{i}.h5")
        of_many = {
            f"{format}_all_cores": lambda format=format: run_many(ExportRequest(folder / "many", out, format=format))
            for format in ("parquet", "npy")
        }
        seconds = alternate(arguments.rounds, {**runs, **of_many, "copy": copy, "pyarrow": write_with_pyarrow})
        for name in of_many:
            seconds[name] /= N_FILES
        figures = {f"{name}_mb_per_s": rows.nbytes / 1e6 / value for name, value in seconds.items()}
        for name in requests:
            figures[f"{name}_cpu_mb_per_s"] = rows.nbytes / 1e6 / statistics.median(cpu_s[name])
            figures[f"{name}_vs_copy"] = seconds["copy"] / seconds[name]
            figures[f"{name}_vs_pyarrow"] = seconds["pyarrow"] / seconds[name]
    publish(figures, {"documents": f"{arguments.documents} of {DIM} float32"}, arguments.json)


def run(path: Path, request: ExportRequest) -> float:
    """Exports the file as a worker process does, from the beginning; returns the seconds of CPU time."""
    file = TaskFile(path.name, path.stem, path.parent)
    shutil.rmtree(request.output_dir, ignore_errors=True)
    started = time.process_time()
    columns, _, _ = look_at([file], request)
    report = export_file(file, request, columns)
    assert report.status == "exported"
    return time.process_time() - started


def run_many(request: ExportRequest) -> None:
    """Exports a folder as the command does."""
    shutil.rmtree(request.output_dir, ignore_errors=True)
    assert export(request).files["exported"] == N_FILES


if __name__ == "__main__":
    main()
