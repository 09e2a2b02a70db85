"""The record that a run writes to its log folder: its facts, its job, and a line per file.

A killed run leaves what it had written.
"""

import errno
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import orjson
import yaml

from mlfilter_core.config.execution import Job
from mlfilter_core.files.claims import claim
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.urls import url_of
from mlfilter_core.versions import library_versions

RUN, JOB, ROWS = "run.json", "job.yaml", "files.jsonl"
EARLIER = "earlier-"  # prefix of the folders of earlier attempts, as after `Retry` in the Prefect UI

Row = dict[str, Any]

_log = logging.getLogger(__name__)


class RunLog:
    """The record of one run.

    If it cannot be written, as on a full disk, it logs one warning and the run continues. Later lines are written once
    there is room.
    """

    def __init__(self, folder: Path, flow: str, output_dir: Path, n_files: int, n_before: int) -> None:
        """Takes the facts that are known when the run begins.

        Args:
            folder: Folder of the run's logs.
            flow: Name of the flow.
            output_dir: Output folder of the job.
            n_files: Number of files of the run.
            n_before: Number of these files that were finished before the run.
        """
        self.folder = folder
        self._facts: dict[str, Any] = {
            "flow": flow,
            "output_dir": writable(url_of(output_dir) or str(output_dir.absolute())),
            "started": time.time(),
            "host": socket.gethostname(),
            "command": [writable(argument) for argument in sys.argv],
            "versions": dict(library_versions()),
            "files": n_files,
            "finished_before": n_before,
        }
        self._is_silent = False
        self._is_begun = False

    def begin(self, job: Job, claimed: ExitStack) -> None:
        """Writes the facts of the run, and its job with all defaults.

        Args:
            job: The job as it was read.
            claimed: Stack that keeps the claim on the record until it is closed.
        """
        try:
            claimed.enter_context(claim(self.folder / RUN))
            self._keep_earlier()
            publish_json(self.folder / RUN, self._facts)
            with publish(self.folder / JOB) as temporary:
                temporary.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
            (self.folder / ROWS).write_bytes(b"")
            self._is_begun = True
        except OSError as error:
            self._warn(error)

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds the line of a finished or failed file."""
        if not self._is_begun:  # the rows that are there are of an earlier run
            return
        try:
            with open(self.folder / ROWS, "ab", buffering=0) as file:
                _write_all(file, _line(row))
        except OSError as error:
            self._warn(error)

    def end(self, seconds: float, n_failed: int) -> None:
        """Records the end of the run."""
        self._write_end({"seconds": seconds, "failed": n_failed})

    def end_by(self, error: BaseException) -> None:
        """Records the error that ended the run."""
        seconds = time.time() - self._facts["started"]
        self._write_end({"seconds": seconds, "failed": 0, "error": writable(f"{type(error).__name__}: {error}")})

    def _write_end(self, facts: Mapping[str, Any]) -> None:
        try:
            publish_json(self.folder / RUN, {**self._facts, **facts})
        except OSError as error:
            self._warn(error)

    def _keep_earlier(self) -> None:
        """Moves the record of an earlier attempt of the same run to a separate folder."""
        if not (self.folder / RUN).exists():
            return
        n = 1 + len(list(self.folder.glob(f"{EARLIER}*")))
        earlier = self.folder / f"{EARLIER}{n}"
        earlier.mkdir()
        for name in (ROWS, JOB, RUN):
            if (self.folder / name).exists():
                shutil.move(self.folder / name, earlier / name)

    def _warn(self, error: OSError) -> None:
        if not self._is_silent:
            self._is_silent = True
            _log.warning("%s: the record of this run is incomplete: %s", self.folder, error)


@contextmanager
def run_log(folder: Path, flow: str, output_dir: Path, job: Job, n_files: int, n_before: int) -> Iterator[RunLog]:
    """Gives the record of a run. During the block, a claim on the record shows other processes that the run is alive.

    Args:
        folder: Existing folder of the run's logs.
        flow: Name of the flow.
        output_dir: Output folder of the job.
        job: The job as it was read.
        n_files: Number of files of the run.
        n_before: Number of these files that were finished before the run.
    """
    log = RunLog(folder, flow, output_dir, n_files, n_before)
    with ExitStack() as claimed:
        log.begin(job, claimed)
        try:
            yield log
        except BaseException as error:  # also when somebody stops the run
            log.end_by(error)
            raise


@contextmanager
def rows_written(folder: Path) -> Iterator[Callable[[Iterable[Row]], Iterator[Row]]]:
    """Rewrites the lines of all files, complete or not at all.

    Yields:
        A function that writes rows as they are taken from what it returns.

    Raises:
        OSError: They cannot be written.
    """
    with publish(folder / ROWS) as temporary, open_new(temporary) as file:

        def written(rows: Iterable[Row]) -> Iterator[Row]:
            for row in rows:
                file.write(_line(row))
                yield row

        yield written


def writable(text: str) -> str:
    """Returns a text that can be written as UTF-8; commands and file names may contain other bytes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _write_all(file: IO[bytes], line: bytes) -> None:
    """Appends a line, complete or not at all: after a half one, the next would be unreadable as well."""
    end = file.seek(0, os.SEEK_END)
    n_written = file.write(line)
    if n_written < len(line):  # the disk got full in the middle
        file.truncate(end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a text that is not UTF-8, such as the name of a file in a reason
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace") + b"\n"
