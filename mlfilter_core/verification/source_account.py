"""Classifies each line of a source as a document, a rejected line or a blank line.

Tells documents from others as embedding does, reads their values in another way, and compares rejected lines with the
rejects file. Knows nothing about HDF5.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import Document, DocumentSchema, Rejection, parse_document
from mlfilter_core.corpus.lines import Line, OverlongLine
from mlfilter_core.corpus.sources import Source
from mlfilter_core.verification.discrepancies import Findings
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.rejected_lines import RejectedLine
from mlfilter_core.verification.source_values import read_again

# Only the encoder gives these reasons; the lines themselves are documents.
ENCODER_REASONS = frozenset({"no_tokens", "too_many_tokens", "out_of_memory"})
TOO_LONG = "line_too_long"
# Largest number and size of documents in memory at a time. Arbitrary.
BATCH_DOCUMENTS = 4096
BATCH_BYTES = 8 << 20
AGAIN = "embed it again"


def find_source(recorded: Mapping[str, Any], request: VerifyRequest, findings: Findings) -> Path | None:
    """Returns the path of the source; None, with a problem, where it cannot be the source that was embedded.

    Args:
        recorded: The source as provenance describes it.
        request: Request of the verification. Without reading, size and modification time decide.
        findings: Collects the problem.
    """
    path = Path(request.source_dir or recorded["folder"], recorded["path"])
    try:
        status = path.stat()
    except OSError as error:
        findings.add("source", f"its source {path}: {error.strerror}", "give the folder of the sources by --source-dir")
        return None
    if status.st_size != recorded["bytes"]:
        sizes = f"{status.st_size:,} bytes, and had {recorded['bytes']:,} when it was embedded"
        findings.add("source", f"its source {path} has {sizes}")
        return None
    if not request.read_content and status.st_mtime_ns != recorded["mtime_ns"]:
        changed = f"its source {path} was copied or changed since it was embedded"
        findings.add("source", changed, "check without --quick to compare the content")
        return None
    return path


def schema_of(request: Mapping[str, Any]) -> DocumentSchema:
    """Returns the schema of a source's records that provenance describes."""
    values: dict[str, Any] = {name: request[name] for name in DocumentSchema.__dataclass_fields__}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return DocumentSchema(**values)


class SourceAccount:
    """Reads a source once and finds each line among the rejected lines, or yields it as a document.

    Memory does not depend on the size of the source.

    Attributes:
        n_documents: Lines that are neither rejected nor blank.
        n_blank: Lines without content.
        rejected: Rejected lines for each reason.
    """

    def __init__(
        self,
        reader: Source,
        recorded: Mapping[str, Any],
        request: Mapping[str, Any],
        rejected: Iterator[RejectedLine] | None,
        findings: Findings,
    ) -> None:
        """Takes the open files; `documents` reads them.

        Args:
            reader: The source.
            recorded: The source as provenance describes it.
            request: The embedding's request, from provenance.
            rejected: The rejected lines; None where they are missing. Then a line that only the encoder rejected is
                yielded as a document.
            findings: Collects the problems.
        """
        self.n_documents = 0
        self.n_blank = 0
        self.rejected: Counter[str] = Counter()
        self._reader = reader
        self._recorded = recorded
        self._schema = schema_of(request)
        self._max_line_bytes: int = request["max_line_bytes"]
        self._are_known = rejected is not None
        self._rejected = rejected or iter(())
        self._next = next(self._rejected, None)
        self._findings = findings

    def documents(self) -> Iterator[list[Document]]:
        """Yields the documents in order, some thousands at a time; after the last, the whole source was checked."""
        batch: list[Document] = []
        n_bytes = 0
        for line in self._reader.lines(self._max_line_bytes):
            document = self._account(line)
            if document is None or isinstance(line, OverlongLine):
                continue
            batch.append(document)
            n_bytes += len(line.content)
            if len(batch) == BATCH_DOCUMENTS or n_bytes >= BATCH_BYTES:
                yield batch
                batch, n_bytes = [], 0
        yield batch
        while self._next is not None:
            self._skip_surplus(self._next)
        if self._reader.sha256 != self._recorded["sha256"]:
            self._findings.add("source", f"its source {self._reader.path} changed since it was embedded")

    def _account(self, line: Line | OverlongLine) -> Document | None:
        """Counts one line; returns its document if it is one."""
        while self._next is not None and self._next.line < line.number:
            self._skip_surplus(self._next)
        parsed: Document | Rejection | None = None
        if isinstance(line, Line):
            if not line.content or line.content.isspace():
                self.n_blank += 1
                return None  # a rejected line of this number is surplus, which the next line shows
            parsed = parse_document(line, self._schema, self._recorded["path"])
        if self._next is not None and self._next.line == line.number:
            self._compare(self._next, line, parsed)
            self._count(self._next)
            return None
        if isinstance(parsed, Document):
            assert isinstance(line, Line)
            self.n_documents += 1
            return read_again(parsed, line.content, self._schema)
        if self._are_known:
            why = f"line {line.number} of the source is no document ({_reason(parsed)})"
            self._findings.add("missing", f"{why}, and is not among the rejected lines")
        else:
            self.rejected[_reason(parsed)] += 1
        return None

    def _compare(self, rejected: RejectedLine, line: Line | OverlongLine, parsed: Document | Rejection | None) -> None:
        where = f"the rejected line {line.number}"
        content = [line.content] if isinstance(line, Line) else line.pieces
        if _digest(rejected.pieces) != _digest(content):
            self._findings.add("raw", f"{where} differs from the source's")
        if rejected.offset != line.offset:
            self._findings.add("offset", f"{where} has offset {rejected.offset}, the source's has {line.offset}")
        if isinstance(parsed, Document):
            if rejected.reason not in ENCODER_REASONS:
                self._findings.add("reason", f"{where} has the reason {rejected.reason}, but is a document")
        elif rejected.reason != _reason(parsed):
            reasons = f"{rejected.reason}, the source gives {_reason(parsed)}"
            self._findings.add("reason", f"{where} has the reason {reasons}")

    def _skip_surplus(self, rejected: RejectedLine) -> None:
        where = f"the rejected line {rejected.line}"
        self._findings.add("surplus", f"{where} is blank in the source, repeated or out of order")
        self._count(rejected)

    def _count(self, rejected: RejectedLine) -> None:
        self.rejected[rejected.reason] += 1
        self._next = next(self._rejected, None)


def _reason(parsed: Rejection | None) -> str:
    return parsed.reason if parsed else TOO_LONG


def _digest(pieces: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
