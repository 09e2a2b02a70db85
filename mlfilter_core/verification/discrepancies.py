"""What is not right with one file: each kind of it once, with its first place and how often.

Knows nothing about what is checked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlfilter_core.errors import MlfilterError


@dataclass(frozen=True)
class LineCounts:
    """Where the lines of a source went; of several sources, the sums."""

    lines: int = 0
    documents: int = 0
    rejected: int = 0
    blank: int = 0

    @property
    def add_up(self) -> bool:
        return self.lines == self.documents + self.rejected + self.blank

    def __add__(self, other: "LineCounts") -> "LineCounts":
        return LineCounts(
            self.lines + other.lines,
            self.documents + other.documents,
            self.rejected + other.rejected,
            self.blank + other.blank,
        )

    def __str__(self) -> str:
        parts = f"{self.documents:,} documents + {self.rejected:,} rejected + {self.blank:,} blank"
        return f"{self.lines:,} lines{' =' if self.add_up else ', but'} {parts}"


@dataclass(frozen=True)
class FileCheck:
    """What the check of one file of embeddings or of annotations found.

    Attributes:
        path: The file, relative to the output folder.
        problems: What is not right, where, and how to mend it.
        not_checked: What could not be checked, though nothing speaks against it.
        counts: Of its source, as counted; as stated where the source was not read. None for annotations
            whose embeddings are checked themselves.
        annotated_lines: Of a file of annotations.
        rejects: Its rejects file, relative to the output folder, whether or not it is there.
        n_bytes: Read of it, its source and its rejects; 0 where only metadata were.
    """

    path: str
    problems: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    counts: LineCounts | None = None
    annotated_lines: int = 0
    rejects: str | None = None
    n_bytes: int = 0


@dataclass
class Findings:
    """Collects the problems of one file.

    Attributes:
        path: The file, which messages need not name again.
        not_checked: As in `FileCheck`.
    """

    path: Path
    not_checked: list[str] = field(default_factory=list)
    _found: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, kind: str, message: str) -> None:
        """Adds a problem; of one kind the first is kept, and the others are counted."""
        first, n_found = self._found.get(kind, (message, 0))
        self._found[kind] = (first, n_found + 1)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Makes a problem of what the block raises, so that what comes after it is checked too."""
        try:
            yield
        except MlfilterError as error:
            self.add(str(error), str(error).removeprefix(str(self.path)).lstrip(": "))
        except Exception as error:  # of broken bytes, HDF5 raises nearly every kind
            self.add(repr(error), f"cannot be read: {type(error).__name__}: {error}")

    def problems(self) -> tuple[str, ...]:
        return tuple(message + (f" ({n - 1:,} more like it)" if n > 1 else "") for message, n in self._found.values())
