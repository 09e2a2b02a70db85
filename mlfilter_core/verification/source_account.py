"""Where each line of a source went: to the documents, to the rejected lines, or nowhere, being blank.

Reads a source as embedding does, beside what embedding made of it. Knows nothing about HDF5.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import Document, DocumentSchema, Rejection, parse_document
from mlfilter_core.corpus.lines import Line, OverlongLine, SourceReader
from mlfilter_core.verification.discrepancies import Findings
from mlfilter_core.verification.rejected_lines import RejectedLine

# Only the encoder knows these; the lines themselves are documents.
ENCODER_REASONS = frozenset({"no_tokens", "too_many_tokens", "out_of_memory"})
TOO_LONG = "line_too_long"
# Documents that stand in memory at a time: at most so many, or of so many bytes. Arbitrary.
BATCH_DOCUMENTS = 4096
BATCH_BYTES = 8 << 20
AGAIN = "embed it again"


def find_source(
    recorded: Mapping[str, Any], source_dir: Path | None, read_content: bool, findings: Findings
) -> Path | None:
    """Returns the path of a source that may be the one that was embedded; else a problem says what is wrong.

    Args:
        recorded: The source as provenance describes it.
        source_dir: Where the sources lie now; None takes the folder that provenance names.
        read_content: Whether the content will be read; if not, the time of the last change decides.
        findings: Takes the problem.
    """
    path = Path(source_dir or recorded["folder"], recorded["path"])
    try:
        status = path.stat()
    except OSError as error:
        findings.add("source", f"its source {path}: {error.strerror}; give the folder of the sources by --source-dir")
        return None
    if status.st_size != recorded["bytes"]:
        findings.add(
            "source",
            f"its source {path} has {status.st_size:,} bytes, and had {recorded['bytes']:,} when it was "
            f"embedded; {AGAIN}",
        )
        return None
    if not read_content and status.st_mtime_ns != recorded["mtime_ns"]:
        findings.add(
            "source",
            f"its source {path} was copied or changed since it was embedded; only a check without --quick can tell",
        )
        return None
    return path


def count_by_reason(rejected: Iterable[RejectedLine]) -> Counter[str]:
    """Returns how many lines were rejected for each reason."""
    return Counter(line.reason for line in rejected)


def schema_of(request: Mapping[str, Any]) -> DocumentSchema:
    """Returns where the records of a source keep what was read from them, as provenance says it."""
    label_keys = request["label_keys"]
    return DocumentSchema(
        text_keys=tuple(request["text_keys"]),
        id_key=request["id_key"],
        index_keys=tuple(request["index_keys"]),
        label_keys=tuple(label_keys) if isinstance(label_keys, list) else label_keys,
        label_dtype=request["label_dtype"],
    )


class SourceAccount:
    """Reads a source once and finds each line again among the rejected ones, or yields it as a document.

    Memory does not depend on the size of the source.

    Attributes:
        n_documents: Lines that are neither rejected nor blank.
        n_blank: Lines without content.
        rejected: Rejected lines for each reason.
    """

    def __init__(
        self,
        reader: SourceReader,
        recorded: Mapping[str, Any],
        request: Mapping[str, Any],
        rejected: Iterator[RejectedLine] | None,
        findings: Findings,
    ) -> None:
        """Reads nothing of the source yet.

        Args:
            reader: Of the source.
            recorded: The source as provenance describes it.
            request: What was asked of the embedding, from provenance.
            rejected: The rejected lines; None where they are not there, so that a line that only the encoder
                rejected is yielded as a document.
            findings: Takes the problems.
        """
        self.n_documents = 0
        self.n_blank = 0
        self.rejected: Counter[str] = Counter()
        self._reader = reader
        self._recorded = recorded
        self._schema = schema_of(request)
        self._max_line_bytes: int = request["max_line_bytes"]
        self._are_known = rejected is not None
        self._rejected = iter(rejected or ())
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
            self._surplus(self._next)
        if self._reader.sha256 != self._recorded["sha256"]:
            self._findings.add("source", f"its source {self._reader.path} changed since it was embedded; {AGAIN}")

    def _account(self, line: Line | OverlongLine) -> Document | None:
        """Counts one line; returns its document if it is one."""
        while self._next is not None and self._next.line < line.number:
            self._surplus(self._next)
        rejected = self._next if self._next is not None and self._next.line == line.number else None
        parsed: Document | Rejection | None = None
        if isinstance(line, Line):
            if not line.content or line.content.isspace():
                self.n_blank += 1
                return None  # a rejected line of this number is surplus, which the next line shows
            parsed = parse_document(line, self._schema, self._recorded["path"])
        if rejected is not None:
            self._compare(rejected, line, parsed)
            self._count(rejected)
            return None
        if isinstance(parsed, Document):
            self.n_documents += 1
            return parsed
        reason = parsed.reason if parsed else TOO_LONG
        if self._are_known:
            where = f"line {line.number} of the source is no document ({reason})"
            self._findings.add("missing", f"{where}, and is not among the rejected lines; {AGAIN}")
        else:
            self.rejected[reason] += 1
        return None

    def _compare(self, rejected: RejectedLine, line: Line | OverlongLine, parsed: Document | Rejection | None) -> None:
        where = f"the rejected line {line.number}"
        content = iter([line.content]) if isinstance(line, Line) else line.pieces
        if _digest(rejected.pieces) != _digest(content):
            self._findings.add("raw", f"{where} differs from the source's; {AGAIN}")
        if rejected.offset != line.offset:
            found = f"offset {rejected.offset}, the source's has {line.offset}"
            self._findings.add("offset", f"{where} has {found}; {AGAIN}")
        if isinstance(parsed, Document):
            if rejected.reason not in ENCODER_REASONS:
                self._findings.add("reason", f"{where} has the reason {rejected.reason}, but is a document; {AGAIN}")
        elif rejected.reason != (reason := parsed.reason if parsed else TOO_LONG):
            self._findings.add(
                "reason", f"{where} has the reason {rejected.reason}, the source gives {reason}; {AGAIN}"
            )

    def _surplus(self, rejected: RejectedLine) -> None:
        self._findings.add(
            "surplus", f"the rejected line {rejected.line} is blank in the source, twice or out of order; {AGAIN}"
        )
        self._count(rejected)

    def _count(self, rejected: RejectedLine) -> None:
        self.rejected[rejected.reason] += 1
        self._next = next(self._rejected, None)


def _digest(pieces: Iterator[bytes]) -> bytes:
    digest = hashlib.blake2b()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
