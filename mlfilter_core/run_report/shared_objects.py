"""What is found out once about objects that many outputs share, such as their encoder."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")
MOST_KNOWN = 100  # arbitrary; outputs that were opened share none, and limits of many groups are large


class OncePerObject(Generic[Made]):
    """A function that is called once for each object, or few objects, while it is remembered."""

    def __init__(self, make: Callable[..., Made]) -> None:
        """Takes the function."""
        self._make = make
        self._known: dict[tuple[int, ...], tuple[tuple[Any, ...], Made]] = {}

    def __call__(self, *objects: Any) -> Made:
        """Returns what the function returns for these objects."""
        key = tuple(map(id, objects))
        if key not in self._known:
            if len(self._known) == MOST_KNOWN:
                self._known.clear()
            self._known[key] = (objects, self._make(*objects))  # with the objects: nothing else gets their ids
        return self._known[key][1]
