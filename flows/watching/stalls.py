"""Says which folder does not answer while a run makes no progress, as when an NFS server restarts."""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from flows.watching.run_progress import STILL_S, Snapshot
from mlfilter_core.wording import duration

ANSWER_S = 5.0  # a file system that is merely busy takes less
_log = logging.getLogger(__name__)


class Stalls:
    """Asks the folders of a run whether they answer, once nothing has happened for `STILL_S`."""

    def __init__(self, input_dir: Path, output_dir: Path) -> None:
        self._ask: Mapping[Path, Callable[[Path], object]] = {input_dir: os.statvfs, output_dir: _write}
        self._asked: dict[Path, tuple[threading.Thread, float]] = {}
        self._silent: set[Path] = set()
        self._next: dict[Path, float] = {}

    def show(self, snapshot: Snapshot) -> None:
        """Warns once of a folder that does not answer, and says when it does again; never waits for it."""
        for folder, ask in self._ask.items():
            thread, since = self._asked.get(folder, (None, 0.0))
            if thread is None:
                if snapshot.still_s >= STILL_S and time.monotonic() >= self._next.get(folder, 0.0):
                    self._next[folder] = time.monotonic() + STILL_S
                    thread = threading.Thread(target=_ask, args=(ask, folder), name="stalls", daemon=True)
                    self._asked[folder] = thread, time.monotonic()
                    thread.start()
            elif not thread.is_alive():
                del self._asked[folder]
                if folder in self._silent:
                    self._silent.remove(folder)
                    _log.info("%s answers again, after %s", folder, duration(time.monotonic() - since))
            elif folder not in self._silent and time.monotonic() - since > ANSWER_S:
                self._silent.add(folder)
                _log.warning("%s: its file system does not answer; the run waits, and continues by itself", folder)


def _ask(ask: Callable[[Path], object], folder: Path) -> None:
    with suppress(OSError):  # an answer as well; the tasks report it
        ask(folder)


def _write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass
