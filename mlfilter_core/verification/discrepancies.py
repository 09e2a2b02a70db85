"""The problems of one file: each kind of problem once, with its first place and how often it occurs.

Knows nothing about what is checked.
"""

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlfilter_core.errors import MlfilterError


@dataclass(frozen=True)
class LineCounts:
    """Numbers of lines of one source, or sums over several."""

    lines: int = 0
    documents: int = 0
    rejected: int = 0
    blank: int = 0

    @property
    def add_up(self) -> bool:
        return self.lines == self.documents + self.rejected + self.blank

    def __add__(self, other: "LineCounts") -> "LineCounts":
        return LineCounts(*map(operator.add, astuple(self), astuple(other)))

    def __str__(self) -> str:
        parts = f"{self.documents:,} documents + {self.rejected:,} rejected + {self.blank:,} blank"
        return f"{self.lines:,} lines{' =' if self.add_up else ', but'} {parts}"


@dataclass(frozen=True)
class Place:
    """The place of an output among the outputs of its folder.

    Attributes:
        folder: Folder of outputs that belong together, relative to the output folder: `embeddings`.
        stem: Name in this folder without suffix: `a/x`. All outputs that come from one source have the same.
        settings: Settings that all outputs of the folder must share, by name.
        tally: Counts that show something about all outputs together; None where there are none.
    """

    folder: str
    stem: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tally: Any = None


@dataclass(frozen=True)
class FileCheck:
    """Result of the check of one output.

    Attributes:
        path: The file, relative to the output folder.
        problems: Problems found: what is wrong, where, and how to fix it.
        not_checked: Contents that could not be checked, without a known problem.
        counts: Counted lines of the source, or the stated ones where it was not read. None for annotated files
            whose embeddings are checked themselves.
        annotated_lines: Lines of an annotated file.
        rejects: Rejects file of the output, relative to the output folder, whether or not it exists.
        n_bytes: Bytes read of the file, its source and its rejects; 0 where only metadata were read.
        place: Place among the other outputs; None where the output does not state it.
        kept: Documents that a filter kept.
        dropped: Documents that a filter dropped.
    """

    path: str
    problems: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    counts: LineCounts | None = None
    annotated_lines: int = 0
    rejects: str | None = None
    n_bytes: int = 0
    place: Place | None = field(default=None, compare=False)
    kept: int = 0
    dropped: int = 0


@dataclass
class Findings:
    """Collects the problems of one file.

    Attributes:
        path: The file; messages do not repeat its name.
        fix: Advice that ends each message, unless the problem has its own.
    """

    path: Path
    fix: str
    _found: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, kind: str, message: str, fix: str | None = None) -> None:
        """Adds a problem. Of each kind, the first message is kept and the others are counted."""
        first, n_found = self._found.get(kind, (f"{message}; {fix or self.fix}", 0))
        self._found[kind] = (first, n_found + 1)

    def with_fix(self, fix: str) -> "Findings":
        """Returns the same collection, for problems that another step fixes."""
        return replace(self, fix=fix)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Turns an exception of the block into a problem, so that later checks still run."""
        try:
            yield
        except MlfilterError as error:
            self._found.setdefault(str(error), (str(error).removeprefix(str(self.path)).lstrip(": "), 1))
        except Exception as error:  # for broken bytes, HDF5 raises nearly every type
            self._found.setdefault(repr(error), (f"cannot be read: {type(error).__name__}: {error}", 1))

    def problems(self) -> tuple[str, ...]:
        return tuple(message + (f" ({n - 1:,} more like it)" if n > 1 else "") for message, n in self._found.values())
