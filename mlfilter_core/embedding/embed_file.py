"""One source file to one HDF5 file of embeddings, with every line accounted for."""

import functools
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import DocumentSchema, Rejection
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES, READ_BYTES, SourceReader
from mlfilter_core.corpus.rejects import RejectsFile
from mlfilter_core.corpus.windows import DEFAULT_COMMIT_DOCUMENTS, WINDOW_DOCUMENTS, Window, read_windows
from mlfilter_core.embedding.committed import CommittedRows, Rows
from mlfilter_core.embedding.embed_progress import EmbedProgress
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.stages import Stages
from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.writer import EmbeddingWriter
from mlfilter_core.errors import EmbeddingFileError, OutputConflictError, SourceError
from mlfilter_core.files.identity import file_sha256, is_same_file
from mlfilter_core.files.publishing import publish
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.tallies.histogram import WHOLE_NUMBERS, Histogram, histogram, write_histogram
from mlfilter_core.versions import library_versions
from mlfilter_core.work.same_request import check_same_request

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import EncodedTexts, Encoder, TokenizedTexts
    from mlfilter_core.encoder.model_files import ModelFiles
    from mlfilter_core.encoder.settings import EncoderSettings

# Names of an encoder, which may change; the digests beside them tell whether it is the same.
MODEL_NAMES = ("model", "revision")

# What decides the last bits of an embedding, and is no part of what is asked for.
TUNED = ("max_batch_tokens", "why_max_batch_tokens", "is_compiled")

_TokenizedWindow: TypeAlias = tuple[Window, "TokenizedTexts | Rows"]  # rows where an earlier run encoded it
_EncodedWindow: TypeAlias = tuple[Window, Rows, bool]  # and whether an earlier run did

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedRequest:
    """What is asked of every file of an embedding run.

    Attributes:
        model: The encoder's files.
        encoder: What changes its embeddings.
        schema: Where records keep text, id, index values and labels.
        group: Name of the HDF5 group.
        embedding_dtype: `float32` or `float16`, in the file.
        batch_size: Most documents in one forward pass; None leaves it to the number of their tokens.
        writer_batch_size: Rows written to HDF5 at a time.
        commit_documents: Documents after which what is encoded outlives the machine.
        fail_on_bad_record: Whether the first bad line fails its file.
        max_rejected_fraction: Share of rejected lines above which a file fails.
        max_line_bytes: A longer line is rejected.
    """

    model: "ModelFiles"
    encoder: "EncoderSettings"
    schema: DocumentSchema
    group: str = "train"
    embedding_dtype: str = "float32"
    batch_size: int | None = None
    writer_batch_size: int = 1024
    commit_documents: int = DEFAULT_COMMIT_DOCUMENTS
    fail_on_bad_record: bool = False
    max_rejected_fraction: float = 1.0
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES

    def provenance(self) -> dict[str, Any]:
        """What decides the content of the output; the rest decides how fast it is made, or whether."""
        return {
            **self.model.provenance(),
            **self.encoder.provenance(),
            **asdict(self.schema),
            "group": self.group,
            "embedding_dtype": self.embedding_dtype,
            "max_line_bytes": self.max_line_bytes,
        }

    def open_writer(self, path: Path, dim: int) -> EmbeddingWriter:
        """Returns what writes a file of embeddings of this width; the caller closes it."""
        return EmbeddingWriter(
            path,
            self.group,
            dim=dim,
            embedding_dtype=self.embedding_dtype,
            label_shape=self.schema.label_shape,
            label_dtype=self.schema.label_dtype,
            index_keys=self.schema.index_keys,
            slice_rows=self.writer_batch_size,
        )


