"""The files of a job, one task each, and the names of their outputs.

Knows nothing about what the files contain.
"""

import logging
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.errors import ConfigError
from mlfilter_core.files.matching import HIDDEN, match_files, match_names
from mlfilter_core.files.stores import Listing, StoredFile

N_SHOWN_NAMES = 3
LONGEST_OUTPUT_SUFFIX = ".jsonl.zst.json"
CHECKSUM_SUFFIX = ".crc"  # of the hidden files that Hadoop's writers leave beside each file
MAX_NAME_BYTES = 255  # of Linux's file systems

Item = TypeVar("Item")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Part:
    """One of several consecutive parts of a file, which different tasks process.

    Attributes:
        number: Number of the part, from 1.
        of: Number of parts; 1 for a whole file.
    """

    number: int = 1
    of: int = 1

    def bounds(self, length: int) -> tuple[int, int]:
        """Returns where the part begins and ends in something of this length, divided evenly."""
        return length * (self.number - 1) // self.of, length * self.number // self.of

    @property
    def is_last(self) -> bool:
        return self.number == self.of


WHOLE = Part()


@dataclass(frozen=True, order=True)
class TaskFile:
    """The file of a task: a source file, a file of embeddings, an annotated file, or a head.

    Attributes:
        relative: Path below `folder`, with forward slashes: `a/b/x.jsonl.gz`.
        stem: The same without the suffix: `a/b/x`. Outputs take this name.
        folder: Absolute path of the folder that was searched, or of its mirror.
        part: Part of the file that the task processes.
        url: URL of the folder that was searched; empty for a folder of this machine.
        stored: The file as its store listed it; None for a file of this machine.
    """

    relative: str
    stem: str
    folder: Path
    part: Part = WHOLE
    url: str = field(default="", compare=False)
    stored: StoredFile | None = field(default=None, compare=False)

    @property
    def path(self) -> Path:
        return self.folder / self.relative

    @property
    def name(self) -> str:
        """Name of the task: `a/b/x.jsonl.gz`, or `a/b/x.jsonl.gz (3 of 8)` for a part."""
        return self.relative if self.part == WHOLE else f"{self.relative} ({self.part.number} of {self.part.of})"

    def size(self) -> int:
        """Returns the bytes stored for the file or its part; 0 where they are unknown, which its task reports."""
        try:
            path = f"{self.folder}/{self.relative}"  # of a million files; a Path takes three times as long
            n_bytes = (self.stored.bytes or 0) if self.stored else os.stat(path).st_size  # noqa: PTH116
        except OSError:
            return 0
        if self.part == WHOLE:
            return n_bytes
        start, stop = self.part.bounds(n_bytes)
        return stop - start

    def divided(self, n_parts: int) -> "list[TaskFile]":
        """Returns the parts of the file; none for a single one."""
        return [replace(self, part=Part(number + 1, n_parts)) for number in range(n_parts)] if n_parts > 1 else []

    def output(self, folder: Path, suffix: str) -> Path:
        """Returns the path in an output folder that mirrors the path in `folder`."""
        return folder / f"{self.stem}{suffix}"


