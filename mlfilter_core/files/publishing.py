"""Files that appear complete or not at all."""

import glob
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from mlfilter_core.errors import ConfigError, OutputConflictError
from mlfilter_core.files.claims import (
    LOCK_SUFFIX,
    claim,
    hidden_name,
    hold,
    machine,
    machine_of_lock,
    remove_if_abandoned,
)
from mlfilter_core.files.new_file import naming, open_new

Report = TypeVar("Report")

TEMPORARY_SUFFIX = ".part"
TEMPORARY_NAME = re.compile(r"\.([0-9a-f]{8})\.([0-9]+)\.[0-9a-f]{8}\.part$")  # machine, process, random
COMMITTED_SUFFIX = ".committed"  # suffix of the checkpoint of an unfinished file
PARTS_SUFFIX = ".parts"  # suffix of the folder with the parts of an unfinished file


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Gives a temporary path beside `target`, which replaces `target` when the block ends without an error.

    The content is on disk (fsync of the file and of its folder) before it has the name `target`. When the block
    raises, the temporary file is removed and `target` is unchanged. Missing folders are created. `remove_leftovers`
    removes what killed processes leave.

    Yields:
        An existing, empty file with a unique name: `.<name>.<machine>.<process>.<random>.part`.

    Raises:
        OSError: As the block; an error that names the temporary file names `target` instead.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name holds 255 bytes at most, and a character up to four of them.
    unique = f"{machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    temporary = target.parent / f"{_temporary_prefix(target)}{unique}{TEMPORARY_SUFFIX}"
    try:
        with open(temporary, "xb") as held:
            hold(held)
            try:
                yield temporary
                fsync(temporary)
                os.replace(temporary, target)
                fsync(target.parent)
            finally:
                with suppress(OSError):  # in a folder that became read-only; the first error counts
                    temporary.unlink()
    except OSError as error:
        if error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def publish_json(target: Path, facts: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented, complete or not at all."""
    with publish(target) as temporary, open_new(temporary) as file:
        file.write(orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


@contextmanager
def claim_outputs(*outputs: Path) -> Iterator[None]:
    """Makes this process the only one that writes some files; the claim is on the first of them.

    Removes the temporary files of a process that died while it wrote them: a run of days loses many processes.
    """
    with claim(outputs[0]) as has_died:
        if has_died:
            for output in outputs:
                _remove(output.parent.glob(f"{glob.escape(_temporary_prefix(output))}*{TEMPORARY_SUFFIX}"))
                _remove([hidden_name(output, COMMITTED_SUFFIX)])
        yield


def remove_leftovers(folder: Path) -> int:
    """Removes the temporary files that killed processes left below a folder, never those of living processes.

    Checkpoints and parts of unfinished files stay.

    Returns:
        Number of removed files.
    """
    return _remove(folder.rglob(".*.*"))


def unless_overwritten(finished: Callable[[], Report | None], overwrite: bool) -> Report | None:
    """Returns what `finished` returns; with `overwrite`, a conflicting output counts as not finished."""
    try:
        return finished()
    except OutputConflictError:
        if overwrite:
            return None
        raise


def check_writable(folder: Path, field: str = "params.output_dir") -> None:
    """Creates a folder for outputs and checks that files can be created in it.

    Args:
        folder: The folder.
        field: Job field that names it, for the message.

    Raises:
        ConfigError: They cannot.
    """
    probe = folder / f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{field}: {folder} cannot be written to ({error.strerror}); fix its permissions or give another"
        ) from error


def check_apart(field: str, folder: Path, written: Path) -> None:
    """Checks that a folder of inputs and one of outputs do not lie within each other.

    Args:
        field: Job field that names the folder of inputs, for the message.
        folder: The folder of inputs.
        written: The folder of outputs.

    Raises:
        ConfigError: They do.
    """
    one, other = folder.resolve(), written.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ConfigError(
            f"{field}: {folder} and the output folder {written} lie within each other; give another output_dir"
        )


def _temporary_prefix(target: Path) -> str:
    return f".{target.name[:40]}."


def _remove(paths: Iterable[Path]) -> int:
    n_removed = 0
    for path in paths:
        if temporary := TEMPORARY_NAME.search(path.name):
            n_removed += remove_if_abandoned(path, temporary[1], int(temporary[2]))
        elif path.suffix == LOCK_SUFFIX:
            made_on = machine_of_lock(path)
            n_removed += made_on is not None and remove_if_abandoned(path, made_on, None)
        elif path.suffix == COMMITTED_SUFFIX and _is_finished_since(path):
            path.unlink(missing_ok=True)
            n_removed += 1
        elif path.suffix == PARTS_SUFFIX and path.is_dir() and (_is_finished_since(path) or not any(path.iterdir())):
            shutil.rmtree(path, ignore_errors=True)
            n_removed += 1
    return n_removed


def _is_finished_since(begun: Path) -> bool:
    """Returns whether the file of a checkpoint or of a folder of parts was finished after it."""
    target = begun.with_name(begun.name.removesuffix(begun.suffix)[1:])
    try:
        return begun.exists() and target.stat().st_mtime_ns >= begun.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def fsync(path: Path) -> None:
    """Flushes the content of a file, or the list of names of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)
