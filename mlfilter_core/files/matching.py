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
    files: list[str] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)  # that files really lie in, by the path before the name
    through_links: dict[str, list[str]] = field(default_factory=dict)  # files, by the first link on the way to them
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def run(self, folder: Path) -> Matches:
        self._search(str(folder), "", self._at([0]), (), "")
        if self.through_links:
            self._add_files_behind_links()
        self.files.sort()
        return Matches(self.files, self.left_out)

    def _at(self, places: Iterable[int]) -> frozenset[int]:
        """Returns places in the pattern, with those behind `**`, which may stand for no folder."""
        reached = set(places)
        for place in sorted(reached):
            while place < len(self.parts) and self.parts[place] is None:
                place += 1
                reached.add(place)
        return frozenset(reached)

    def _below(self, places: frozenset[int], matched: Iterable[int]) -> frozenset[int]:
        """Returns the places that names in a folder may match, given those that its own name matched."""
        return self._at([i + 1 for i in matched] + [i for i in places if self.parts[i] is None]) - {len(self.parts)}

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
        self.folders[prefix] = own
        patterns = [(i, part) for i in places if (part := self.parts[i]) is not None]
        last = len(self.parts) - 1
        for entry in _entries(path):
            relative = f"{prefix}{entry.name}"
            matched = [i for i, part in patterns if part.match(entry.name)]
            is_match = last in matched
            is_folder = _is_folder(entry)
            below = self._below(places, matched) if is_folder else frozenset()
            if not below and (is_folder or not is_match):
                continue
            if entry.name.startswith("."):
                self._leave_out(HIDDEN, f"{relative}/" if is_folder else relative)
            elif not is_folder:
                self._add_file(entry, relative, link)
            elif (link or entry.is_symlink()) and _identity(entry.stat()) in (*above, own):
                self._leave_out(IN_A_CYCLE, relative)
            else:
                first_link = link or (relative if entry.is_symlink() else "")
                self._search(entry.path, f"{relative}/", below, (*above, own), first_link)

    def _add_file(self, entry: os.DirEntry[str], relative: str, link: str) -> None:
        # A broken link is kept: its task fails and reports it.
        if not entry.is_symlink() and not entry.is_file():
            self._leave_out(NO_FILE, relative)
        elif link:
            self.through_links.setdefault(link, []).append(relative)
        else:
            self.files.append(relative)

    def _add_files_behind_links(self) -> None:
        """Adds the files found through links, but each one once: its documents would count twice."""
        found = set(map(self._really, self.files))
        for link, files in sorted(self.through_links.items()):
            new = [name for name in files if self._really(name) not in found]
            if len(new) < len(files):
                self._leave_out(TWICE, link)
            found.update(map(self._really, new))
            self.files += new

    def _really(self, relative: str) -> tuple[_Folder, str]:
        """Returns the folder that a file really lies in, and its name there."""
        parent, slash, name = relative.rpartition("/")
        return self.folders[parent + slash], name

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


def _identity(status: os.stat_result) -> _Folder:
    return status.st_dev, status.st_ino
