"""The beginnings of the texts of documents, as a file of embeddings or else its source has them."""

from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.corpus.documents import string_at
from mlfilter_core.corpus.source_text import SourceRecord
from mlfilter_core.embedding_store.layout import SOURCE_OFFSET
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.source_documents import SOURCE_DIR, SourceDocuments
from mlfilter_core.errors import SourceError

READ_ROWS = 8192  # whose texts are in memory at a time


class TextBeginnings:
    """The beginnings of texts of one file, read once, in row order. Use it as a context manager."""

    def __init__(
        self,
        embeddings: EmbeddingFile,
        source_dir: Path | None,
        n_characters: int,
        asked_by: str = "",
        source_setting: str = SOURCE_DIR,
    ) -> None:
        """Opens the source, unless the texts are in the file of embeddings.

        Args:
            embeddings: The file of embeddings; must stay open.
            source_dir: Folder of the sources; None takes the folder that the file names.
            n_characters: Most characters of a beginning.
            asked_by: As for `SourceDocuments`.
            source_setting: As for `SourceDocuments`.

        Raises:
            AnnotationError, SourceError: The texts are neither stored nor in a source that can be read.
        """
        self._embeddings = embeddings
        self._n_characters = n_characters
        self._keys = text_keys(embeddings)
        self._stored = _places(embeddings, self._keys)
        self._source: SourceDocuments | None = None
        if self._stored is None:
            try:
                self._source = SourceDocuments(embeddings, source_dir, self._keys, asked_by, source_setting)
            except OSError as error:
                raise self._unreadable(error) from error

    def __enter__(self) -> "TextBeginnings":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._source is not None:
            self._source.__exit__(*exc_info)

    def of(self, rows: NDArray[np.int64]) -> list[str]:
        """Returns the beginnings of the texts of some documents.

        Args:
            rows: Rows, ascending, which follow those of the previous call.

        Raises:
            EmbeddingFileError: A stored text cannot be read.
            SourceError: The source cannot be read, or changed.
        """
        if not len(rows):
            return []
        if self._source is None:
            columns = [strings_at(self._embeddings, place, rows, self._n_characters) for place in self._stored or ()]
            return [self._beginning(parts) for parts in zip(*columns, strict=True)]
        offsets = self._embeddings.array(SOURCE_OFFSET, slice(int(rows[0]), int(rows[-1]) + 1))[rows - rows[0]]
        try:
            return [self._beginning(self._texts(record)) for record in self._source.documents(offsets)]
        except OSError as error:
            raise self._unreadable(error) from error

    def check_unchanged(self) -> None:
        """Checks, after the last row, that the source is unchanged since it was embedded.

        Raises:
            SourceError: It changed, or cannot be read.
        """
        if self._source is not None:
            try:
                self._source.check_unchanged()
            except OSError as error:
                raise self._unreadable(error) from error

    def _texts(self, record: SourceRecord) -> list[str]:
        assert self._source is not None
        try:
            return [string_at(record, key) for key in self._keys]
        except (KeyError, orjson.JSONEncodeError) as error:  # it could be embedded, and so was another
            raise self._source.changed() from error

    def _beginning(self, parts: list[str] | tuple[str, ...]) -> str:
        return "\n".join(parts)[: self._n_characters]

    def _unreadable(self, error: OSError) -> SourceError:
        return SourceError(f"the source of {self._embeddings.path} cannot be read: {error}")


def text_keys(embeddings: EmbeddingFile) -> list[str]:
    """Returns the keys of the source documents whose values are the text."""
    request = {} if embeddings.provenance is None else embeddings.provenance.request
    return list(request.get("text_keys", ["text"]))


def may_have_texts(embeddings: EmbeddingFile) -> bool:
    """Returns whether a file has the texts of its documents, or names the source that has them."""
    return embeddings.provenance is not None or _places(embeddings, text_keys(embeddings)) is not None


def strings_at(
    embeddings: EmbeddingFile, place: str, rows: NDArray[np.int64], n_characters: int | None = None
) -> list[str]:
    """Returns the strings of a dataset in some rows, ascending; at most `n_characters` of each.

    Raises:
        EmbeddingFileError: A value cannot be read, or is not UTF-8.
    """
    found: list[str] = []
    for some in embeddings.slices(READ_ROWS):
        first, last = np.searchsorted(rows, [some.start, some.stop])
        if first < last:
            start = int(rows[first])
            values = embeddings.strings(place, slice(start, int(rows[last - 1]) + 1))
            found += (values[row - start][:n_characters] for row in rows[first:last].tolist())
    return found


def _places(embeddings: EmbeddingFile, keys: list[str]) -> list[str] | None:
    """Returns the datasets with the parts of the texts; None where the file does not have them all."""
    places = [place for key in keys if (place := embeddings.find(key)) is not None]
    return places if len(places) == len(keys) else None