class PackedNames:
    """Names as one text; as objects, they would take twice as much."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Adds a name at the end."""
        self._text += name.encode(errors="surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return self._text[self._ends[place] : self._ends[place + 1]].decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    @property
    def n_bytes(self) -> int:
        """Bytes of memory."""
        return len(self._text) + self._ends.itemsize * len(self._ends)


class TaskFiles(Sequence[TaskFile]):
    """Files of a job, sorted by name. Takes some 60 bytes for each; the objects would take 400."""

    def __init__(
        self, names: PackedNames, make: Callable[[str], TaskFile], places: Sequence[int] | NDArray[np.int64]
    ) -> None:
        """Takes names, sorted, the function that makes a file of its name, and the places of the names to take."""
        self._names = names
        self._make = make
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> TaskFile: ...
    @overload
    def __getitem__(self, index: slice) -> "TaskFiles": ...
    def __getitem__(self, index: int | slice) -> "TaskFile | TaskFiles":
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self._make(self._names[self._places[index]])

    def __iter__(self) -> Iterator[TaskFile]:
        return (self[i] for i in range(len(self)))

    def take(self, places: Iterable[int]) -> "TaskFiles":
        """Returns the files at some places, in ascending order."""
        chosen = np.fromiter(places, np.int64)
        return TaskFiles(self._names, self._make, np.asarray(self._places, np.int64)[chosen])


@dataclass(frozen=True)
class _Place:
    """Where files were found: in a folder, or in the store that it mirrors."""

    folder: Path
    suffixes: tuple[str, ...]
    listing: Listing | None

    def file(self, relative: str) -> TaskFile:
        """Returns the file with a path below the folder."""
        stem = relative.removesuffix(_suffix(relative, self.suffixes) or "")
        if self.listing is None:
            return TaskFile(relative, stem, self.folder)
        return TaskFile(relative, stem, self.folder, url=self.listing.url, stored=self.listing.files[relative])


def find_files(
    folder: Path,
    pattern: str,
    suffixes: tuple[str, ...],
    unread_content: Callable[[Path], str | None] | None = None,
    tells_hidden_folders: bool = False,
    reason_against: Callable[[str], str | None] = lambda relative: None,
    listing: Listing | None = None,
    written_by: str = "",
) -> TaskFiles:
    """Returns the files below `folder` that match, sorted by path. Links to folders are followed.

    What matches and is left out is counted in a warning, with the reason.

    Args:
        folder: Folder to search.
        pattern: Glob relative to `folder`; `**` stands for any number of folders.
        suffixes: Suffixes of the files.
        unread_content: Returns what a file with another suffix is instead of a file of the job, None if it is one; its
            output then has its whole name. Without this function, all such files are left out.
        tells_hidden_folders: Whether to warn of hidden folders, which runs keep beside their outputs, and checksums.
        reason_against: Returns why a path below `folder` is left out, as the end of a sentence; None if it is not.
        listing: The files of the store that `folder` is the mirror of, instead of those in `folder`.
        written_by: Command that writes such files, for the message where there are none; empty for sources.

    Raises:
        ConfigError: The folder or one below it is missing or unreadable, the pattern leaves it, nothing
            matches, two files would share an output name, or a name cannot be used for outputs.
    """
    place = listing.url if listing else str(folder)
    if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
        raise ConfigError(f'glob_pattern "{pattern}" leaves {place}; give a pattern below that folder')
    advice = f", or run `ml_filter {written_by}` first, which writes such files" if written_by else ""
    if listing is None:
        _check_folder(folder, advice)
    elif not listing.files:
        raise ConfigError(f"{place} does not exist, or has no files; fix the URL{advice}")
    try:
        matches = match_names(listing.files, pattern) if listing else match_files(folder, pattern)
    except ValueError as error:
        raise ConfigError(f'glob_pattern "{pattern}": {error}') from error
    names, hashes = list[str](), array("q")  # of their stems
    others: list[str] = []
    left_out = {reason: list(names) for reason, names in matches.left_out.items()}
    for relative in matches.files:
        suffix = _suffix(relative, suffixes)
        if (reason := reason_against(relative)) is not None:
            left_out.setdefault(reason, []).append(relative)
        elif suffix is None and unread_content is None:
            others.append(relative)
        elif suffix is None and unread_content is not None and (content := unread_content(folder / relative)):
            left_out.setdefault(f"are {content}", []).append(relative)
        else:
            names.append(relative)
            hashes.append(hash(relative.removesuffix(suffix or "")))
    hidden = [name for name in left_out.pop(HIDDEN, []) if reason_against(name) is None]
    told = (*suffixes, "/", CHECKSUM_SUFFIX) if tells_hidden_folders else suffixes
    left_out[HIDDEN] = [name for name in hidden if name.endswith(told)]
    left_out[f"have names that do not end with {' or '.join(suffixes)}"] = others
    _tell(place, pattern, left_out)
    if not names:
        raise ConfigError(
            f'no file below {place} matches glob_pattern "{pattern}" and ends with '
            f'{" or ".join(suffixes)}; "**/*" matches files in every folder below it{advice}'
        )
    root = folder.absolute()
    files = TaskFiles(PackedNames(names), _Place(root, suffixes, listing).file, range(len(names)))
    _check_names(root, names, suffixes)
    _check_output_names(files, np.array(hashes))
    return files


def chosen(files: Sequence[TaskFile], places: Sequence[int]) -> Sequence[TaskFile]:
    """Returns the files at some places, in ascending order."""
    return files.take(places) if isinstance(files, TaskFiles) else [files[place] for place in places]


def place_of(files: Sequence[TaskFile], file: TaskFile) -> int:
    """Returns the place of one of the files, which are sorted by name, or of the file that a part belongs to."""
    return bisect_left(files, file.relative, key=lambda other: other.relative)


def single_task(path: Path) -> TaskFile:
    """Returns the file of a task that makes a single file of many: what it makes."""
    return TaskFile(path.name, path.stem, path.parent.absolute())


def evenly_spaced(items: Sequence[Item], most: int) -> list[Item]:
    """Returns all items, or as many as wanted from all over them."""
    n = min(most, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def shard(files: Sequence[TaskFile], ranks: Iterable[int], n_shards: int) -> Sequence[TaskFile]:
    """Returns the files of some shards; file i belongs to shard i modulo `n_shards`."""
    wanted = set(ranks)
    return files if n_shards == 1 else chosen(files, [i for i in range(len(files)) if i % n_shards in wanted])


def _check_folder(folder: Path, advice: str) -> None:
    try:
        next(folder.iterdir(), None)
    except FileNotFoundError:
        raise ConfigError(f"the folder {folder} does not exist; fix the path{advice}") from None
    except NotADirectoryError:
        raise ConfigError(f"{folder} is a file; give its folder, and a glob_pattern") from None
    except PermissionError as error:
        raise ConfigError(f"the folder {folder} cannot be read ({error.strerror}); fix its permissions") from None


def _tell(folder: str, pattern: str, left_out: Mapping[str, Sequence[str]]) -> None:
    for reason, names in left_out.items():
        if names:
            shown = ", ".join(names[:N_SHOWN_NAMES]) + (", ..." if len(names) > N_SHOWN_NAMES else "")
            _log.warning("%s: of what matches %s, %d %s, and left out: %s", folder, pattern, len(names), reason, shown)


def _suffix(name: str, suffixes: tuple[str, ...]) -> str | None:
    if not name.endswith(suffixes):
        return None
    return next(suffix for suffix in suffixes if name.endswith(suffix))


def _check_names(folder: Path, names: Iterable[str], suffixes: tuple[str, ...]) -> None:
    """Refuses names that are not UTF-8, as HDF5 files and reports are, and names too long for outputs."""
    most = MAX_NAME_BYTES - len(LONGEST_OUTPUT_SUFFIX)
    is_utf8 = _is_utf8(str(folder))
    for relative in names:
        if is_utf8 and relative.isascii() and len(relative) <= most:  # of a million, as fast as can be
            continue
        if not is_utf8 or not _is_utf8(relative):
            raise ConfigError(
                f"the name of {os.fsencode(folder / relative)!r} is not UTF-8; rename it, for example with convmv, or "
                "narrow glob_pattern"
            )
        name = relative.rpartition("/")[2]
        n_bytes = len(name.removesuffix(_suffix(name, suffixes) or "").encode())
        if n_bytes > most:
            raise ConfigError(
                f"the name of {folder / relative} is {n_bytes - most} bytes too long for names of outputs, which may "
                f"have {MAX_NAME_BYTES} bytes with {LONGEST_OUTPUT_SUFFIX}; rename it, or narrow glob_pattern"
            )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_output_names(files: TaskFiles, hashes: NDArray[np.int64]) -> None:
    places = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(np.diff(hashes[places]) == 0)
    for first, second in sorted(zip(places[alike], places[alike + 1], strict=True)):
        one, other = files[first], files[second]
        if one.stem == other.stem:
            raise ConfigError(
                f"{one.relative} and {other.relative} in {one.folder} would both be written to "
                f"{one.stem}; rename one, or narrow glob_pattern"
            )