def embed_file(source: TaskFile, output: Path, rejects: Path, request: EmbedRequest, encoder: "Encoder") -> EmbedReport:
    """Embeds one file. `output` appears complete or not at all; interrupted, it goes on after its last commit.

    Args:
        source: The file.
        output: The HDF5 file to make; replaced where it exists.
        rejects: Takes the rejected lines; absent afterwards where there were none.
        request: What to do with it.
        encoder: Made from `request.model` and `request.encoder`.

    Raises:
        SourceError: The source is unreadable, broken off, changed while it was read, or has more bad
            lines than allowed.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    made_by = {**_decisive(request.provenance()), **_decisive(encoder.provenance())}
    made_by["window_documents"] = min(request.commit_documents, WINDOW_DOCUMENTS)
    before = _status(source.path)
    # In this order the rejects appear first: a finished output always has them beside it.
    with (
        SourceReader(source.path) as reader,
        publish(output) as temporary,
        RejectsFile(rejects) as bad,
        CommittedRows(output, made_by, encoder.dim, request.embedding_dtype, request.commit_documents) as committed,
    ):
        counts = _Counts()
        with request.open_writer(temporary, encoder.dim) as writer:
            waited = _embed_windows(reader, source, request, encoder, committed, writer, bad, counts, output.parent)
            source_status = _check_unchanged(source.path, before, reader)
            _check_rejected_fraction(source, reader.n_lines, bad, request.max_rejected_fraction)
            summary = counts.summary(reader.n_lines, bad)
            writer.finish(
                Provenance(
                    source={
                        "path": source.relative,
                        "folder": str(source.folder),
                        "bytes": reader.n_bytes,
                        "mtime_ns": source_status.st_mtime_ns,
                        "sha256": reader.sha256,
                    },
                    request=request.provenance(),
                    encoder={**encoder.provenance(), "max_batch_tokens": counts.max_batch_tokens},
                    counts=summary,
                    versions=library_versions(),
                    statistics={"document_tokens": write_histogram(counts.document_tokens)},
                )
            )
    committed.remove()
    seconds = time.monotonic() - started
    report = EmbedReport(
        source.relative,
        str(output),
        "embedded",
        **summary,
        resumed=committed.n_taken,
        seconds=seconds,
        waited=waited,
        encoder=str(encoder),
    )
    _log.info(
        "%s: %d documents, %d rejected, %d tokens in %.1f s (%.0f tokens/s)",
        *(source.relative, report.documents, report.rejected, report.tokens, seconds, counts.new_tokens / seconds),
    )
    if report.resumed:
        _log.info("%s: went on after %d documents of an earlier run", source.relative, report.resumed)
    if report.duplicate_ids:
        _log.warning("%s: %d documents have the id of an earlier one", source.relative, report.duplicate_ids)
    return report


def finished_embedding(
    source: TaskFile, output: Path, request: EmbedRequest, read_content: bool = True
) -> EmbedReport | None:
    """Returns the report of a finished output, or None where there is none yet.

    Args:
        source: The source file.
        output: Its HDF5 file, if there is one.
        request: What is asked of it.
        read_content: Whether to read a source whose time of change differs; None is returned for it
            otherwise.

    Raises:
        OutputConflictError: The output was made from another source or by another request; names what
            differs.
    """
    if not output.exists():
        return None
    try:
        with EmbeddingFile(output, request.group) as file:
            made = file.provenance
    except EmbeddingFileError as error:
        raise OutputConflictError(f"{error}; or set params.overwrite: true to replace it") from error
    if made is None:
        raise OutputConflictError(
            f"{output} was made by another tool; move it away, or set params.overwrite: true to replace it"
        )
    check_same_request(output, made.request, request.provenance(), ignored=MODEL_NAMES, field="embedding_dir")
    is_same = is_same_file(source.path, made.source, read_content)
    if is_same is None:
        return None
    if not is_same:
        raise OutputConflictError(
            f"{output} was made from another version of {source.path}; set params.overwrite: true to embed it again"
        )
    return EmbedReport(source.relative, str(output), "skipped", **made.counts)


def _decisive(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key not in (*MODEL_NAMES, *TUNED)}


class _Counts:
    """Running counts of one file."""

    def __init__(self) -> None:
        self.new_tokens = 0
        self.max_batch_tokens = 0
        self.documents = 0
        self.blank = 0
        self.truncated = 0
        self.tokens = 0
        self.out_of_memory = 0
        self.document_tokens = Histogram(WHOLE_NUMBERS)
        self.id_hashes: list[np.ndarray[Any, np.dtype[np.int64]]] = []

    def add(self, window: Window, rows: Rows, is_new: bool) -> None:
        self.documents += len(window.documents)
        self.blank += window.n_blank
        n_tokens = int(rows.n_tokens.sum())
        self.tokens += n_tokens
        self.new_tokens += n_tokens if is_new else 0
        self.document_tokens += histogram(rows.n_tokens, WHOLE_NUMBERS)
        self.truncated += int(rows.is_cut.sum())
        self.out_of_memory += rows.out_of_memory
        self.max_batch_tokens = rows.max_batch_tokens
        ids = (hash(document.id) for document in window.documents)
        self.id_hashes.append(np.fromiter(ids, np.int64, len(window.documents)))

    def summary(self, n_lines: int, bad: RejectsFile) -> dict[str, Any]:
        assert n_lines == self.documents + bad.n_rejected + self.blank, "a line is unaccounted for"
        # Eight bytes a document instead of its id keep the memory flat.
        hashes = np.concatenate(self.id_hashes) if self.id_hashes else np.zeros(0, np.int64)
        return {
            "lines": n_lines,
            "documents": self.documents,
            "rejected": bad.n_rejected,
            "blank": self.blank,
            "truncated": self.truncated,
            "duplicate_ids": len(hashes) - len(np.unique(hashes)),
            "tokens": self.tokens,
            "out_of_memory": self.out_of_memory,
            "rejected_by_reason": dict(sorted(bad.by_reason.items())),
        }


def _embed_windows(
    reader: SourceReader,
    source: TaskFile,
    request: EmbedRequest,
    encoder: "Encoder",
    committed: CommittedRows,
    writer: EmbeddingWriter,
    bad: RejectsFile,
    counts: _Counts,
    scratch: Path,
) -> dict[str, float]:
    """Reads, tokenises, encodes and writes at the same time; returns the seconds that each waited."""

    def write(encoded: Iterator[_EncodedWindow]) -> None:
        for window, rows, is_committed in encoded:
            _check_finite(window, rows, request, source)
            if not is_committed:
                committed.add(window, rows)
            _reject(window.rejected, bad, source, request)
            if window.documents:
                writer.append(window.documents, rows.embeddings, rows.n_tokens)
            counts.add(window, rows, is_new=not is_committed)
            # The last window is not committed: the output appears next.
            progress.wrote(0 if window.is_last else counts.documents, bad.n_rejected, counts.out_of_memory)

    with Stages("reading", "tokenizing", "encoding", "writing") as stages:
        progress = EmbedProgress(source.relative, source.path.stat().st_size, reader, stages, encoder)
        windows = read_windows(
            reader, source, request.schema, request.max_line_bytes, scratch, request.commit_documents
        )
        tokenized = stages.run(_tokenize(stages.run(windows), request, encoder, committed, progress))
        # In this thread, where the encoder was loaded: OpenMP has a pool of threads for each thread that computes,
        # and with more of them than cores the cores no longer wait for each other without going to sleep.
        stages.hand_over(_encode(tokenized, request, encoder, progress), write)
        return stages.waited()


def _tokenize(
    windows: Iterator[Window],
    request: EmbedRequest,
    encoder: "Encoder",
    committed: CommittedRows,
    progress: EmbedProgress,
) -> Iterator[_TokenizedWindow]:
    too_long = f"more than params.max_length, {encoder.max_length} tokens, and truncation is off"
    for window in windows:
        rows = committed.take(window)
        progress.read(len(window.documents))
        if rows is not None:
            yield window, rows
            continue
        tokens = encoder.tokenize([document.text for document in window.documents])
        tokens = _drop(window, tokens, tokens.n_tokens == 0, "no_tokens", "the text has no token of this encoder")
        if not request.encoder.truncate:
            tokens = _drop(window, tokens, tokens.is_cut, "too_many_tokens", too_long)
        yield window, tokens


def _encode(
    tokenized: Iterator[_TokenizedWindow], request: EmbedRequest, encoder: "Encoder", progress: EmbedProgress
) -> Iterator[_EncodedWindow]:
    n_ahead = int(encoder.device.type == "cuda")  # it has the next window before it while this one is waited for
    begun: deque[tuple[Window, TokenizedTexts, EncodedTexts]] = deque()
    max_batch_tokens: int | None = None  # as in the window before, whoever encoded that
    for window, tokens in tokenized:
        if isinstance(tokens, Rows):
            max_batch_tokens = tokens.max_batch_tokens
            progress.encoded(len(tokens.n_tokens), int(tokens.n_tokens.sum()))
            yield window, tokens, True
            continue
        texts = encoder.encode(tokens, request.batch_size, max_batch_tokens, progress.encoded)
        max_batch_tokens = texts.max_batch_tokens
        begun.append((window, tokens, texts))
        if len(begun) > n_ahead:
            yield _encoded(*begun.popleft(), request, encoder)
    yield from (_encoded(*window, request, encoder) for window in begun)


def _encoded(
    window: Window, tokens: "TokenizedTexts", texts: "EncodedTexts", request: EmbedRequest, encoder: "Encoder"
) -> _EncodedWindow:
    embeddings = texts.embeddings()
    if not texts.fits.all():
        detail = f"the memory of {encoder.device} does not suffice for this document alone"
        tokens = _drop(window, tokens, ~texts.fits, "out_of_memory", detail)
        embeddings = embeddings[texts.fits]
    with np.errstate(over="ignore"):  # said by the check of what is written, with its place
        stored = embeddings.astype(request.embedding_dtype, copy=False)
    return window, Rows(stored, tokens.n_tokens, tokens.is_cut, texts.n_out_of_memory, texts.max_batch_tokens), False


def _drop(
    window: Window, tokens: "TokenizedTexts", dropped: NDArray[np.bool_], reason: str, detail: str
) -> "TokenizedTexts":
    if not dropped.any():
        return tokens
    window.drop(np.flatnonzero(dropped).tolist(), reason, detail)
    return tokens.select(np.flatnonzero(~dropped))


def _status(path: Path) -> os.stat_result | None:
    """Returns what tells whether a file changes; None where it is not to be had, of which its reader says more."""
    try:
        return path.stat()
    except OSError:
        return None


def _check_unchanged(path: Path, before: os.stat_result | None, reader: SourceReader) -> os.stat_result:
    """Checks that a name stands for the bytes that were read; returns what it says of itself now.

    A file that was replaced by one of the same size and time, or changed and given its old time again, is told by its
    inode or by the time of its last change of any kind. Where only these differ, as after `chmod`, the content decides.

    Args:
        path: The source.
        before: Of it, from before it was opened.
        reader: At its end.
    """
    try:
        after = path.stat()
        is_same = (
            before is not None
            and (after.st_size, after.st_size, after.st_mtime_ns)
            == (reader.n_bytes, before.st_size, before.st_mtime_ns)
            and (
                (after.st_dev, after.st_ino, after.st_ctime_ns) == (before.st_dev, before.st_ino, before.st_ctime_ns)
                or file_sha256(path) == reader.sha256
            )
        )
    except FileNotFoundError:
        raise SourceError(f"{path} was removed while it was read; run again when it is back") from None
    if not is_same:
        raise SourceError(f"{path} changed while it was read; run again when it is complete")
    return after


def _reject(
    rejected: list[tuple[Rejection, bytes | IO[bytes]]], bad: RejectsFile, source: TaskFile, request: EmbedRequest
) -> None:
    with ExitStack() as files:
        for _, content in rejected:
            if not isinstance(content, bytes):
                files.enter_context(content)
        for rejection, content in sorted(rejected, key=lambda line: line[0].line):
            if request.fail_on_bad_record:
                raise SourceError(
                    f"{source.path}:{rejection.line}: {rejection.reason}: {rejection.detail}; mend the line, or set "
                    "params.on_bad_record: reject to go on without it"
                )
            if isinstance(content, bytes):
                bad.add(rejection, content)
            else:
                bad.add_pieces(rejection, iter(functools.partial(content.read, READ_BYTES), b""))


def _check_finite(window: Window, rows: Rows, request: EmbedRequest, source: TaskFile) -> None:
    finite = np.isfinite(rows.embeddings).all(axis=1)
    if not finite.all():
        document = window.documents[int(np.argmin(finite))]
        raise SourceError(
            f"{source.path}:{document.line}: the embedding of document {document.id} is not finite in "
            f"{request.encoder.model_dtype} stored as {request.embedding_dtype}; use model_dtype bfloat16 or "
            "float32, and embedding_dtype float32"
        )


def _check_rejected_fraction(source: TaskFile, n_lines: int, bad: RejectsFile, allowed: float) -> None:
    if bad.n_rejected > allowed * n_lines:
        reasons = ", ".join(f"{n} {reason}" for reason, n in bad.by_reason.most_common())
        raise SourceError(
            f"{source.path}: {bad.n_rejected} of {n_lines} lines are rejected ({reasons}; first: "
            f"{bad.first}), more than params.max_rejected_fraction, {allowed}; check the keys, or raise it"
        )
