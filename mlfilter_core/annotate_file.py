"""One HDF5 file of embeddings to one annotated JSONL file, every head in one pass."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotations import SUFFIXES, Compression, open_annotations, write_records
from mlfilter_core.corpus import CorpusFile
from mlfilter_core.documents import BadRecordError, find_value, parse_record
from mlfilter_core.embedding_store import DOCUMENT_ID, SOURCE_OFFSET, EmbeddingFile
from mlfilter_core.errors import AnnotationError, OutputConflictError, SourceError
from mlfilter_core.lines import Line, SourceReader, file_sha256
from mlfilter_core.publishing import publish

if TYPE_CHECKING:
    from mlfilter_core.heads import Head

WHOLE_DOCUMENT = "*"
PROVENANCE_FOLDER = ".provenance"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotateRequest:
    """What is asked of every file of an annotation run.

    Attributes:
        output_dir: Folder of the annotated files.
        head_sha256: Digest of the checkpoint of each head, by the head's name, in output order.
        output_keys: Names in the HDF5 file, else keys of the source document; `*` is all of it.
        score_prefix: Set before a head's name.
        group: Name of the HDF5 group.
        batch_size: Embeddings scored in one pass.
        model_dtype: torch name of the heads' dtype.
        compression: Of the annotated files.
        source_dir: Where the sources lie now; None where they were embedded from.
    """

    output_dir: Path
    head_sha256: dict[str, str]
    output_keys: tuple[str, ...] = (DOCUMENT_ID,)
    score_prefix: str = "score_"
    group: str = "train"
    batch_size: int = 4096
    model_dtype: str = "float32"
    compression: Compression = None
    source_dir: Path | None = None

    def output(self, embeddings: CorpusFile) -> Path:
        return embeddings.output(self.output_dir, SUFFIXES[self.compression])

    def provenance_file(self, embeddings: CorpusFile) -> Path:
        return embeddings.output(self.output_dir / PROVENANCE_FOLDER, ".json")

    def provenance(self) -> dict[str, Any]:
        """What decides the content of the output."""
        return {
            "heads": self.head_sha256,
            "output_keys": list(self.output_keys),
            "score_prefix": self.score_prefix,
            "group": self.group,
            "model_dtype": self.model_dtype,
        }


@dataclass(frozen=True)
class AnnotateReport:
    """What became of one file of embeddings.

    Attributes:
        embeddings: Path relative to the folder of embeddings.
        output: The annotated file.
        status: `annotated` now, or `skipped` because it was finished.
        documents: Rows of the HDF5 file, which are the lines of the output.
        missing_values: Output keys that some document lacks, written as null, and how often.
        seconds: Wall time; 0 where skipped.
    """

    embeddings: str
    output: str
    status: Literal["annotated", "skipped"]
    documents: int
    missing_values: dict[str, int]
    seconds: float = 0.0


def annotate_file(embeddings: CorpusFile, request: AnnotateRequest, heads: list["Head"]) -> AnnotateReport:
    """Scores one file. The output appears complete or not at all.

    Args:
        embeddings: The HDF5 file.
        request: What to do with it.
        heads: The heads of `request.head_sha256`, in its order, on the device to use.

    Raises:
        HeadError: A head does not fit the embeddings.
        AnnotationError: A score is NaN or infinite, or an output key is found nowhere.
        SourceError: The source is needed, and missing or changed since it was embedded.
        EmbeddingFileError: The file is not a file of embeddings.
        OSError: Reading or writing failed.
    """
    from mlfilter_core.heads import check_heads_fit, score

    started = time.monotonic()
    output = request.output(embeddings)
    columns = [column for head in heads for column in head.columns(request.score_prefix)]
    with (
        EmbeddingFile(embeddings.path, request.group) as file,
        _Metadata(file, request, columns) as metadata,
        publish(output) as temporary,
    ):
        check_heads_fit(heads, file.dim, encoder_weights(file), str(embeddings.path))
        with open_annotations(temporary, request.compression) as sink:
            for rows in file.slices(request.batch_size):
                scores = score(heads, file.embeddings(rows))
                _check_finite(scores, columns, file, rows)
                records = metadata.records(rows)
                for record, row in zip(records, scores, strict=True):
                    record.update(zip(columns, row, strict=True))
                _write(sink, records, embeddings.path, rows)
        metadata.finish()
        n_rows = file.n_rows
        identity = _identity(embeddings.path, file)
    report = AnnotateReport(
        embeddings.relative,
        str(output),
        "annotated",
        n_rows,
        metadata.missing_values,
        time.monotonic() - started,
    )
    made = {
        "request": request.provenance(),
        "embeddings": identity,
        "output_bytes": output.stat().st_size,
        "documents": n_rows,
        "missing_values": metadata.missing_values,
    }
    with publish(request.provenance_file(embeddings)) as temporary:
        temporary.write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    _log.info("%s: %d documents in %.1f s", embeddings.relative, n_rows, report.seconds)
    return report


def finished_annotation(embeddings: CorpusFile, request: AnnotateRequest) -> AnnotateReport | None:
    """Returns the report of a finished output, or None where there is none yet.

    Raises:
        OutputConflictError: The output was made from other embeddings or by another request.
    """
    output = request.output(embeddings)
    if not output.exists():
        return None
    replace = "use another output_dir, or set params.overwrite: true to replace it"
    try:
        made = json.loads(request.provenance_file(embeddings).read_text())
    except (FileNotFoundError, ValueError):
        return None  # the run was killed between the output and its provenance: made again
    if made["output_bytes"] != output.stat().st_size:
        raise OutputConflictError(f"{output} was changed since it was annotated; {replace}")
    wanted = json.loads(json.dumps(request.provenance()))
    differing = [key for key in wanted if made["request"].get(key) != wanted[key]]
    if differing:
        raise OutputConflictError(f"{output} was made by another request, with other {', '.join(differing)}; {replace}")
    with EmbeddingFile(embeddings.path, request.group) as file:
        if _identity(embeddings.path, file) != made["embeddings"]:
            raise OutputConflictError(f"{output} was made from another version of {embeddings.path}; {replace}")
    return AnnotateReport(embeddings.relative, str(output), "skipped", made["documents"], made["missing_values"])


def encoder_weights(file: EmbeddingFile) -> str | None:
    """Returns the digest of the weights that made the embeddings; None where the file does not say."""
    return file.provenance.request.get("weights_sha256") if file.provenance else None


class _Metadata:
    """What is written beside the scores of each row, from the HDF5 file and from the source."""

    def __init__(self, file: EmbeddingFile, request: AnnotateRequest, columns: list[str]) -> None:
        self.missing_values: dict[str, int] = {}
        self._document_keys: list[str] = []
        self._file = file
        self._columns = columns
        self._places: dict[str, str | None] = {
            key: _find(file, key) for key in request.output_keys if key not in columns
        }
        self._joined_keys = [key for key, place in self._places.items() if place is None]
        self._source = _SourceDocuments(file, request.source_dir, self._joined_keys) if self._joined_keys else None

    def __enter__(self) -> "_Metadata":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._source is not None:
            self._source.close()

    def records(self, rows: slice) -> list[dict[str, Any]]:
        """Returns one record for each row, with the output keys in their order."""
        n_rows = rows.stop - rows.start
        stored = {key: self._file.column(place, rows) for key, place in self._places.items() if place}
        if self._source is None:
            return [dict(zip(stored, values, strict=True)) for values in zip(*stored.values(), strict=True)] or [
                {} for _ in range(n_rows)
            ]
        documents = self._source.documents(self._file.array(SOURCE_OFFSET, rows))
        self._document_keys = list(documents[0])
        return [self._merged(document, i, stored) for i, document in enumerate(documents)]

    def finish(self) -> None:
        """Checks that the source which was joined is the one that was embedded, and has every key somewhere."""
        if self._source is None:
            return
        self._source.finish()
        for key, n_missing in self.missing_values.items():
            if n_missing == self._file.n_rows:
                raise AnnotationError(
                    f'params.output_keys: "{key}" is neither in {self._file.path} nor in any document of '
                    f"{self._source.path}; there are: {', '.join([*self._file.names(), *self._document_keys])}"
                )

    def _merged(self, document: dict[str, Any], i: int, stored: dict[str, list[Any]]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for key, place in self._places.items():
            if place is not None:
                record[key] = stored[key][i]
            elif key == WHOLE_DOCUMENT:
                clash = [column for column in self._columns if column in document]
                if clash:
                    raise AnnotationError(
                        f'{self._file.path}: the source documents have a key "{clash[0]}" already; set '
                        "params.score_prefix to another one"
                    )
                record.update(document)
            else:
                try:
                    record[key] = find_value(document, key)
                except KeyError:
                    record[key] = None
                    self.missing_values[key] = self.missing_values.get(key, 0) + 1
        return record


class _SourceDocuments:
    """The source documents of a file of embeddings, read once, in row order."""

    def __init__(self, file: EmbeddingFile, source_dir: Path | None, keys: list[str]) -> None:
        wanted = ", ".join(f'"{key}"' for key in keys)
        if file.provenance is None:
            raise AnnotationError(
                f"params.output_keys: {wanted} is not in {file.path}, and the file does not say which source it was "
                f"made from; it holds: {', '.join(file.names())}"
            )
        self._recorded = file.provenance.source
        self._max_line_bytes = file.provenance.request["max_line_bytes"]
        self.path = Path(source_dir or self._recorded["folder"]) / self._recorded["path"]
        self._embeddings = file.path
        try:
            n_bytes = self.path.stat().st_size
        except FileNotFoundError:
            raise SourceError(
                f"params.output_keys: {wanted} is not in {file.path}, and the source {self.path} does not exist; set "
                "params.source_dir to where the sources lie now"
            ) from None
        if n_bytes != self._recorded["bytes"]:
            raise self._changed()
        self._reader = SourceReader(self.path)
        self._lines = self._reader.lines(self._max_line_bytes)

    def documents(self, offsets: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Returns the records at ascending byte offsets, beyond those of the call before."""
        return [self._next(offset) for offset in offsets.tolist()]

    def finish(self) -> None:
        for _ in self._lines:  # the digest is of the whole file
            pass
        if self._reader.sha256 != self._recorded["sha256"]:
            raise self._changed()

    def close(self) -> None:
        self._reader.__exit__()

    def _next(self, offset: int) -> dict[str, Any]:
        for line in self._lines:
            if line.offset == offset and isinstance(line, Line):
                try:
                    return parse_record(line.content)
                except BadRecordError as error:
                    raise self._changed() from error
        raise self._changed()

    def _changed(self) -> SourceError:
        return SourceError(
            f"{self.path} changed since {self._embeddings} was made from it; embed it again, or set params.source_dir "
            "to where the unchanged source lies"
        )


