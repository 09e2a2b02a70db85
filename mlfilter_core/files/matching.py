"""The files below a folder that match a pattern, also in folders that links lead to.

Knows nothing about what the names mean.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path, PurePosixPath

from mlfilter_core.errors import ConfigError

ANY_FOLDERS = "**"
# Reasons why a match is left out, as the end of the sentence "3 of those that match ...".
HIDDEN = "are hidden, as their names begin with a dot"
IN_A_CYCLE = "lead by a link to a folder that they lie in"
TWICE = "are links to folders whose files match under another name"
NO_FILE = "are pipes, sockets or devices"
NO_PATH = "have names in the store that no file can have"

_Folder = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Matches:
    """What matches a pattern.

    Attributes:
        files: Paths below the folder, with forward slashes, sorted; links to nothing are among them.
        left_out: Paths that are left out, by reason; those of folders end with a slash.
    """

    files: list[str]
    left_out: dict[str, list[str]]


def match_files(folder: Path, pattern: str) -> Matches:
    """Returns the files below a folder that match; links to folders are followed, hidden names are left out.

    Args:
        folder: Existing folder.
        pattern: Glob relative to `folder`; `**` stands for any number of folders, and at the end for any file in them.

    Raises:
        ConfigError: A folder below it is not readable.
        ValueError: The pattern is empty, or `**` is a part of a name.
    """
    return _Search(_parts(pattern)).run(folder)


def match_names(names: Iterable[str], pattern: str) -> Matches:
    """Returns the names of a store's files that match, as `match_files` does; names such as `../x` are left out.

    Raises:
        ValueError: As `match_files`.
    """
    parts = _parts(pattern)
    files: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name in sorted(names):
        path = name.split("/")
        if not _matches(path, parts):
            continue
        if any(part in ("", ".", "..") or "\0" in part for part in path):
            left_out.setdefault(NO_PATH, []).append(name)
        elif any(part.startswith(".") for part in path):
            left_out.setdefault(HIDDEN, []).append(name)
        else:
            files.append(name)
    return Matches(files, left_out)


def _matches(path: Sequence[str], parts: Sequence[re.Pattern[str] | None]) -> bool:
    if not parts:
        return not path
    if parts[0] is None:
        return any(_matches(path[i:], parts[1:]) for i in range(len(path) + 1))
    return bool(path) and parts[0].match(path[0]) is not None and _matches(path[1:], parts[1:])


def _parts(pattern: str) -> list[re.Pattern[str] | None]:
    """Returns a pattern of each name in a path; None for any number of folders."""
    names = list(PurePosixPath(pattern).parts)
    if not names:
        raise ValueError(f"unacceptable pattern: {pattern!r}")
    if names[-1] == ANY_FOLDERS:
        names.append("*")
    for name in names:
        if ANY_FOLDERS in name and name != ANY_FOLDERS:
            raise ValueError(f'"{name}": ** stands for whole folders, with / around it')
    return [None if name == ANY_FOLDERS else re.compile(translate(name)) for name in names]


@dataclass
class _Search:
    """One search, with what it found so far."""

    parts: list[re.Pattern[str] | None]
    files: dict[str, _Folder] = field(default_factory=dict)  # with the folder that a file really lies in
    through_links: dict[str, dict[str, _Folder]] = field(default_factory=dict)  # the same, by link
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def run(self, folder: Path) -> Matches:
        self._search(str(folder), "", self._at([0]), (), "")
        self._drop_what_is_found_twice()
        return Matches(sorted(self.files), self.left_out)

    def _at(self, places: Iterable[int]) -> frozenset[int]:
        """Returns places in the pattern, with those behind `**`, which may stand for no folder."""
        reached = set(places)
        for place in sorted(reached):
            while place < len(self.parts) and self.parts[place] is None:
                place += 1
                reached.add(place)
        return frozenset(reached)

    def _search(self, path: str, prefix: str, places: frozenset[int], above: tuple[_Folder, ...], link: str) -> None:
        """Searches one folder.

        Args:
            path: The folder.
            prefix: Its path below the folder of the search, with a slash at the end.
            places: Parts of the pattern that its names may match.
            above: The folders that it lies in, as reached.
            link: The first link on the way to it; empty for none.
        """
        own = _identity(Path(path).stat())
        for entry in _entries(path):
            relative = f"{prefix}{entry.name}"
            matched = [i for i in places if (part := self.parts[i]) is not None and part.match(entry.name)]
            is_match = any(i + 1 == len(self.parts) for i in matched)
            below = self._at([i + 1 for i in matched] + [i for i in places if self.parts[i] is None])
            below -= {len(self.parts)}
            if not is_match and not below:
                continue
            is_folder = _is_folder(entry)
            if is_folder and not below:
                continue
            if entry.name.startswith("."):
                if is_folder or is_match:
                    self._leave_out(HIDDEN, f"{relative}/" if is_folder else relative)
            elif not is_folder:
                if is_match:
                    self._add_file(entry, relative, own, link)
            elif (link or entry.is_symlink()) and _identity(entry.stat()) in (*above, own):
                self._leave_out(IN_A_CYCLE, relative)
            else:
                first_link = link or (relative if entry.is_symlink() else "")
                self._search(entry.path, f"{relative}/", below, (*above, own), first_link)

    def _add_file(self, entry: os.DirEntry[str], relative: str, folder: _Folder, link: str) -> None:
        # A broken link is kept: its task fails and reports it.
        if not entry.is_symlink() and not entry.is_file():
            self._leave_out(NO_FILE, relative)
        elif link:
            self.through_links.setdefault(link, {})[relative] = folder
        else:
            self.files[relative] = folder

    def _drop_what_is_found_twice(self) -> None:
        """Adds the files found through links, but each one once: its documents would count twice."""
        found = {(folder, _name(name)) for name, folder in self.files.items()}
        for link, files in sorted(self.through_links.items()):
            new = {name: folder for name, folder in files.items() if (folder, _name(name)) not in found}
            if len(new) < len(files):
                self._leave_out(TWICE, link)
            found |= {(folder, _name(name)) for name, folder in new.items()}
            self.files |= new

    def _leave_out(self, reason: str, relative: str) -> None:
        self.left_out.setdefault(reason, []).append(relative)


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(
            f"the folder {path} cannot be read ({error.strerror}); fix its permissions, or narrow glob_pattern"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _name(relative: str) -> str:
    return relative.rpartition("/")[2]


def _identity(status: os.stat_result) -> _Folder:
    return status.st_dev, status.st_ino
