"""How much memory a worker of a job takes at most."""

import os
import resource
from dataclasses import dataclass

from mlfilter_core.corpus.windows import WINDOW_BYTES
from mlfilter_core.wording import size

# See docs/speed.md § Memory: windows in progress, and the most bytes of memory for a byte of their lines.
WINDOWS, EXPANSION = 8, 5
# Windows of embeddings in memory: encoded, waiting, and twice while they are committed.
CHUNK_COPIES = 4
# Arbitrary: documents that were not scored here may have longer texts.
ANNOTATION_MARGIN, ANNOTATION_MIN_BYTES = 1.5, 1 << 30


@dataclass(frozen=True)
class WorkerMemory:
    """The memory that one worker takes at most.

    Attributes:
        n_bytes: The memory.
        why: Its parts, as text.
    """

    n_bytes: float
    why: str

    def __str__(self) -> str:
        return f"at most {size(self.n_bytes)} for each worker: {self.why}"


def peak_memory_bytes() -> int:
    """Returns the largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak << 10 if os.uname().sysname == "Linux" else peak  # kibibytes on Linux, bytes on macOS


def embedding_memory(peak_bytes: int, max_line_bytes: int, chunk_bytes_per_byte: float = 0.0) -> WorkerMemory:
    """Returns the memory of an embedding worker: the measured `peak_bytes`, and the longest allowed lines.

    Args:
        peak_bytes: Measured memory.
        max_line_bytes: Most bytes of a line.
        chunk_bytes_per_byte: Bytes of embeddings for a byte of lines, where documents are divided into chunks.
    """
    windows = WINDOWS * EXPANSION * (WINDOW_BYTES + max_line_bytes)
    chunks = CHUNK_COPIES * chunk_bytes_per_byte * WINDOW_BYTES
    why = f"{size(peak_bytes)} measured, {size(windows)} for the longest lines allowed"
    why += f", {size(chunks)} for the embeddings of chunks" if chunks else ""
    return WorkerMemory(peak_bytes + windows + chunks, why)


def annotation_memory(peak_bytes: int) -> WorkerMemory:
    """Returns the memory of an annotation worker: the measured `peak_bytes`, and longer texts."""
    n_bytes = max(ANNOTATION_MARGIN * peak_bytes, ANNOTATION_MIN_BYTES)
    return WorkerMemory(n_bytes, f"{size(peak_bytes)} measured, {size(n_bytes - peak_bytes)} for longer texts")
