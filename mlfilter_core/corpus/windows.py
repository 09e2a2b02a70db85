"""The documents of a source file in windows of some thousands."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mlfilter_core.corpus.documents import Document, DocumentSchema, Rejection, parse_document
from mlfilter_core.corpus.lines import OverlongLine
from mlfilter_core.corpus.sources import Source
from mlfilter_core.files.new_file import naming
from mlfilter_core.files.task_files import TaskFile

# Documents are sorted by length within a window, and a window is in memory. Measured with MiniLM on the CPU: larger
# windows do not reduce the padding further. The bytes bound windows of long texts. After a kill, some windows are
# encoded again: minutes of work on two cores, seconds on a GPU.
WINDOW_DOCUMENTS = 4096
WINDOW_BYTES = 32 << 20
# The encoder waits for the first window; each one after it is twice as large as the one before.
FIRST_WINDOW, WHOLE_WINDOW = 1 / 16, 1.0
# Arbitrary: a flush takes tens of milliseconds on a disk, more on a shared file system, while the encoding continues.
DEFAULT_COMMIT_DOCUMENTS = 4 * WINDOW_DOCUMENTS


@dataclass
class Window:
    """Consecutive lines of a source.

    Attributes:
        documents: Documents, in order.
        lines: Line of each document, which may still be rejected.
        rejected: Rejected lines; a line above the limit as an open, unnamed file.
        dropped: The rejections that are due to the encoder and not to the line.
        n_blank: Number of lines without content.
        n_bytes: Bytes of the lines in memory.
        is_last: Whether the source, or its part, ends with this window.
        sha256: Digest of the lines of its documents; empty in the last window.
    """

    documents: list[Document] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    rejected: list[tuple[Rejection, bytes | IO[bytes]]] = field(default_factory=list)
    dropped: list[Rejection] = field(default_factory=list)
    n_blank: int = 0
    n_bytes: int = 0
    is_last: bool = False
    sha256: str = ""

    def drop(self, rows: Sequence[int], reason: str, detail: str) -> None:
        """Moves documents, given by their row, to the rejected lines."""
        gone = [self.documents[row] for row in rows]
        self.drop_lines([Rejection(document.line, document.offset, reason, detail) for document in gone])

    def drop_lines(self, dropped: Sequence[Rejection]) -> None:
        """Moves documents, given by their rejections, to the rejected lines."""
        if not dropped:
            return
        by_line = {rejection.line: rejection for rejection in dropped}
        for document, line in zip(self.documents, self.lines, strict=True):
            if document.line in by_line:
                self.rejected.append((by_line[document.line], line))
        kept = [row for row, document in enumerate(self.documents) if document.line not in by_line]
        self.documents = [self.documents[row] for row in kept]
        self.lines = [self.lines[row] for row in kept]
        self.dropped += dropped


def read_windows(
    reader: Source,
    source: TaskFile,
    schema: DocumentSchema,
    max_line_bytes: int,
    scratch: Path,
    max_documents: int = WINDOW_DOCUMENTS,
    first_window: float = FIRST_WINDOW,
) -> Iterator[Window]:
    """Yields the windows of a file, or of a part of it.

    Args:
        reader: Reader of the file.
        source: The file or its part; it names documents without an id.
        schema: Keys of the text, id, index values and labels.
        max_line_bytes: Most bytes of a line; a longer line is rejected.
        scratch: Folder for the bytes of such lines.
        max_documents: Most lines in a window, without blank ones; `WINDOW_DOCUMENTS` at most.
        first_window: Size of the first window, as a share of a whole one.

    Raises:
        SourceError: The compressed stream is broken.
        OSError: Reading failed, or writing to `scratch`.
    """
    most, share = min(max_documents, WINDOW_DOCUMENTS), first_window
    window = Window()
    for line in reader.lines(max_line_bytes, source.part):
        # Only when there is a next line, so that the last window can be marked.
        n_lines = len(window.documents) + len(window.rejected)
        if n_lines >= min(most, WINDOW_DOCUMENTS * share) or window.n_bytes >= WINDOW_BYTES * share:
            window.sha256 = sha256_of_lines(window.lines)
            yield window
            window, share = Window(), min(1.0, 2 * share)
        if isinstance(line, OverlongLine):
            detail = f"the line is longer than params.max_line_bytes, {max_line_bytes} bytes"
            rejection = Rejection(line.number, line.offset, "line_too_long", detail)
            window.rejected.append((rejection, _kept(line, scratch)))
        elif not line.content or line.content.isspace():
            window.n_blank += 1
        else:
            document = parse_document(line, schema, source.relative)
            if isinstance(document, Rejection):
                window.rejected.append((document, line.content))
            else:
                window.documents.append(document)
                window.lines.append(line.content)
            window.n_bytes += len(line.content)
    window.is_last = True
    yield window


def sha256_of_lines(lines: Iterable[bytes]) -> str:
    """Returns a digest of lines and their order."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
        digest.update(b"\n")
    return digest.hexdigest()


def _kept(line: OverlongLine, scratch: Path) -> IO[bytes]:
    file = tempfile.TemporaryFile(dir=scratch)
    try:
        for piece in line.pieces:
            with naming(scratch):
                file.write(piece)
        with naming(scratch):
            file.seek(0)  # flushes the buffer
    except BaseException:
        with suppress(OSError):  # the buffer still cannot be written
            file.close()
        raise
    return file
