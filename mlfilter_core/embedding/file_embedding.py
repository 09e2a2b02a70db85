"""The stages that turn the lines of one source file into rows of embeddings: read, tokenize, encode, write."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np

from mlfilter_core.compute.stages import Stages, held_back
from mlfilter_core.corpus.documents import Rejection
from mlfilter_core.corpus.lines import READ_BYTES
from mlfilter_core.corpus.rejects import RejectsFile
from mlfilter_core.corpus.sources import Source
from mlfilter_core.corpus.windows import FIRST_WINDOW, WHOLE_WINDOW, Window, read_windows
from mlfilter_core.embedding.committed import CommittedRows, Rows
from mlfilter_core.embedding.embed_counts import EmbedCounts
from mlfilter_core.embedding.embed_progress import EmbedProgress
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.embedding.encoded_file import EncodedFile
from mlfilter_core.embedding.window_encoder import WindowEncoder
from mlfilter_core.embedding_store.writer import EmbeddingWriter
from mlfilter_core.errors import SourceError
from mlfilter_core.files.task_files import TaskFile

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import EncodedTexts, Encoder, TokenizedTexts

_TokenizedWindow: TypeAlias = tuple[Window, "TokenizedTexts | Rows"]  # rows where it was encoded before
_EncodedWindow: TypeAlias = tuple[Window, Rows, bool]  # and whether this run encoded it


@dataclass(frozen=True)
class OpenFiles:
    """The open files of one embedding.

    Attributes:
        reader: Source.
        writer: File of embeddings.
        rejects: File of rejected lines.
        committed: Checkpoint.
    """

    reader: Source
    writer: EmbeddingWriter
    rejects: RejectsFile
    committed: CommittedRows


class FileEmbedding:
    """The embedding of one file or a part of it. The stages run at the same time, each on a different window.

    Attributes:
        counts: Counts of what is written so far.
    """

    def __init__(
        self,
        source: TaskFile,
        request: EmbedRequest,
        encoder: "Encoder",
        files: OpenFiles,
        encoded_file: EncodedFile | None = None,
    ) -> None:
        """Takes the file, the request, the encoder, the open files, and the rows if they were encoded before."""
        self.counts = EmbedCounts()
        self._source = source
        self._request = request
        self._windows = WindowEncoder(encoder, request)
        self._files = files
        self._encoded_file = encoded_file
        self._stages = Stages("reading", "tokenizing", "encoding", "writing")
        self._progress = EmbedProgress(source, files.reader, self._stages, encoder)

    def run(self, scratch: Path) -> dict[str, float]:
        """Embeds the file, and returns the seconds that each stage waited for another.

        Args:
            scratch: Folder for the bytes of lines above the limit.

        Raises:
            SourceError: The source is broken off, has a bad line that fails it, or an embedding is not finite.
            OSError: Reading or writing failed.
        """
        request = self._request
        read = read_windows(
            *(self._files.reader, self._source, request.schema, request.max_line_bytes, scratch),
            request.commit_documents,
            FIRST_WINDOW if self._encoded_file is None else WHOLE_WINDOW,
        )
        if self._encoded_file is not None:  # nothing takes long
            self._write(self._encode(self._tokenize(read)))
            return {}
        with self._stages as stages:
            windows = stages.run(read)
            tokenized = stages.run(self._tokenize(windows))
            # In this thread, where the encoder was loaded: OpenMP has a pool of threads for each thread that computes.
            # With more threads than cores they would sleep instead of spinning while they wait for each other.
            stages.hand_over(self._encode(tokenized), self._write)
            return stages.waited()

    def _tokenize(self, windows: Iterator[Window]) -> Iterator[_TokenizedWindow]:
        for window in windows:
            rows = self._encoded_before(window)
            self._progress.read(len(window.documents))
            yield window, self._windows.tokenize([window])[0] if rows is None else rows

    def _encoded_before(self, window: Window) -> Rows | None:
        """Returns the rows of a window that an earlier run encoded, or that was encoded together with other files."""
        if self._encoded_file is not None:
            return self._encoded_file.take(window)
        return self._files.committed.take(window)

    def _encode(self, tokenized: Iterator[_TokenizedWindow]) -> Iterator[_EncodedWindow]:
        for window, tokens, texts in held_back(self._begin(tokenized), self._windows.n_begun_ahead):
            if isinstance(tokens, Rows):
                yield window, tokens, False
            else:
                assert texts is not None
                yield window, self._windows.rows([window], [tokens], texts)[0], True

    def _begin(
        self, tokenized: Iterator[_TokenizedWindow]
    ) -> "Iterator[tuple[Window, TokenizedTexts | Rows, EncodedTexts | None]]":
        max_batch_tokens: int | None = None  # as in the previous window, encoded by this run or an earlier one
        for window, tokens in tokenized:
            if isinstance(tokens, Rows):
                max_batch_tokens = tokens.max_batch_tokens
                self._progress.encoded(len(tokens.n_tokens), int(tokens.n_tokens.sum()))
                yield window, tokens, None
            else:
                texts = self._windows.encode([tokens], max_batch_tokens, functools.partial(self._count_batch, tokens))
                max_batch_tokens = texts.max_batch_tokens
                yield window, tokens, texts

    def _count_batch(self, tokens: "TokenizedTexts", n_chunks: int, n_tokens: int) -> None:
        # Documents, and tokens that are in two chunks once, as in the report of the file.
        share = n_chunks / len(tokens.input_ids)
        n_tokens = n_tokens if len(tokens.input_ids) == len(tokens.n_tokens) else round(share * tokens.n_tokens.sum())
        self._progress.encoded(share * len(tokens.n_tokens), n_tokens)

    def _write(self, encoded: Iterator[_EncodedWindow]) -> None:
        counts, rejects = self.counts, self._files.rejects
        for window, rows, is_new in encoded:
            self._check_finite(window, rows)
            if is_new:
                self._files.committed.add(window, rows)
            self._reject(window.rejected)
            if window.documents:
                self._files.writer.append(window.documents, rows.embeddings, rows.n_tokens, rows.n_chunks)
            counts.add(window, rows, is_new)
            # The last window is not committed: the output appears next.
            self._progress.wrote(0 if window.is_last else counts.documents, rejects.n_rejected, counts.out_of_memory)

    def _check_finite(self, window: Window, rows: Rows) -> None:
        finite = np.isfinite(rows.embeddings).all(axis=1)
        if not finite.all():
            row = np.searchsorted(np.cumsum(rows.n_chunks), int(np.argmin(finite)), side="right")
            document = window.documents[int(row)]
            raise SourceError(
                f"{self._source.path}:{document.line}: the embedding of document {document.id} is not finite in "
                f"{self._request.encoder.model_dtype} stored as {self._request.embedding_dtype}; use model_dtype "
                "bfloat16 or float32, and embedding_dtype float32"
            )

    def _reject(self, rejected: list[tuple[Rejection, bytes | IO[bytes]]]) -> None:
        with ExitStack() as files:
            for _, content in rejected:
                if not isinstance(content, bytes):
                    files.enter_context(content)
            for rejection, content in sorted(rejected, key=lambda line: line[0].line):
                if self._request.fail_on_bad_record:
                    raise SourceError(
                        f"{self._source.path}:{rejection.line}: {rejection.reason}: {rejection.detail}; fix the line, "
                        "or set params.on_bad_record: reject to continue without it"
                    )
                if isinstance(content, bytes):
                    self._files.rejects.add(rejection, content)
                else:
                    pieces = iter(functools.partial(content.read, READ_BYTES), b"")
                    self._files.rejects.add_pieces(rejection, pieces)
