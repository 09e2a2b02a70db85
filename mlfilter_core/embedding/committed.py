"""What is finished of a file of embeddings that is not, so that an interrupted one goes on where it was.

One file beside the output, to which each window of documents is appended when it is encoded: its embeddings, and which
of its documents the encoder would not take. The rest, such as ids and rejected lines, is read from the source again,
which is fast, and which proves that it is still the same. A record has a checksum: one that a killed process wrote half
of is none.
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

MAGIC = b"mlfilter committed 1\n"
# Of a record: bytes of its facts (JSON), bytes of its arrays, and a digest of both.
PREFIX = struct.Struct("<QQ16s")
MAX_FACTS_BYTES = 1 << 28  # arbitrary: a window in which every document was dropped has a hundredth of that

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """What an encoder made of the documents of a window.

    Attributes:
        embeddings: float32 or float16 (n, dim), as they are stored.
        n_tokens: int32 (n,), encoded.
        is_cut: bool (n,), whether the document was longer.
        out_of_memory: How often a batch did not fit and was divided.
        max_batch_tokens: Most tokens in one forward pass, after it.
    """

    embeddings: NDArray[Any]
    n_tokens: NDArray[np.int32]
    is_cut: NDArray[np.bool_]
    out_of_memory: int
    max_batch_tokens: int


class CommittedRows:
    """The windows of a source file that are encoded. Use it as a context manager.

    First the windows of an earlier run are taken, from the first one on; then new ones are added.

    Attributes:
        n_taken: Documents of an earlier run.
    """

    def __init__(
        self, output: Path, made_by: Mapping[str, Any], dim: int, embedding_dtype: str, commit_documents: int
    ) -> None:
        """Opens what there is; what was made in another way is discarded.

        Args:
            output: The file of embeddings that is to be.
            made_by: What was asked for and what decides the numbers.
            dim: Width of an embedding.
            embedding_dtype: As it is stored.
            commit_documents: Documents after which what was added is flushed to disk.
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
        """Returns what was made of a window, from which the documents that were dropped are dropped again.

        None where there is nothing of it, and from then on.
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
            _log.info("%s: what was committed from here on is discarded: the source changed", self._path)
        self._file.seek(start)
        self._file.truncate()
        return None

    def add(self, window: Window, rows: Rows) -> None:
        """Appends a window; it outlives this process, and every `commit_documents` documents, the machine too."""
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
        self._write(facts, rows.embeddings.tobytes() + rows.n_tokens.tobytes() + rows.is_cut.tobytes())
        self._n_uncommitted += len(window.documents)
        if self._n_uncommitted >= self._commit_documents:
            with naming(self._path):
                os.fdatasync(self._file.fileno())
            self._n_uncommitted = 0

    def remove(self) -> None:
        """Forgets all of it, once the output is there."""
        self.__exit__()
        self._path.unlink(missing_ok=True)

    def _open(self) -> bool:
        """Tells whether there is something to take."""
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
        self.remove()
        return False

    def _read(self) -> tuple[dict[str, Any], bytes] | None:
        """Returns the next record; None where there is no whole one."""
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
        n_embeddings = n * self._dim * self._dtype.itemsize
        return Rows(
            embeddings=np.frombuffer(arrays, self._dtype, n * self._dim).reshape(n, self._dim),
            n_tokens=np.frombuffer(arrays, np.int32, n, n_embeddings),
            is_cut=np.frombuffer(arrays, np.bool_, n, n_embeddings + 4 * n),
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
