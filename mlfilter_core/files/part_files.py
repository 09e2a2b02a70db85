"""The files of the parts of an unfinished output, in a hidden folder beside it: `.x.h5.parts/3-of-8.h5`.

They are there until the joined output is complete, so that no kill loses them.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from mlfilter_core.files.claims import LOCK_SUFFIX, hidden_name, is_held
from mlfilter_core.files.publishing import PARTS_SUFFIX, claim_outputs
from mlfilter_core.files.task_files import Part, TaskFile

Joined = TypeVar("Joined")

MOST_PARTS = 64  # of a file: `make_and_join` claims all of them
SOURCE_VERSION = "source_version"  # key in the provenance of parts alone: the source that they were joined with

_PART_NAME = re.compile(r"\.?[0-9]+-of-([0-9]+)\.")


def part_file(output: Path, part: Part, suffix: str) -> Path:
    """Returns the file of a part of an output."""
    return hidden_name(output, PARTS_SUFFIX) / f"{part.number}-of-{part.of}{suffix}"


def n_parts_before(output: Path) -> int:
    """Returns into how many parts an earlier run divided the file of an unfinished output; 0 if it did not."""
    folder = hidden_name(output, PARTS_SUFFIX)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return next((int(match[1]) for name in names if (match := _PART_NAME.match(name))), 0)


def do_meet(bounds: Sequence[Sequence[int]]) -> bool:
    """Returns whether the first part begins at 0, and each other one where that before it ends."""
    ends = [0, *(end for _, end in bounds)]
    return all(start == end for (start, _), end in zip(bounds, ends, strict=False))


def make_and_join(
    output: Path,
    parts: Sequence[TaskFile],
    outputs_of: Callable[[TaskFile], Sequence[Path]],
    make: Callable[[TaskFile], object],
    join: Callable[[], Joined | None],
) -> Joined | None:
    """Makes the parts that are missing, joins all, and removes them.

    They are claimed until they are joined, so that no other run replaces them by parts of its request.

    Args:
        output: The output of the whole file.
        parts: The parts of the file; none where they are gone.
        outputs_of: Returns the files of a part.
        make: Makes these unless they are finished.
        join: Joins the parts; returns None where they do not make the whole.

    Returns:
        Result of `join`; None where there are no parts.
    """
    with ExitStack() as claims:
        for part in parts:
            claims.enter_context(claim_outputs(*outputs_of(part)))
            make(part)
        joined = join() if parts else None
    remove_parts(output)
    return joined


def remove_unclaimed_parts(output: Path) -> None:
    """Removes the parts of an output that no run makes any more, unless another run is making one of them."""
    folder = hidden_name(output, PARTS_SUFFIX)
    if not any(is_held(lock) is not False for lock in folder.glob(f".*{LOCK_SUFFIX}")):
        remove_parts(output)


def remove_parts(output: Path) -> None:
    """Removes the parts of an output, which is complete or is to be made in another way."""
    # Another run may have just claimed one of them; `remove_leftovers` removes what stays.
    shutil.rmtree(hidden_name(output, PARTS_SUFFIX), ignore_errors=True)
