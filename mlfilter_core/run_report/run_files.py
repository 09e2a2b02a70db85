"""The files of a run, read from its log whenever one is asked for: a million as objects would take 1 GB."""

import json
import logging
import os
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.config.embedding import UNKEPT_DIR
from mlfilter_core.files.task_files import PackedNames
from mlfilter_core.run_report.facts import FileFacts
from mlfilter_core.work.run_log import writable

FAILED, SKIPPED = "failed", "skipped"
DONE = "done"  # any other status
STATES = (DONE, SKIPPED, FAILED)
COUNTS = ("documents", "rejected", "truncated", "tokens", "resumed")

_log = logging.getLogger(__name__)
Row = Mapping[str, Any]


class RunFiles(Sequence[FileFacts]):
    """Results of the files of a run, in the order of its log.

    Attributes:
        names: Names of the files.
        states: int8 (n,), place in `STATES`.
        outputs: int64 (n,), hash of each output's path, relative to the output folder where it lies there.
    """

    states: NDArray[np.int8]
    outputs: NDArray[np.int64]

    def __init__(self, path: Path, flow: str, run: str, output_dir: str) -> None:
        """Opens the rows of a run, which need not exist; `read`, and then `end`, come before anything else.

        Args:
            path: Its `files.jsonl`, which stays open: a run replaces it when it ends.
            flow: Name of the flow.
            run: Name of the run.
            output_dir: Output folder at the time of the run.
        """
        self._path, self._flow, self._run = path, flow, run
        self._outputs = _BelowFolder(output_dir)
        self._file: int | None = None
        try:
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        except FileNotFoundError:
            pass
        self.names, self._bounds = PackedNames(), array("q")
        self._states, self._hashes = array("b"), array("q")

    def read(self) -> Iterator[tuple[Row, FileFacts]]:
        """Yields each row with what it says of its file."""
        if self._file is None:
            return
        end = 0
        with open(os.dup(self._file), "rb") as lines:
            for line in lines:
                start, end = end, end + len(line)
                if (row := self._parsed(line)) is None:
                    continue
                file = self._facts(row)
                self._bounds.extend((start, end))
                self.names.add(file.file)
                self._states.append(STATES.index(file.status) if file.status in STATES else 0)
                self._hashes.append(hash(file.output))
                yield row, file

    def end(self) -> None:
        """Ends the reading of rows."""
        self.states, self.outputs = np.array(self._states), np.array(self._hashes)

    def __len__(self) -> int:
        return len(self._states)

    @overload
    def __getitem__(self, index: int) -> FileFacts: ...
    @overload
    def __getitem__(self, index: slice) -> list[FileFacts]: ...
    def __getitem__(self, index: int | slice) -> FileFacts | list[FileFacts]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        start, end = self._bounds[2 * place], self._bounds[2 * place + 1]
        assert self._file is not None
        row = self._parsed(os.pread(self._file, end - start, start))
        assert row is not None, "rows are appended, or replaced as a whole"
        return self._facts(row)

    def _parsed(self, line: bytes) -> Row | None:
        try:
            row = orjson.loads(line)
        except ValueError:
            try:
                row = json.loads(line)  # reads NaN, and text that is not UTF-8
            except ValueError:
                _log.warning("%s has a line that is not JSON, as a killed run leaves; it is left out", self._path)
                return None
        return row if isinstance(row, dict) and isinstance(row.get("file"), str) else None

    def _facts(self, row: Row) -> FileFacts:
        speed = row.get("documents/s")
        documents, rejected, truncated, tokens, resumed = [
            int(n) if isinstance(n := row.get(name), (int, float)) else 0 for name in COUNTS
        ]
        return FileFacts(
            writable(row["file"]),
            self._flow,
            self._run,
            str(row.get("status", "")),
            *(documents, rejected, truncated, tokens),
            number(row.get("seconds")),
            speed if isinstance(speed, (int, float)) else None,
            number(row.get("started")),
            writable(str(row.get("worker") or "")),
            self._outputs.relative(writable(str(row.get("output", "")))),
            writable(str(row.get("reason", ""))),
            resumed,
            int(number(row["kept"])) if "kept" in row else None,
        )


class _BelowFolder:
    """Paths relative to an output folder, which may be absolute where they are not."""

    def __init__(self, folder: str) -> None:
        self._parts = Path(folder).absolute().parts
        self._last = "/"  # folder of the last path that lies in the output folder, as the path begins

    def relative(self, path: str) -> str:
        """Returns a path relative to the folder; the same path where it lies elsewhere, or is not to stay."""
        if not path.startswith(self._last) or self._last == "/":
            parts = Path(path).parts
            shared = (n for n in range(len(parts) - 1, 0, -1) if self._parts[-n:] == parts[:n])
            if not (n_shared := next(shared, 0)):
                return path
            self._last = f"{Path(*parts[:n_shared])}/"
        relative = path[len(self._last) :]
        return path if relative.startswith(f"{UNKEPT_DIR}/") else relative


def number(value: Any) -> float:
    """Returns a number as it is, and 0 for anything else."""
    return float(value) if isinstance(value, (int, float)) else 0.0
