"""Sources for benchmarks, and the rates at which a machine copies and decompresses them."""

import random
import subprocess
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mlfilter_core.files.publishing import fsync
from mlfilter_core.files.zstd import zstd

WORDS, WORDS_PER_TEXT = 20_000, 600  # about 4 KB, as pages of FineWeb-Edu


def write_source(path: Path, n_documents: int, **fields: Any) -> tuple[Path, list[int]]:
    """Writes documents with texts of random words, as Zstandard where the name says so.

    Args:
        path: The file.
        n_documents: Number of documents.
        fields: Further fields of all documents: functions of the document's number.

    Returns:
        The file, and the offset of each document.
    """
    generator = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 11))) for _ in range(WORDS)]
    words[100::1000] = ["\n", '"', "don\u2019t", "é"] * 5  # some in each text
    shares = 1 / np.arange(1, len(words) + 1)  # Zipf's law: compressed to about 40 %, as text is
    chosen = np.random.default_rng(0).choice(len(words), (n_documents, WORDS_PER_TEXT), p=shares / shares.sum())
    lines = [
        orjson.dumps(record(i, " ".join([words[k] for k in row]), fields), option=orjson.OPT_APPEND_NEWLINE)
        for i, row in enumerate(chosen)
    ]
    content = b"".join(lines)
    path.write_bytes(zstd.compress(content) if path.suffix == ".zst" else content)
    return path, [0, *accumulate(map(len, lines))][:-1]


def record(i: int, text: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"document_id": f"document-{i:09d}", "text": text, **{name: of(i) for name, of in fields.items()}}


def copy(path: Path, target: Path) -> None:
    """Copies a file to disk with `cp`."""
    subprocess.run(["cp", path, target], check=True)
    fsync(target)
    target.unlink()


def decompress(path: Path) -> None:
    """Decompresses a file with `zstd -d`, to nowhere."""
    subprocess.run(["zstd", "-d", "-q", "-c", path], check=True, stdout=subprocess.DEVNULL)
