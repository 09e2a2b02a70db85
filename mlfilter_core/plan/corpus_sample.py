"""A random sample of a job's source files, read as the job reads them: documents, rejected lines, blank lines."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.corpus.documents import Document, DocumentSchema, Rejection, parse_document
from mlfilter_core.corpus.lines import Line
from mlfilter_core.plan.blocks import Block, BlockSample, draw_blocks
from mlfilter_core.plan.estimates import Estimate, estimate_quotient, estimate_total
from mlfilter_core.plan.files_to_do import FilesToDo
from mlfilter_core.plan.findings import Findings

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder


@dataclass(frozen=True)
class Piece:
    """The lines of one block.

    Attributes:
        block: The block.
        documents: Documents in order, numbered from 1 in each block: the number of a line in its file is unknown.
        lines: Lines of the documents.
        rejections: Lines that are not documents.
        n_blank: Number of blank lines.
        n_tokens: Tokens of all documents; 0 before `tokenized`.
        n_truncated: Documents that the encoder truncates.
        n_chunks: Embeddings of all documents.
    """

    block: Block
    documents: Sequence[Document]
    lines: Sequence[bytes]
    rejections: Sequence[Rejection]
    n_blank: int
    n_tokens: int = 0
    n_truncated: int = 0
    n_chunks: int = 0

    @property
    def n_lines(self) -> int:
        return len(self.documents) + len(self.rejections) + self.n_blank

    @cached_property
    def reasons(self) -> Counter[str]:
        """How many lines are rejected for each reason."""
        return Counter(rejection.reason for rejection in self.rejections)

    def tokenized(self, encoder: "Encoder", truncate: bool) -> "Piece":
        """Returns the piece with its tokens counted; documents that the encoder does not take are rejected."""
        tokens = encoder.tokenize([document.text for document in self.documents])
        kept: list[int] = []
        rejections = list(self.rejections)
        for i, (document, n, is_cut) in enumerate(zip(self.documents, tokens.n_tokens, tokens.is_cut, strict=True)):
            if n == 0 or (is_cut and not truncate):
                reason = "no_tokens" if n == 0 else "too_many_tokens"
                rejections.append(Rejection(document.line, document.offset, reason, ""))
            else:
                kept.append(i)
        return replace(
            self,
            documents=[self.documents[i] for i in kept],
            lines=[self.lines[i] for i in kept],
            rejections=rejections,
            n_tokens=int(tokens.n_tokens[kept].sum()),
            n_truncated=int(tokens.is_cut[kept].sum()),
            n_chunks=int(tokens.n_chunks[kept].sum()),
        )


@dataclass(frozen=True)
class CorpusSample:
    """A random sample of the source files that a job has yet to do.

    Attributes:
        files: Files of the job.
        blocks: Blocks that were drawn.
        pieces: The blocks, read as the job reads them.
    """

    files: FilesToDo
    blocks: BlockSample
    pieces: Sequence[Piece]

    @cached_property
    def documents(self) -> list[Document]:
        return [document for piece in self.pieces for document in piece.documents]

    @property
    def n_files(self) -> int:
        """Number of files that can be read."""
        return len(self.blocks.bytes_by_file)

    @cached_property
    def reasons(self) -> Counter[str]:
        """How many sampled lines are rejected for each reason."""
        return sum((piece.reasons for piece in self.pieces), Counter())

    def share_of_largest(self, n_files: int) -> float:
        """Returns the share of the largest files in the bytes of all."""
        sizes = sorted(self.blocks.bytes_by_file.values(), reverse=True)
        return sum(sizes[:n_files]) / max(1, sum(sizes))

    def tokenized(self, encoder: "Encoder", truncate: bool) -> "CorpusSample":
        """Returns the sample with its tokens counted; documents that the encoder does not take are rejected."""
        return replace(self, pieces=[piece.tokenized(encoder, truncate) for piece in self.pieces])

    def total(self, count: Callable[[Piece], float]) -> Estimate:
        """Returns a total over all files.

        Args:
            count: Returns the count of one piece, at least 0.
        """
        return estimate_total(self.blocks, self._of_block(count))

    def tokens_per_document(self) -> Estimate:
        """Returns the mean over all files; some sampled line is a document."""
        n_documents = self._of_block(lambda piece: len(piece.documents))
        return estimate_quotient(self.blocks, self._of_block(lambda piece: piece.n_tokens), n_documents)

    def _of_block(self, count: Callable[[Piece], float]) -> Callable[[Block], float]:
        by_block = {id(piece.block): float(count(piece)) for piece in self.pieces}
        return lambda block: by_block[id(block)]


def draw_corpus(files: FilesToDo, params: EmbeddingPipelineParameters, seed: int, findings: Findings) -> CorpusSample:
    """Draws a sample of the files that are to do; the same seed draws the same lines."""
    schema = params.schema_of_documents()
    blocks = draw_blocks(files.to_do, params.max_line_bytes, seed, findings, schema.keys)
    return CorpusSample(files, blocks, [_read(block, schema, params.max_line_bytes) for block in blocks.all_blocks])


def _read(block: Block, schema: DocumentSchema, max_line_bytes: int) -> Piece:
    documents, lines, rejections = [], [], []
    n_blank = 0
    for number, content in enumerate(block.lines, 1):
        if len(content) > max_line_bytes:
            detail = f"the line is longer than params.max_line_bytes, {max_line_bytes} bytes"
            rejections.append(Rejection(number, 0, "line_too_long", detail))
        elif not content or content.isspace():
            n_blank += 1
        else:
            parsed = parse_document(Line(number, 0, content), schema, block.file.relative)
            if isinstance(parsed, Rejection):
                rejections.append(parsed)
            else:
                documents.append(parsed)
                lines.append(content)
    return Piece(block, documents, lines, rejections, n_blank)
