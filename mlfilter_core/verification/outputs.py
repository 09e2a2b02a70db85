"""The outputs of one kind in a folder, packed: a million of them as objects would take 400 MB."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from mlfilter_core.files.task_files import PackedNames
from mlfilter_core.verification.output_kinds import Output


class Outputs(Sequence[Output]):
    """Outputs, sorted by path; each is there once, however many files belong to it.

    Attributes:
        paths: Paths of the outputs.
    """

    def __init__(self, find: Callable[[str], Output | None]) -> None:
        """Takes the function that returns the output that a file is or belongs to."""
        self._find = find
        self._names: dict[str, str] = {}  # of outputs that are not found by their own paths
        self._found: set[str] = set()
        self.paths = PackedNames()

    def add(self, path: str) -> bool:
        """Returns whether a file belongs to an output of this kind, and adds that; `pack` is called after the last."""
        output = self._find(path)
        if output is None:
            return False
        if output.path != path and output.path not in self._found and self._find(output.path) != output:
            self._names[output.path] = output.name
        self._found.add(output.path)
        return True

    def pack(self) -> None:
        """Sorts and packs what was added."""
        self.paths = PackedNames(sorted(self._found))
        self._found = set()

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Output: ...
    @overload
    def __getitem__(self, index: slice) -> list[Output]: ...
    def __getitem__(self, index: int | slice) -> Output | list[Output]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._output(self.paths[range(len(self))[index]])

    def __iter__(self) -> Iterator[Output]:
        return map(self._output, self.paths)

    def _output(self, path: str) -> Output:
        output = self._find(path) if path not in self._names else None
        return output or Output(path, self._names[path])