def _find(file: EmbeddingFile, key: str) -> str | None:
    """Returns the dataset that holds an output key, or None for the source document."""
    if key == WHOLE_DOCUMENT:
        return None
    name = file.find(key)
    if name is None and key == "doc_id":  # the predecessor's name for the document's id
        own_id = file.provenance.request["id_key"] if file.provenance else None
        return file.find(DOCUMENT_ID) if own_id in (None, key) else None
    return name


def _write(sink: IO[bytes], records: list[dict[str, Any]], path: Path, rows: slice) -> None:
    try:
        write_records(sink, records)
    except orjson.JSONEncodeError as error:  # it writes fewer levels of nesting than it reads
        raise AnnotationError(
            f"{path}: rows {rows.start} to {rows.stop - 1}: a value cannot be written as JSON ({error}); leave its key "
            "out of params.output_keys"
        ) from error


def _check_finite(scores: NDArray[np.float32], columns: list[str], file: EmbeddingFile, rows: slice) -> None:
    if np.isfinite(scores).all():
        return
    row, column = np.argwhere(~np.isfinite(scores))[0]
    place = file.find(DOCUMENT_ID)
    name = file.column(place, slice(rows.start + row, rows.start + row + 1))[0] if place else "without an id"
    raise AnnotationError(
        f"{file.path}: row {rows.start + row} (document {name}): {columns[column]} is {scores[row, column]}; check the "
        "head's weights, the embedding, and model_dtype (float16 overflows)"
    )


def _identity(path: Path, file: EmbeddingFile) -> dict[str, Any]:
    """What tells one version of a file of embeddings from another, without reading all of it."""
    if file.provenance is None:
        return {"sha256": file_sha256(path)}
    return {
        "source_sha256": file.provenance.source["sha256"],
        "request": dict(file.provenance.request),
        "rows": file.n_rows,
    }
