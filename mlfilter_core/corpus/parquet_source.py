"""A Parquet file as numbered rows, each a line of JSON with the wanted columns.

Memory holds some rows of one row group, whatever the size of the file. Knows nothing about documents.
"""

import hashlib
import io
import itertools
import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.corpus import exact_json
from mlfilter_core.corpus import lines as limits
from mlfilter_core.corpus.arrow_values import UnreadTypeError, json_values
from mlfilter_core.corpus.documents import RecordKeys
from mlfilter_core.corpus.lines import MAX_EXPANSION, READ_BYTES, Line, OverlongLine, open_regular_file
from mlfilter_core.corpus.parquet_columns import wanted_columns
from mlfilter_core.errors import SourceError, in_one_line
from mlfilter_core.files.task_files import WHOLE, Part

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_SUFFIX = ".parquet"
MAGIC, ENCRYPTED_MAGIC = b"PAR1", b"PARE"
# The position of a row: its row group times this, plus its row in the group, both from 0.
ROWS_PER_GROUP = 1 << 32
# Rows that are converted at a time: few where they are large. Arbitrary: more rows are not faster.
BATCH_ROWS, BATCH_BYTES = 256, 8 << 20
DAMAGED = "download or write the file again (nothing was written for it)"


class ParquetSource:
    """Reads one Parquet file once, from the first row to the last. Use it as a context manager.

    Attributes:
        path: The file.
        n_lines: Rows up to the last one read.
        n_skipped: Rows before the part that is read.
        keys: Names of its columns and of its partition keys.
        is_columnar: True: a row has the wanted columns alone.
    """

    is_columnar: bool = True

    def __init__(self, path: Path, keys: RecordKeys | None, partitions: Mapping[str, str | None] | None = None) -> None:
        """Opens the file, and reads its footer.

        Args:
            path: The file.
            keys: Keys to read, which may be dotted paths into structs; None for all columns.
            partitions: Values that all rows have, by key, as the names of the file's folders tell them. They follow
                the columns; a column of the same name wins.

        Raises:
            SourceError: The file is missing, not readable, damaged or encrypted, has no column for a required key, or
                two columns of a wanted name.
        """
        import pyarrow as pa
        from pyarrow import parquet

        self.path = path
        self.n_lines = 0
        self.n_skipped = 0
        self._sha256 = ""
        self._first_group = 0
        self._file = open_regular_file(path)
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            self._check_magic()
            with self._naming_errors("its footer"):
                self._opened = parquet.ParquetFile(
                    pa.OSFile(str(path)),
                    pre_buffer=False,  # it would hold whole row groups
                    buffer_size=READ_BYTES,
                    page_checksum_verification=True,
                    coerce_int96_timestamp_unit="us",  # years beyond 2262 would overflow nanoseconds
                )
                self._metadata = self._opened.metadata
                self._schema = self._opened.schema_arrow
            constants = {key: value for key, value in (partitions or {}).items() if key not in self._schema.names}
            self.keys: Sequence[str] = (*self._schema.names, *constants)
            self._columns = wanted_columns(path, self._schema, keys, tuple(constants))
            wanted = constants if keys is None else {*keys.required, *keys.optional}
            self._constants = {key: value for key, value in constants.items() if key in wanted}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ParquetSource":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._opened.close(force=True)
        self._file.close()

    @property
    def n_bytes(self) -> int:
        """The share of the file's bytes that is the share of its rows; all once `lines` is exhausted."""
        return self._size * self.n_lines // max(1, self._metadata.num_rows) if not self._sha256 else self._size

    @property
    def sha256(self) -> str:
        """Digest of the whole file, as `sha256sum` prints it, once `lines` of it or its last part is exhausted."""
        return self._sha256

    @property
    def most_parts(self) -> int:
        """Number of row groups, and 1 without any."""
        return max(1, int(self._metadata.num_row_groups))

    @property
    def schema(self) -> "pa.Schema":
        """Names and types of all columns, without partition keys."""
        return self._schema

    def skip(self, offset: int) -> None:
        """Passes over the row groups before that of an offset.

        To be called before `lines`, which then begins with that row group.
        """
        self._first_group = offset // ROWS_PER_GROUP

    def lines(self, max_line_bytes: int, part: Part = WHOLE) -> Iterator[Line | OverlongLine]:
        """Yields every row in order, as JSON; its offset is its row group times `ROWS_PER_GROUP`, plus its row there.

        A part has whole row groups. After the last part, the bytes of the file are read once more, for its digest.

        Raises:
            SourceError: A page is damaged or encrypted, the footer does not tell the truth, or the rows unpack to more
                than `MAX_EXPANSION` times the file's size.
        """
        n_unpacked, most = 0, max(limits.FREE_BYTES, MAX_EXPANSION * self._size)
        for group in self._groups(part):
            n_before = self.n_lines
            for content in self._rows(group):
                offset = group * ROWS_PER_GROUP + self.n_lines - n_before
                self.n_lines += 1
                n_unpacked += len(content)
                if n_unpacked > most:
                    raise SourceError(
                        f"{self.path}:{self.n_lines}: the columns unpack to more than {most} bytes, {MAX_EXPANSION} "
                        "times the file's size, as web text never does; if its content is sound, write it as JSON lines"
                    )
                if len(content) <= max_line_bytes:
                    yield Line(self.n_lines, offset, content)
                else:
                    yield OverlongLine(self.n_lines, offset, _pieces(content))
            self._check_group(group, self.n_lines - n_before)
        if part.is_last:
            self._check_count(self.n_lines, self._metadata.num_rows, "the file")
            self._read_digest()

    def _groups(self, part: Part) -> range:
        """Returns the row groups whose first row is in a part's share of the rows; passes over the rows before them."""
        sizes = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        if any(size < 0 for size in sizes):
            raise SourceError(f"{self.path}: its footer states {min(sizes)} rows in a row group; {DAMAGED}")
        ends = list(itertools.accumulate(sizes, initial=0))
        start, stop = (bisect_left(ends, row) for row in part.bounds(ends[-1]))
        start = max(start, min(self._first_group, len(sizes)))
        self.n_lines = self.n_skipped = ends[start]
        return range(start, len(sizes) if part.is_last else stop)

    def rows_at(self, positions: NDArray[np.int64]) -> Iterator["pa.RecordBatch"]:
        """Yields the wanted columns of some rows as they are, in order; then reads the file once more for its digest.

        Instead of `lines`. Row groups without any of the rows are passed over.

        Args:
            positions: int64 (n,), ascending offsets of rows, as `lines` gives them.

        Raises:
            SourceError: As for `lines`; or there is no row at a position.
        """
        import pyarrow as pa

        groups, rows = np.divmod(positions, ROWS_PER_GROUP)
        for group in np.unique(groups).tolist():
            wanted = rows[groups == group]
            n_rows = self._metadata.row_group(group).num_rows if group < self._metadata.num_row_groups else 0
            if wanted[-1] >= n_rows:
                raise SourceError(f"{self.path} has no row {wanted[-1]} in its row group {group}; it changed")
            start = 0
            for batch in self._batches(group):
                inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
                start += batch.num_rows
                if len(inside):
                    columns = [_taken(column, inside) for column in batch.columns]
                    yield pa.RecordBatch.from_arrays(columns, schema=batch.schema)
            self._check_group(group, start)
        self._read_digest()

    def _read_digest(self) -> None:
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256")
        if self._file.tell() == self._size:  # otherwise `n_bytes` shows that the file changed
            self._sha256 = digest.hexdigest()

    def _check_magic(self) -> None:
        head = self._file.read(len(MAGIC))
        if head == ENCRYPTED_MAGIC:
            raise SourceError(f"{self.path} is an encrypted Parquet file, which is not read; give it decrypted")
        self._file.seek(max(0, self._size - len(MAGIC)))
        if self._file.read() != MAGIC or self._size < 3 * len(MAGIC):
            raise SourceError(f"{self.path} is a Parquet file that is cut short: it has no footer; {DAMAGED}")

    def _batches(self, group: int) -> Iterator["pa.RecordBatch"]:
        # Of all columns: to ask for the size of an encrypted one aborts the process.
        n_rows, n_bytes = self._metadata.row_group(group).num_rows, self._metadata.row_group(group).total_byte_size
        batch_rows = min(BATCH_ROWS, max(1, BATCH_BYTES * n_rows // max(1, n_bytes)))
        with self._naming_errors(f"row group {group}"):
            batches = self._opened.iter_batches(
                batch_rows, row_groups=[group], columns=self._columns, use_threads=False
            )
        while True:
            with self._naming_errors(f"row group {group}, after row {self.n_lines} of the file"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _rows(self, group: int) -> Iterator[bytes]:
        if self._columns == []:
            constant = _json(self._constants)
            yield from (constant for _ in range(self._metadata.row_group(group).num_rows))
            return
        for batch in self._batches(group):
            with self._naming_errors(f"row group {group}, after row {self.n_lines} of the file"):
                columns = [json_values(column) for column in batch.columns]
            names = batch.schema.names
            for values in zip(*columns, strict=True):
                yield _json(dict(zip(names, values, strict=True)) | self._constants)

    def _check_group(self, group: int, n_rows: int) -> None:
        """Checks that a row group was read to the end: only as many rows are read as its footer states."""
        metadata, schema = self._metadata.row_group(group), self._metadata.schema
        self._check_count(n_rows, metadata.num_rows, f"row group {group}")
        for i in range(len(schema)):
            path = schema.column(i).path
            is_read = self._columns is None or any(f"{path}.".startswith(f"{of}.") for of in self._columns)
            # Asked only once the column was read: to ask an encrypted one aborts the process.
            if is_read and schema.column(i).max_repetition_level == 0:
                self._check_count(metadata.column(i).num_values, n_rows, f'row group {group}, column "{path}",')

    def _check_count(self, found: int, stated: int, what: str) -> None:
        if found != stated:
            raise SourceError(f"{self.path}: {what} has {found} rows, and its footer states {stated}; {DAMAGED}")

    @contextmanager
    def _naming_errors(self, place: str) -> Iterator[None]:
        """Raises errors of the content as `SourceError`; those of the disk, which have a number, as they are."""
        import pyarrow as pa

        try:
            yield
        except UnreadTypeError as error:
            raise SourceError(f"{self.path} has a column of the type {error}, which is not read") from error
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            if "encrypt" in str(error) or "decrypt" in str(error):
                raise SourceError(f"{self.path}: {place}: a column is encrypted; give the file decrypted") from error
            raise SourceError(f"{self.path}: {place} cannot be read ({in_one_line(error)}); {DAMAGED}") from error


def _taken(column: "pa.Array", rows: NDArray[np.int64]) -> "pa.Array":
    import pyarrow as pa

    try:
        return column.take(rows)
    except pa.ArrowNotImplementedError:  # views, https://github.com/apache/arrow/issues/43010
        return pa.array([column[row].as_py() for row in rows.tolist()], column.type)


def _json(record: dict[str, Any]) -> bytes:
    try:
        return exact_json.dumps(record)
    except orjson.JSONEncodeError:  # a string that is not UTF-8, whose bytes stay as they are; or very deep nesting
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _pieces(content: bytes) -> Iterator[bytes]:
    stream = io.BytesIO(content)
    while piece := stream.read(READ_BYTES):
        yield piece
