"""The source documents of a file of embeddings, joined to its rows by their position."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import BadRecordError, RecordKeys, parse_record
from mlfilter_core.corpus.lines import Line
from mlfilter_core.corpus.source_text import SourceRecord
from mlfilter_core.corpus.sources import Source, open_source
from mlfilter_core.embedding_store.layout import CLUSTER_KEYS
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError, SourceError
from mlfilter_core.files.urls import url_of

WHOLE_DOCUMENT = "*"  # in place of a key
SOURCE_DIR = "params.source_dir"  # field of a job with the folder of the sources


class SourceDocuments:
    """The source documents of a file of embeddings, read once, in row order. Use it as a context manager.

    Memory does not depend on the size of the source.

    Attributes:
        path: The source.
        version: Its size and modification time, in bytes and ns, as it was opened.
    """

    def __init__(
        self,
        file: EmbeddingFile,
        source_dir: Path | None,
        keys: list[str],
        asked_by: str = "params.output_keys: ",
        setting: str = SOURCE_DIR,
    ) -> None:
        """Opens the source.

        Args:
            file: The file of embeddings, which names its source.
            source_dir: The corpus folder; None takes the folder that the file names.
            keys: Keys to read from the documents; `WHOLE_DOCUMENT` for all.
            asked_by: Job field that names the keys, for the beginning of a message; empty where none does.
            setting: Job field or option with `source_dir`, for messages.

        Raises:
            AnnotationError: The file does not name its source.
            SourceError: The source is missing, not readable, or changed.
        """
        self._setting = setting
        wanted, advice = ", ".join(f'"{key}"' for key in keys), clusters_advice(keys)
        if file.provenance is None:
            raise AnnotationError(
                f"{asked_by}{wanted} is not in {file.path}, and the file does not name its source; it "
                f"contains: {', '.join(file.names())}{advice}"
            )
        self._recorded = file.provenance.source
        self._max_line_bytes = file.provenance.request["max_line_bytes"]
        relative = PurePosixPath(self._recorded["path"])
        if relative.is_absolute() or ".." in relative.parts:
            raise SourceError(f"{file.path} names a source outside its folder, {relative}; embed its source again")
        folder = self._recorded["folder"] if source_dir is None else source_dir
        if (url := url_of(folder)) is not None:
            action = f"set {setting}: {url}" if setting == SOURCE_DIR else f"copy {url}, and set {setting} to the copy"
            raise SourceError(
                f"{asked_by}{wanted} is not in {file.path}, and its source is in a store; {action}{advice}"
            )
        self.path = Path(folder) / relative
        self._embeddings = file.path
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise SourceError(
                f"{asked_by}{wanted} is not in {file.path}, and the source {self.path} does not exist; set "
                f"{setting} to the folder of the sources{advice}"
            ) from None
        self.version = [status.st_size, status.st_mtime_ns]
        if status.st_size != self._recorded["bytes"]:
            raise self.changed()
        self._has_begun = False
        wanted_keys = None if WHOLE_DOCUMENT in keys else RecordKeys(optional=tuple(keys))
        self._reader = open_source(self.path, wanted_keys, str(relative))
        # Rows may be longer with these keys than with those of the embedding, which the limit was for.
        self._lines = self._reader.lines(sys.maxsize if self._reader.is_columnar else self._max_line_bytes)

    def __enter__(self) -> "SourceDocuments":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._reader.__exit__()

    @property
    def source(self) -> Source:
        """The open source."""
        return self._reader

    @property
    def keys(self) -> Sequence[str] | None:
        """Keys of the documents; None where the source does not state them."""
        return self._reader.keys

    def documents(self, offsets: NDArray[np.int64]) -> Iterator[SourceRecord]:
        """Yields the records at ascending offsets, which follow those of the previous call.

        Raises:
            SourceError: There is no record at an offset, as the source changed.
        """
        if not self._has_begun and len(offsets):
            self._reader.skip(int(offsets[0]))
        self._has_begun = True
        return map(self._next, offsets.tolist())

    def check_unchanged(self) -> None:
        """Checks, after the last document, that the whole source is unchanged since it was embedded.

        Raises:
            SourceError: It changed.
        """
        if not (self._reader.is_columnar and self._reader.sha256):  # the digest is of the whole file
            for _ in self._lines:
                pass
        if self._reader.sha256 != self._recorded["sha256"]:
            raise self.changed()

    def changed(self) -> SourceError:
        """Returns the error of a source that is not the one that was embedded."""
        return SourceError(
            f"{self.path} changed since {self._embeddings} was made from it; embed it again, or set {self._setting} "
            "to the folder of the unchanged source"
        )

    def _next(self, offset: int) -> SourceRecord:
        for line in self._lines:
            if line.offset == offset and isinstance(line, Line):
                try:
                    return parse_record(line.content, large_numbers=False)
                except BadRecordError as error:
                    raise self.changed() from error
        raise self.changed()


def clusters_advice(keys: Iterable[str]) -> str:
    """Returns what to do, for the end of a message, where keys that are not found may be those of clusters."""
    is_of_clusters = any(key in CLUSTER_KEYS for key in keys)
    return "; for the clusters of a cluster job, set params.clusters_directory" if is_of_clusters else ""
