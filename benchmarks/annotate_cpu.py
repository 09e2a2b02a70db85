"""Annotation on the CPU, compared with the bare matrix products and with the predecessor's loop.

20,000 rows of 768 float32, two heads 768-1000-1, from HDF5 to JSONL with ids and scores; then eight such heads, also
without files, and with the texts of the source documents, 4 KB each, from JSON lines and from Zstandard. Beside these,
decompression and a copy of the source alone; and eight heads 768-1, whose products take no time. Then the growth of
peak memory with a 20 times larger file.

    python benchmarks/annotate_cpu.py --json benchmarks/results/annotate_cpu.json
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from measure import alternate, parser, peak_memory_bytes, print_peak_memory, publish
from numpy.typing import NDArray
from source_rates import copy, decompress, write_source

from mlfilter_core.annotating.annotate_file import annotate_file
from mlfilter_core.annotating.annotate_request import AnnotateRequest
from mlfilter_core.compute import onednn
from mlfilter_core.corpus.documents import Document
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES
from mlfilter_core.corpus.windows import WINDOW_DOCUMENTS
from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.embedding_store.writer import EmbeddingWriter
from mlfilter_core.files.identity import file_identity
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import Head, score
from mlfilter_core.heads.layers import Linear
from mlfilter_core.versions import library_versions

Rows = NDArray[np.float32]
DIM, HIDDEN, N_ROWS, BATCH_SIZE = 768, 1000, 20_000, 2048
GROWTH = 20


def main() -> None:
    """Runs the benchmark; as a child process, annotates one file and prints its peak memory."""
    options = parser(__doc__)
    options.add_argument("--no-memory", action="store_true", help="leave out the growth of peak memory")
    options.add_argument("--annotate-only", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.annotate_only:
        annotate(arguments.annotate_only, write_heads(arguments.annotate_only.parent, 2))
        print_peak_memory()
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = speed(Path(folder), arguments.rounds)
        if not arguments.no_memory:
            figures["annotate_peak_growth"] = peak_growth(Path(folder))
    publish(figures, {"threads": str(arguments.threads)}, arguments.json)


def speed(folder: Path, rounds: int) -> dict[str, float]:
    """Returns the rows/s of each way, and their ratios."""
    eight, narrow = write_heads(folder, 8), write_heads(folder, 8, hidden=None)
    two = eight[:2]
    path = write_embeddings(folder / "speed.h5", N_ROWS)
    plain, offsets = write_source(folder / "plain.jsonl", N_ROWS)
    zipped, _ = write_source(folder / "zipped.jsonl.zst", N_ROWS)
    of_plain = write_embeddings(folder / "plain.h5", N_ROWS, plain, offsets)
    of_zipped = write_embeddings(folder / "zipped.h5", N_ROWS, zipped, offsets)
    with h5py.File(path) as file:
        rows = file["train/embeddings"][:]
    texts = ("document_id", "text")
    seconds = alternate(
        rounds,
        {
            "annotate_file": lambda: annotate(path, two),
            "matmul": lambda: products(rows, two),
            "predecessor": lambda: predecessor(path, two),
            "annotate_file_8": lambda: annotate(path, eight),
            "score_8": lambda: in_batches(rows, lambda batch: score(eight, batch)),
            "matmul_8": lambda: products(rows, eight),
            "text_8": lambda: annotate(of_plain, eight, texts),
            "zstd_text_8": lambda: annotate(of_zipped, eight, texts),
            "narrow_text_8": lambda: annotate(of_plain, narrow, texts),
            "narrow_zstd_text_8": lambda: annotate(of_zipped, narrow, texts),
            "copy": lambda: copy(plain, folder / "copy.jsonl"),
            "zstd": lambda: decompress(zipped),
        },
    )
    rates = {name: N_ROWS / value for name, value in seconds.items()}
    mb = plain.stat().st_size / 1e6
    # Both cores multiply and decompress. Copies wait for the disk meanwhile.
    bound_s = seconds["matmul_8"] + seconds["zstd"] / torch.get_num_threads()
    return {
        "annotate_rows_per_s": rates["annotate_file"],
        "annotate_share_of_matmul": rates["annotate_file"] / rates["matmul"],
        "annotate_vs_predecessor": rates["annotate_file"] / rates["predecessor"],
        "matmul_rows_per_s": rates["matmul"],
        "predecessor_rows_per_s": rates["predecessor"],
        "annotate_8_heads_rows_per_s": rates["annotate_file_8"],
        "annotate_8_heads_share_of_matmul": rates["annotate_file_8"] / rates["matmul_8"],
        "score_8_heads_share_of_matmul": rates["score_8"] / rates["matmul_8"],
        "text_8_heads_rows_per_s": rates["text_8"],
        "text_8_heads_share_of_matmul": rates["text_8"] / rates["matmul_8"],
        "zstd_text_8_heads_rows_per_s": rates["zstd_text_8"],
        "zstd_text_8_heads_share_of_matmul": rates["zstd_text_8"] / rates["matmul_8"],
        "zstd_text_8_heads_share_of_bound": bound_s / seconds["zstd_text_8"],
        "text_8_heads_mb_per_s": mb / seconds["text_8"],
        "zstd_text_8_heads_mb_per_s": mb / seconds["zstd_text_8"],
        "text_narrow_heads_mb_per_s": mb / seconds["narrow_text_8"],
        "zstd_text_narrow_heads_mb_per_s": mb / seconds["narrow_zstd_text_8"],
        "copy_mb_per_s": mb / seconds["copy"],
        "zstd_mb_per_s": mb / seconds["zstd"],
        "text_narrow_heads_share_of_copy": seconds["copy"] / seconds["narrow_text_8"],
        "zstd_text_narrow_heads_share_of_zstd": seconds["zstd"] / seconds["narrow_zstd_text_8"],
    }


def in_batches(rows: Rows, do: Callable[[Rows], object]) -> None:
    """Yields the rows in slices as large as those of a job."""
    for start in range(0, len(rows), BATCH_SIZE):
        do(rows[start : start + BATCH_SIZE])


@torch.inference_mode()
def products(rows: Rows, heads: list[Head]) -> None:
    """The bare matrix products of heads: no bias, no activation, no scores copied out."""

    def multiply(batch: Rows) -> None:
        for head in heads:
            hidden = torch.from_numpy(batch)
            for layer in head.layers:
                if isinstance(layer, Linear):
                    hidden = onednn.linear(hidden, layer.weight, None)

    in_batches(rows, multiply)


def predecessor(path: Path, heads: list[Head]) -> None:
    """Annotates with the loop that this project replaces: a list and a tensor per row, a dict per score."""
    with h5py.File(path) as file, open(path.with_suffix(".predecessor"), "w") as sink:
        rows = file["train/embeddings"][:]
        ids = file["train/document_id"][:]
        documents = [{"document_id": ids[i].decode(), "embedding": rows[i].tolist()} for i in range(len(rows))]
        for start in range(0, len(documents), 1000):
            batch = documents[start : start + 1000]
            embeddings = torch.stack([torch.tensor(document["embedding"]) for document in batch])
            scores = {head.name: torch.from_numpy(score([head], embeddings.numpy())[:, 0]) for head in heads}
            for i, document in enumerate(batch):
                record = {"document_id": document["document_id"]}
                record.update({f"score_{name}": values[i].item() for name, values in scores.items()})
                sink.write(json.dumps(record) + "\n")


def peak_growth(folder: Path) -> float:
    """Returns the growth of peak memory for a file 20 times larger: 0.05 is five per cent."""
    small = peak_memory_bytes("--annotate-only", str(write_embeddings(folder / "small.h5", N_ROWS)))
    large = peak_memory_bytes("--annotate-only", str(write_embeddings(folder / "large.h5", N_ROWS * GROWTH)))
    return large / small - 1


def annotate(path: Path, heads: list[Head], output_keys: tuple[str, ...] = ("document_id",)) -> None:
    """Annotates one file as the flow does."""
    digests = {head.name: "0" * 64 for head in heads}
    request = AnnotateRequest(path.parent / "out", digests, output_keys, batch_size=BATCH_SIZE)
    annotate_file(TaskFile(path.name, path.stem, path.parent), request, heads)


def write_heads(folder: Path, n_heads: int, hidden: int | None = HIDDEN) -> list[Head]:
    """Writes and loads heads with random weights, which are as slow as trained ones; linear ones for None."""
    torch.manual_seed(0)
    names = [f"head{i}" for i in range(n_heads)]
    for name in names:
        head: torch.nn.Module = torch.nn.Linear(DIM, 1)
        if hidden is not None:
            head = torch.nn.Sequential(torch.nn.Linear(DIM, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1))
        torch.save(head.state_dict(), folder / f"{name}.pt")
    return [load_head(name, folder / f"{name}.pt") for name in names]


def write_embeddings(path: Path, n_rows: int, of: Path | None = None, offsets: Sequence[int] | None = None) -> Path:
    """Writes a file of embeddings as the embedding pipeline does, of a source with documents at these offsets."""
    generator = np.random.default_rng(0)
    shape = {"dim": DIM, "embedding_dtype": "float32", "label_shape": None, "label_dtype": "float32", "index_keys": ()}
    with EmbeddingWriter(path, "train", slice_rows=WINDOW_DOCUMENTS, **shape) as writer:  # type: ignore[arg-type]
        for start in range(0, n_rows, WINDOW_DOCUMENTS):
            numbers = range(start, min(start + WINDOW_DOCUMENTS, n_rows))
            places = range(n_rows) if offsets is None else offsets
            documents = [Document(i + 1, places[i], f"document-{i:09d}", "", (), ()) for i in numbers]
            n_tokens = np.ones(len(numbers), np.int32)
            writer.append(documents, generator.standard_normal((len(numbers), DIM), np.float32), n_tokens)
        identity = {"bytes": 0, "mtime_ns": 0, "sha256": ""} if of is None else file_identity(of)
        source = {"path": (of or path).name, "folder": str(path.parent), **identity}
        request = {"weights_sha256": "", "max_line_bytes": DEFAULT_MAX_LINE_BYTES, "id_key": None}
        counts = dict.fromkeys(("rejected", "blank", "truncated", "duplicate_ids", "tokens"), 0)
        counts |= {"lines": n_rows, "documents": n_rows}
        writer.finish(Provenance(source, request, {"is_normalized": False}, counts, library_versions()))
    return path


if __name__ == "__main__":
    main()
