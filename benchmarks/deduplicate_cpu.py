"""Finding near-duplicates on the CPU, step by step, beside the product of all documents with all.

Random vectors around topics of very different sizes stand for embeddings; a tenth of them are copies of others, at
cosines from 0.85 to 0.995.

    python benchmarks/deduplicate_cpu.py --json benchmarks/results/deduplicate_cpu.json
"""

import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import torch
from cluster_cpu import mixture
from measure import parser, publish
from numpy.typing import NDArray

from mlfilter_core.clustering.work import cluster_course
from mlfilter_core.config.clustering import ClusterJob
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.deduplication.work import deduplicate_course
from mlfilter_core.work.workload import Workload

FILE_ROWS = 100_000
TILE_ROWS = 4096
LOW, HIGH = 0.85, 0.995  # cosines of copies


def main() -> None:
    """Times each step of a job, and the product of all with all, and prints the figures."""
    options = parser(__doc__)
    options.add_argument("--documents", type=int, default=200_000)
    options.add_argument("--width", type=int, default=384)
    options.add_argument("--threshold", type=float, default=0.9)
    options.add_argument("--neighbours", type=int, default=8)
    options.add_argument("--decay", type=float, help="directions over which the variance falls to 1/e (default: none)")
    options.add_argument("--without-all-pairs", action="store_true", help="leave out the product of all with all")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # whose memory is not that of the work
            other.submit(write, out / "embeddings", arguments.documents, arguments.width, arguments.decay).result()
        shared = {"embeddings_directory": out / "embeddings", "output_dir": out, "device": "cpu"}
        clustering = ClusterJob.model_validate({"params": {**shared, "n_clusters": "auto"}})
        params = {"clusters_directory": out / "clusters", "threshold": arguments.threshold, "write_documents": False}
        own = {**shared, **params, "neighbours": arguments.neighbours, "prefer": "first"}
        deduplicating = DeduplicationJob.model_validate({"params": own})
        for workload in chain(cluster_course(clustering), deduplicate_course(deduplicating)):
            figures[f"{workload.flow}_s"] = seconds_of(workload)
            if workload.flow == "divide":
                paths = (out / "duplicates").rglob("*")
                figures["divided_gb"] = sum(path.stat().st_size for path in paths if path.is_file()) / 1e9
        summary = json.loads((out / "duplicates.json").read_text())
        figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        if not arguments.without_all_pairs:
            figures["all_pairs_s"] = compare_all(load(out / "embeddings"), arguments.threshold)
    steps = ("divide", "compare", "group", "deduplicate")
    figures["all_s"] = sum(figures[f"{step}_s"] for step in steps)
    figures["documents_per_s"] = arguments.documents / figures["all_s"]
    figures["share_of_pairs_found"] = summary["recall"]["found"] / max(1, summary["recall"]["pairs"])
    figures |= {name: summary[name] for name in ("duplicates", "groups")}
    if not arguments.without_all_pairs:
        figures["all_pairs_vs_ours"] = figures["all_pairs_s"] / figures["all_s"]
    names = ("documents", "width", "threshold", "neighbours", "decay", "threads")
    publish(figures, {name: str(getattr(arguments, name)) for name in names}, arguments.json)


def with_decay(vectors: NDArray[np.float32], decay: float) -> NDArray[np.float32]:
    """Returns vectors of unit length that vary less in each direction than in the one before, as real ones do."""
    vectors *= np.exp(np.arange(vectors.shape[1], dtype=np.float32) / (-2 * decay))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def with_copies(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the vectors, a tenth of them replaced by copies of others with some noise."""
    numbers = np.random.default_rng(1)
    n, width = vectors.shape
    copies, originals = numbers.choice(n, n // 10, replace=False), numbers.integers(0, n, n // 10)
    cosines = numbers.uniform(LOW, HIGH, (len(copies), 1)).astype(np.float32)
    noise = numbers.standard_normal((len(copies), width), np.float32)
    of = vectors[originals]
    noise -= (noise * of).sum(axis=1, keepdims=True) * of
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    vectors[copies] = cosines * of + np.sqrt(1 - cosines**2) * noise
    return vectors


def compare_all(vectors: NDArray[np.float32], threshold: float) -> float:
    """Returns the seconds of the products of all with all, in tiles that a processor computes fastest."""
    tiles = torch.from_numpy(vectors).split(TILE_ROWS)
    started = time.perf_counter()
    for number, rows in enumerate(tiles):
        for others in tiles[number:]:
            cosines = rows @ others.T
            (cosines.amax(dim=1) >= threshold).nonzero()
    return time.perf_counter() - started


def write(folder: Path, n: int, width: int, decay: float | None) -> None:
    """Writes vectors as files of embeddings."""
    vectors = mixture(n, width)
    vectors = with_copies(vectors if decay is None else with_decay(vectors, decay))
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, n, FILE_ROWS)):
        rows = vectors[start : start + FILE_ROWS]
        with h5py.File(folder / f"x{number:03}.h5", "w") as file:
            file["train/embeddings"] = rows
            file["train/document_id"] = [f"{number}-{i}" for i in range(len(rows))]


def load(folder: Path) -> NDArray[np.float32]:
    """Returns the vectors of all files."""
    rows = []
    for path in sorted(folder.iterdir()):
        with h5py.File(path) as file:
            rows.append(file["train/embeddings"][()])
    return np.concatenate(rows)


def seconds_of(workload: Workload) -> float:  # type: ignore[type-arg]
    """Returns the seconds that the work on all files of a workload takes, one after another."""
    started = time.perf_counter()
    workload.work.prepare(workload.files)
    for file in workload.files:
        workload.work.run(file)
    workload.work.conclude()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
