"""Measures how fast each format of source files becomes documents, and compares it with an encoder on the CPU."""

import bz2
import gzip
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from embed_cpu import REAL_CORPUS, load, read_texts
from measure import alternate, parser, publish

from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.corpus.windows import read_windows
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.files.zstd import zstd

SCHEMA = DocumentSchema(("text",), index_keys=("url",))
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    **{"": bytes, ".gz": gzip.compress, ".zst": zstd.compress, ".bz2": bz2.compress, ".xz": lzma.compress},
}
N_ENCODED = 64  # documents: enough for a rate, as the encoder is far slower than reading
ROW_GROUP_ROWS = 1000


def main() -> None:
    """Measures and publishes."""
    options = parser(__doc__)
    options.add_argument("--documents", type=int, default=10_000, help="documents of a file (default: 10000)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    texts, origin = read_texts(REAL_CORPUS, arguments.documents)
    encoder = load(512)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_sources(texts, Path(folder))
        runs: dict[str, Callable[[], object]] = {name: lambda path=path: read(path) for name, path in paths.items()}
        encoded = texts[:N_ENCODED]
        seconds = alternate(arguments.rounds, {**runs, "encoder": lambda: encoder.encode(encoder.tokenize(encoded))})
    per_s = {name: len(texts) / seconds[name] for name in paths}
    encoder_per_s = len(encoded) / seconds["encoder"]
    figures = {f"{name}_documents_per_s": rate for name, rate in per_s.items()}
    figures["encoder_documents_per_s"] = encoder_per_s
    figures |= {f"{name}_vs_encoder": rate / encoder_per_s for name, rate in per_s.items()}
    publish(figures, {"documents": f"{len(texts)} of {origin}", "threads": str(arguments.threads)}, arguments.json)


def write_sources(texts: list[str], folder: Path) -> dict[str, Path]:
    """Writes the same records in each format, with a column that is not read; returns the files."""
    records = [
        {"id": str(i), "url": f"https://example.org/{i}", "text": text, "more": text[::-1]}
        for i, text in enumerate(texts)
    ]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    paths = {}
    for suffix, compress in COMPRESS.items():
        paths[f"jsonl{suffix.replace('.', '_')}"] = folder / f"x.jsonl{suffix}"
        (folder / f"x.jsonl{suffix}").write_bytes(compress(lines))
    paths["parquet"] = folder / "x.parquet"
    pq.write_table(pa.Table.from_pylist(records), paths["parquet"], compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return paths


def read(path: Path) -> int:
    """Reads the documents of a file as embedding does, and returns their number."""
    source = TaskFile(path.name, "x", path.parent)
    with open_source(path, SCHEMA.keys) as reader:
        windows = read_windows(reader, source, SCHEMA, DEFAULT_MAX_LINE_BYTES, path.parent)
        return sum(len(window.documents) for window in windows)


if __name__ == "__main__":
    main()
