"""One run at a time in a folder of a store, which has no locks.

A run creates a file in the folder, by a conditional write, and writes it anew every minute. A file that was not written
for ten minutes, or whose process has ended on this machine, belongs to a run that was killed.
"""

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import orjson

from mlfilter_core.errors import ConfigError, MlfilterError
from mlfilter_core.files.claims import is_running, machine
from mlfilter_core.files.stores import StoreFolder
from mlfilter_core.wording import duration

RUNS = ".mlfilter/runs"
_NAME = re.compile(r"(\d+)-(\d+)-of-(\d+)\.json")
REFRESH_S = 60
ABANDONED_S = 600  # ten times REFRESH_S: a store may not answer for minutes, and clocks differ

_log = logging.getLogger(__name__)


@contextmanager
def claimed_by_run(folder: StoreFolder, ranks: range, n_shards: int) -> Iterator[None]:
    """Makes this run the only one that writes the files of some shards to a folder, during the block.

    Args:
        folder: Folder of the outputs.
        ranks: Shards of this run, which follow one another.
        n_shards: Number of shards.

    Raises:
        ConfigError: Another run that is alive writes files of the same shards.
        StoreError, OSError: The store refuses to write, or does not answer.
    """
    runs = replace(folder, url=folder.url_to(RUNS))
    own = f"{ranks.start}-{ranks.stop - 1}-of-{n_shards}.json"
    facts = {"machine": machine(), "process": os.getpid(), "host": socket.gethostname(), "run": uuid.uuid4().hex}
    content = orjson.dumps(facts)
    is_new = runs.create(own, content)
    if not is_new:
        _check_abandoned(runs, own)
        runs.write(own, content)
    is_over = threading.Event()
    refreshing = threading.Thread(target=_refresh, args=(runs, own, content, is_over), name="claim", daemon=True)
    try:
        for other in runs.listing().files:
            if other != own and _overlaps(other, ranks, n_shards):
                _check_abandoned(runs, other)
        refreshing.start()
        yield
    finally:
        is_over.set()
        if refreshing.ident is not None:
            refreshing.join()
        _release(runs, own, content)


def _overlaps(name: str, ranks: range, n_shards: int) -> bool:
    found = _NAME.fullmatch(name)
    if found is None:
        return False
    first, last, n_of_other = map(int, found.groups())
    return n_of_other != n_shards or (first < ranks.stop and last >= ranks.start)


def _check_abandoned(runs: StoreFolder, name: str) -> None:
    """Checks that the run of a claim was killed.

    Raises:
        ConfigError: It may be alive.
    """
    content, written = runs.read(name), runs.find(name)
    if content is None or written is None:
        return
    try:
        facts = orjson.loads(content)
        host, process, made_on = facts["host"], int(facts["process"]), facts["machine"]
    except (ValueError, KeyError, TypeError):
        host, process, made_on = "an unknown machine", 0, ""
    if made_on == machine() and not is_running(process):
        _log.info("%s: the run that wrote here was killed; this one continues", runs.url)
        return
    age_s = time.time() - (written.mtime_ns or 0) / 1e9
    if age_s > ABANDONED_S:
        _log.warning(
            "%s: the run of process %d on %s has given no sign for %s; this one continues",
            *(runs.url, process, host, duration(age_s)),
        )
        return
    raise ConfigError(
        f"{runs.url_to(name)}: another run, process {process} on {host}, writes there; wait for its end. If it was "
        f"killed, wait {duration(ABANDONED_S)} after its last sign, or remove that file"
    )


def _refresh(runs: StoreFolder, name: str, content: bytes, is_over: threading.Event) -> None:
    while not is_over.wait(REFRESH_S):
        try:
            if runs.read(name) not in (content, None):
                _log.warning("%s was taken over by another run, as this one gave no sign of life", runs.url_to(name))
                return
            runs.write(name, content)
        except (OSError, MlfilterError) as error:
            _log.warning("%s cannot be written anew: %s", runs.url_to(name), error)


def _release(runs: StoreFolder, name: str, content: bytes) -> None:
    try:
        if runs.read(name) == content:
            runs.remove(name)
    except (OSError, MlfilterError) as error:  # the error that ended the run counts; the next run waits
        _log.warning("%s cannot be removed: %s", runs.url_to(name), error)
