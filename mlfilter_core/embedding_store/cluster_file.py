"""The file with the cluster of each row of a file of embeddings, as Parquet.

Columns: `document_id` where the embeddings have it, `cluster`, `cluster_distance`. The metadata of the file has a JSON
object that says what it was made from.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.embedding_store.layout import CLUSTER, DISTANCE, DOCUMENT_ID
from mlfilter_core.embedding_store.stated_parquet import open_stated, reading
from mlfilter_core.errors import ClusterFileError
from mlfilter_core.files.new_file import open_new

SUFFIX = ".parquet"
NO_CLUSTER = -1  # of an embedding of zeros, which has no direction
_METADATA = b"mlfilter_clusters"
_REQUIRED = {"embeddings": dict, "request": dict, "documents": int, "no_direction": int, "sizes": dict}
ROW_GROUP = 131_072  # rows; pyarrow's, too, for its datasets. Each group of a smaller size has its own dictionary

Rows = tuple[Sequence[str] | None, NDArray[np.int32], NDArray[np.float32]]


class ClusterFile:
    """The clusters of a file of embeddings, read completely: 8 bytes for each row.

    Attributes:
        path: The file.
        made: What it was made from: `embeddings`, `request`, `documents`, `sizes`, ...
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and reads what it was made from.

        Raises:
            ClusterFileError: It is not a file of clusters, or is cut short.
            FileNotFoundError: It is missing.
        """
        self.path = path
        with self._reading("not a file of clusters"):
            self._file, self.made = open_stated(path, _METADATA, _REQUIRED)

    def __enter__(self) -> "ClusterFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def read(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Returns the cluster and the distance from its centre of each row, int32 (n,) and float32 (n,).

        Raises:
            ClusterFileError: The columns cannot be read, or have another length than the file states.
        """
        with self._reading("its columns cannot be read"):
            table = self._file.read([CLUSTER, DISTANCE])
            clusters = table[CLUSTER].to_numpy().astype(np.int32, copy=False)
            distances = table[DISTANCE].to_numpy().astype(np.float32, copy=False)
        if len(clusters) != self.made["documents"]:
            raise self._error(f"it has {len(clusters)} rows and states {self.made['documents']}")
        return clusters, distances

    def ids(self) -> list[str] | None:
        """Returns the document id of each row; None where they are not stored.

        Raises:
            ClusterFileError: They cannot be read.
        """
        with self._reading("its ids cannot be read"):
            if DOCUMENT_ID not in self._file.schema_arrow.names:
                return None
            ids: list[str] = self._file.read([DOCUMENT_ID])[DOCUMENT_ID].to_pylist()
        return ids

    def _reading(self, failure: str) -> AbstractContextManager[None]:
        return reading(failure, self._error)

    def _error(self, message: str) -> ClusterFileError:
        return ClusterFileError(f"{self.path}: {message}; cluster again")


def write_clusters(path: Path, slices: Iterable[Rows], made: Mapping[str, Any], has_ids: bool) -> None:
    """Writes a new file.

    Args:
        path: The file; an existing one is replaced.
        slices: Ids, clusters and distances of some rows at a time, in order.
        made: What the file was made from. It is read after the last slice, so that it may count them.
        has_ids: Whether there are ids.

    Raises:
        OSError: Writing failed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = [pa.field(DOCUMENT_ID, pa.string(), nullable=False)] if has_ids else []
    columns = [(CLUSTER, pa.int32()), (DISTANCE, pa.float32())]
    schema = pa.schema([*ids, *(pa.field(name, kind, nullable=False) for name, kind in columns)])
    with open_new(path) as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        waiting: list[Any] = []
        for of_rows, clusters, distances in slices:
            values: list[Any] = [clusters, distances] if of_rows is None else [of_rows, clusters, distances]
            arrays = [pa.array(each, kind) for each, kind in zip(values, schema.types, strict=True)]
            waiting.append(pa.record_batch(arrays, schema=schema))
            if sum(map(len, waiting)) >= ROW_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
        writer.add_key_value_metadata({_METADATA: json.dumps(made, sort_keys=True).encode()})
