"""Files of rows divided into buckets, so that a task reads those of its bucket alone: Arrow IPC files.

Each slice of rows gives one record batch for each bucket, in order; most may be empty.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.files.new_file import open_new

Columns = Mapping[str, NDArray[Any]]


class Partitions:
    """A file that is being written."""

    def __init__(self, sink: Any, n_buckets: int) -> None:
        self._sink = sink
        self._n_buckets = n_buckets
        self._writer: Any = None

    def add(self, columns: Columns, buckets: NDArray[np.int64]) -> None:
        """Adds a slice of rows.

        Args:
            columns: Arrays (n,) or (n, width), by name; the same types in each slice.
            buckets: Bucket of each row, int64 (n,).
        """
        import pyarrow as pa

        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(self._n_buckets + 1))
        arrays = {name: _arrow(values[order]) for name, values in columns.items()}
        table = pa.record_batch(list(arrays.values()), list(arrays))
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._sink, table.schema)
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            self._writer.write_batch(table.slice(start, stop - start))

    def close(self) -> None:
        """Ends the file; one without a slice stays empty."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def open_partitions(path: Path, n_buckets: int) -> Iterator[Partitions]:
    """Opens a new file for rows in buckets.

    Raises:
        OSError: Writing failed.
    """
    with open_new(path) as sink:
        partitions = Partitions(sink, n_buckets)
        yield partitions
        partitions.close()


def read_bucket(path: Path, bucket: int, n_buckets: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the rows of a bucket, a slice of rows at a time; arrays as they were added, read-only.

    Raises:
        OSError: The file cannot be read.
        pyarrow.ArrowException: It is damaged.
    """
    import pyarrow as pa

    if not path.stat().st_size:
        return
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        for number in range(bucket, reader.num_record_batches, n_buckets):
            batch = reader.get_batch(number)
            if batch.num_rows:
                yield {name: _numpy(batch[name]) for name in batch.schema.names}


def _arrow(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _numpy(values: Any) -> NDArray[Any]:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(values.type):
        return np.asarray(values.flatten().to_numpy(zero_copy_only=True)).reshape(-1, values.type.list_size)
    return np.asarray(values.to_numpy(zero_copy_only=True))
