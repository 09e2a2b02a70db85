"""The documents of a source file, some thousands at a time."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mlfilter_core.corpus import CorpusFile
from mlfilter_core.documents import Document, DocumentSchema, Rejection, parse_document
from mlfilter_core.lines import OverlongLine, SourceReader

# Documents are sorted by length within a window, and a window stands in memory. Measured with MiniLM on
# the CPU: beyond a few thousand documents sorting wastes no less. The bytes bound windows of long texts.
WINDOW_DOCUMENTS = 4096
WINDOW_BYTES = 32 << 20


@dataclass
class Window:
    """Consecutive lines of a source.

    Attributes:
        documents: In order.
        lines: The line of each document; it may yet be rejected.
        rejected: The lines that are not documents, in order; one above the limit as an open, unnamed file.
        n_blank: Lines without content.
        n_bytes: Of the lines that stand in memory.
    """

    documents: list[Document] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    rejected: list[tuple[Rejection, bytes | IO[bytes]]] = field(default_factory=list)
    n_blank: int = 0
    n_bytes: int = 0


def read_windows(
    reader: SourceReader, source: CorpusFile, schema: DocumentSchema, max_line_bytes: int, scratch: Path
) -> Iterator[Window]:
    """Yields the lines of a file.

    Args:
        reader: Of the file.
        source: Names documents without an id.
        schema: Where records keep what is read from them.
        max_line_bytes: A longer line is rejected.
        scratch: Folder for the bytes of such a line.

    Raises:
        SourceError: The compressed stream is broken.
        OSError: Reading failed, or writing to `scratch`.
    """
    window = Window()
    for line in reader.lines(max_line_bytes):
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
        if len(window.documents) + len(window.rejected) >= WINDOW_DOCUMENTS or window.n_bytes >= WINDOW_BYTES:
            yield window
            window = Window()
    yield window


def _kept(line: OverlongLine, scratch: Path) -> IO[bytes]:
    file = tempfile.TemporaryFile(dir=scratch)
    file.writelines(line.pieces)
    file.seek(0)
    return file
