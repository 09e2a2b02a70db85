"""The limits of control groups on this process, as containers, Slurm and systemd set them.

A group's limit holds for all groups below it. joblib reads the topmost group alone: it misses a limit on the session of
a user of a login node, or on a job whose container shows the whole hierarchy.
"""

import re
from collections.abc import Iterator
from pathlib import Path

PROCESS = Path("/proc/self")


def core_limit(process: Path = PROCESS) -> float | None:
    """Returns how many cores' time the groups of a process get, such as 1.5; None without a limit.

    Args:
        process: Folder of the process in /proc.
    """
    limits: list[float] = []
    for group in _groups(process, "cpu"):
        words = _words(group / "cpu.max") or [
            *_words(group / "cpu.cfs_quota_us"),
            *_words(group / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0].isdigit():  # otherwise max, or -1
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def memory_limit(process: Path = PROCESS) -> int | None:
    """Returns the bytes of memory that the groups of a process get together; None without a limit.

    Args:
        process: Folder of the process in /proc.
    """
    # Above memory.high, the kernel slows processes down until they hardly run.
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    words = [word for group in _groups(process, "memory") for name in names for word in _words(group / name)]
    return min((int(word) for word in words if word.isdigit()), default=None)


def _groups(process: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of the groups that a process is in, from its own up to the topmost that is visible."""
    paths = dict(_paths(process, controller))
    for root, mount, kind, options in _mounts(process):
        path = paths.get(kind)
        if path is None or (kind == "cgroup" and controller not in options.split(",")):
            continue
        # In a container, the path may begin above what is mounted.
        below = path.relative_to(root) if path.is_relative_to(root) else Path()
        yield from (mount / part for part in (below, *below.parents))


def _paths(process: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """Yields the path of a process among the groups of version 1 that have a controller, and of version 2."""
    for line in _lines(process / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield "cgroup2", Path(path)
        elif controller in controllers.split(","):
            yield "cgroup", Path(path)


def _mounts(process: Path) -> Iterator[tuple[Path, Path, str, str]]:
    """Yields root, place, type and options of each mounted hierarchy of groups."""
    for line in _lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, place = (Path(_unescaped(word)) for word in before.split(" ")[3:5])
            yield root, place, kind, options


def _unescaped(word: str) -> str:
    r"""Returns a name as it is, where the kernel writes a space as `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), word)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux, or no such limit
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
