"""The checkpoint of a file that is being embedded, so that an interrupted run can resume.

It is a file beside the output. When a window of documents is encoded, its embeddings and its dropped documents are
appended. Everything else, such as ids and rejected lines, is read from the source again. That is fast, and it proves
that the source is unchanged. Each record has a checksum, by which a half-written one is recognised.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import Rejection
from mlfilter_core.corpus.windows import Window
from mlfilter_core.files.claims import hidden_name
from mlfilter_core.files.new_file import naming
from mlfilter_core.files.publishing import COMMITTED_SUFFIX, fsync
from mlfilter_core.work.same_request import differing_fields

MAGIC = b"mlfilter committed 2\n"
# The head of a record: length of its facts (JSON), length of its arrays, and a digest of both.
PREFIX = struct.Struct("<QQ16s")
MAX_FACTS_BYTES = 1 << 28  # arbitrary: a hundred times the facts of a window of dropped documents

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The encoder's results for the documents of a window.

    Attributes:
        embeddings: float32 or float16 (sum of n_chunks, dim), as they are handed to the writer.
        n_tokens: int32 (n,), encoded tokens; those in two chunks are counted once.
        n_chunks: int32 (n,), embeddings of each document, which follow one another.
        is_cut: bool (n,), whether the document was truncated.
        out_of_memory: Number of batches that did not fit in memory and were divided.
        max_batch_tokens: Most tokens in one forward pass, after this window.
    """

    embeddings: NDArray[Any]
    n_tokens: NDArray[np.int32]
    n_chunks: NDArray[np.int32]
    is_cut: NDArray[np.bool_]
    out_of_memory: int
    max_batch_tokens: int


class CommittedRows:
    """The encoded windows of a source file. Use it as a context manager.

    First `take` the windows of an earlier run, in order; then `add` new ones.

    Attributes:
        n_taken: Number of documents taken from an earlier run.
    """

    def __init__(
        self, output: Path, made_by: Mapping[str, Any], dim: int, embedding_dtype: str, commit_documents: int
    ) -> None:
        """Opens an existing checkpoint; discards it if it was made by another request.

        Args:
            output: The file of embeddings that the checkpoint belongs to.
            made_by: Everything that the numbers depend on.
            dim: Width of an embedding.
            embedding_dtype: Dtype of the stored embeddings.
            commit_documents: Documents between flushes to disk.
        """
        self.n_taken = 0
        self._path = hidden_name(output, COMMITTED_SUFFIX)
        self._made_by = json.loads(json.dumps(dict(made_by)))
        self._dim = dim
        self._dtype = np.dtype(embedding_dtype)
        self._commit_documents = commit_documents
        self._n_uncommitted = 0
        self._file: IO[bytes] | None = None
        self._is_taking = self._open()

    def __enter__(self) -> "CommittedRows":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def take(self, window: Window) -> Rows | None:
        """Returns the rows of a window, and drops again the documents that were dropped from it.

        Returns None for the first window that is not in the checkpoint, and for all later ones.
        """
        if not self._is_taking or self._file is None:
            return None
        start = self._file.tell()
        read = self._read()
        if read is not None and not window.is_last and read[0]["sha256"] == window.sha256:
            facts, arrays = read
            dropped = [Rejection(**rejection) for rejection in facts["dropped"]]
            window.drop_lines(dropped)
            self.n_taken += len(window.documents)
            return self._rows(facts, arrays, len(window.documents))
        self._is_taking = False
        if read is not None:
            _log.info("%s: the rest of the checkpoint is discarded, as the source changed", self._path)
        self._file.seek(start)
        self._file.truncate()
        return None

    def add(self, window: Window, rows: Rows) -> None:
        """Appends a window, which survives a crash of the process, and after each flush a crash of the machine."""
        if window.is_last:  # the output appears next
            return
        if self._file is None:
            self._file = open(self._path, "xb", buffering=0)
            self._write(self._made_by, b"", MAGIC)
            fsync(self._path.parent)
        facts = {
            "sha256": window.sha256,
            "dropped": [asdict(rejection) for rejection in window.dropped],
            "out_of_memory": rows.out_of_memory,
            "max_batch_tokens": rows.max_batch_tokens,
        }
        columns = (rows.n_tokens, rows.n_chunks, rows.is_cut, rows.embeddings)
        self._write(facts, b"".join(column.tobytes() for column in columns))
        self._n_uncommitted += len(window.documents)
        if self._n_uncommitted >= self._commit_documents:
            with naming(self._path):
                os.fdatasync(self._file.fileno())
            self._n_uncommitted = 0

    def remove(self) -> None:
        """Removes the checkpoint, once the output exists."""
        self.__exit__()
        self._path.unlink(missing_ok=True)

    def _open(self) -> bool:
        """Opens the checkpoint; returns whether there is something to take."""
        try:
            self._file = open(self._path, "r+b", buffering=0)
        except FileNotFoundError:
            return False
        read = self._read() if self._file.read(len(MAGIC)) == MAGIC else None
        if read is not None and read[0] == self._made_by:
            return True
        if read is not None:
            differing = differing_fields(read[0], self._made_by)
            _log.info("%s is discarded: it was made by another request: %s", self._path, differing)
        else:
            _log.info("%s is discarded: another release wrote it, or it is broken", self._path)
        self.remove()
        return False

    def _read(self) -> tuple[dict[str, Any], bytes] | None:
        """Returns the next record, or None where there is no complete one."""
        assert self._file is not None
        prefix = self._file.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            return None
        n_facts, n_arrays, digest = PREFIX.unpack(prefix)
        left = os.fstat(self._file.fileno()).st_size - self._file.tell()
        if n_facts > MAX_FACTS_BYTES or n_facts + n_arrays > left:
            return None
        facts, arrays = _read_exactly(self._file, n_facts), _read_exactly(self._file, n_arrays)
        return (json.loads(facts), arrays) if _digest(facts, arrays) == digest else None

    def _write(self, facts: Mapping[str, Any], arrays: bytes, before: bytes = b"") -> None:
        assert self._file is not None
        encoded = json.dumps(facts).encode()
        record = memoryview(
            before + PREFIX.pack(len(encoded), len(arrays), _digest(encoded, arrays)) + encoded + arrays
        )
        with naming(self._path):
            while record:
                record = record[self._file.write(record) :]

    def _rows(self, facts: Mapping[str, Any], arrays: bytes, n: int) -> Rows:
        return Rows(
            n_tokens=np.frombuffer(arrays, np.int32, n),
            n_chunks=np.frombuffer(arrays, np.int32, n, 4 * n),
            is_cut=np.frombuffer(arrays, np.bool_, n, 8 * n),
            embeddings=np.frombuffer(arrays, self._dtype, offset=9 * n).reshape(-1, self._dim),
            out_of_memory=facts["out_of_memory"],
            max_batch_tokens=facts["max_batch_tokens"],
        )


def _digest(facts: bytes, arrays: bytes) -> bytes:
    digest = hashlib.blake2b(facts, digest_size=16)
    digest.update(arrays)
    return digest.digest()


def _read_exactly(file: IO[bytes], n: int) -> bytes:
    pieces = []
    while n and (piece := file.read(n)):
        pieces.append(piece)
        n -= len(piece)
    return b"".join(pieces)
