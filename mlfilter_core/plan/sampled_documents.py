"""What the lines of sampled pieces would become: documents, rejected lines, blank ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlfilter_core.corpus.documents import (
    BadRecordError,
    Document,
    DocumentSchema,
    Rejection,
    parse_document,
    parse_record,
)
from mlfilter_core.corpus.lines import Line
from mlfilter_core.plan.blocks import Block


@dataclass
class SampledDocuments:
    """The lines of one piece.

    Attributes:
        block: The piece.
        documents: In order; numbered from 1 in each piece, as the number of a line in its file is not known.
        lines: Of the documents.
        rejections: Of the lines that are none.
        n_blank: Lines without content.
        n_tokens: Of each document, once an encoder has been asked.
        n_truncated: Documents that are longer than it takes.
    """

    block: Block
    documents: list[Document]
    lines: list[bytes]
    rejections: list[Rejection]
    n_blank: int
    n_tokens: Sequence[int] = ()
    n_truncated: int = 0

    def reject(self, dropped: Mapping[int, str]) -> None:
        """Moves documents, given by their place, to the rejections, each with its reason."""
        self.rejections += [
            Rejection(self.documents[i].line, self.documents[i].offset, reason, "") for i, reason in dropped.items()
        ]
        self.documents = [document for i, document in enumerate(self.documents) if i not in dropped]
        self.lines = [line for i, line in enumerate(self.lines) if i not in dropped]
        self.n_tokens = [n for i, n in enumerate(self.n_tokens) if i not in dropped]

    @property
    def n_lines(self) -> int:
        return len(self.documents) + len(self.rejections) + self.n_blank


def read_documents(block: Block, schema: DocumentSchema, max_line_bytes: int) -> SampledDocuments:
    """Returns what an embedding job would make of the lines of a piece."""
    result = SampledDocuments(block, [], [], [], 0)
    for number, content in enumerate(block.lines, 1):
        if len(content) > max_line_bytes:
            detail = f"the line is longer than params.max_line_bytes, {max_line_bytes} bytes"
            result.rejections.append(Rejection(number, 0, "line_too_long", detail))
        elif not content or content.isspace():
            result.n_blank += 1
        else:
            parsed = parse_document(Line(number, 0, content), schema, block.file.relative)
            if isinstance(parsed, Rejection):
                result.rejections.append(parsed)
            else:
                result.documents.append(parsed)
                result.lines.append(content)
    return result


def read_records(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Returns the JSON objects in sampled pieces."""
    records = []
    for block in blocks:
        for content in block.lines:
            try:
                records.append(parse_record(content))
            except BadRecordError:
                continue
    return records


def count_reasons(sampled: Sequence[SampledDocuments]) -> Counter[str]:
    """Returns how many lines are rejected for each reason."""
    return Counter(rejection.reason for documents in sampled for rejection in documents.rejections)
