import heapq
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from mlfilter_core.files.task_files import Part, TaskFile
from mlfilter_core.work.division import MAX_IDLE_SHARE, MIN_PART_BYTES, divide
from mlfilter_core.work.workload import Work

MIB = 1 << 20


class Divisible:
    """Work on files that can be divided into a number of parts."""

    divides_all = False

    def __init__(self, most: int = 1000) -> None:
        self.most = most

    def evidence(self, file: TaskFile) -> Sequence[Path]:
        return file.path, file.folder / "outputs" / file.relative

    def divide(self, file: TaskFile, n_parts: int) -> Sequence[TaskFile]:
        n_parts = min(n_parts, self.most)
        return [replace(file, part=Part(i + 1, n_parts)) for i in range(n_parts)] if n_parts > 1 else ()


def files_of(folder: Path, sizes: Sequence[int]) -> list[TaskFile]:
    files = []
    for i, size in enumerate(sizes):
        with open(folder / f"{i:04}.jsonl", "wb") as file:
            file.truncate(size)
        files.append(TaskFile(f"{i:04}.jsonl", f"{i:04}", folder))
    return files


def divided(folder: Path, sizes: Sequence[int], n_workers: int, most: int = 1000) -> list[TaskFile]:
    return list(divide(files_of(folder, sizes), cast(Work[Any], Divisible(most)), n_workers))


def length(tasks: Sequence[TaskFile], n_workers: int) -> float:
    """Returns the length of a run whose workers take the next task when they are free, against an even division."""
    free_at = [0.0] * n_workers
    for task in tasks:
        heapq.heapreplace(free_at, free_at[0] + task.size())
    return max(free_at) * n_workers / sum(task.size() for task in tasks)


@pytest.mark.parametrize(
    "sizes",
    [
        [20_000],
        [19_500] * 12,
        [1000] * 50 + [50_000],
        [50_000] + [1000] * 50,
        [1000] * 25 + [50_000] + [1000] * 25,
        [random.Random(3).randrange(10, 3000) for _ in range(60)],
    ],
)
@pytest.mark.parametrize("n_workers", [2, 8, 30])
def test_no_worker_is_left_with_much_work(sizes: list[int], n_workers: int, tmp_path: Path) -> None:
    tasks = divided(tmp_path, [size * MIB for size in sizes], n_workers)
    assert sum(task.size() for task in tasks) == sum(sizes) * MIB
    assert length(tasks, n_workers) <= 1.1 + 1e-6
    for file in {task.relative for task in tasks}:
        parts = [task.part for task in tasks if task.relative == file]
        assert [part.number for part in parts] == list(range(1, parts[0].of + 1))  # in order, all of them


def test_files_that_are_small_beside_a_share_stay_whole(tmp_path: Path) -> None:
    n = round(8 / MAX_IDLE_SHARE)
    assert all(task.part == Part() for task in divided(tmp_path, [100 * MIB] * n, 8))
    assert all(task.part == Part() for task in divided(tmp_path, [2 * MIN_PART_BYTES - 1], 8))
    assert [task.part.of for task in divided(tmp_path, [2 * MIN_PART_BYTES], 8)] == [2, 2]


def test_one_worker_divides_nothing(tmp_path: Path) -> None:
    assert [task.part for task in divided(tmp_path, [1000 * MIB, 3 * MIB], 1)] == [Part(), Part()]


def test_work_decides_whether_its_files_can_be_divided(tmp_path: Path) -> None:
    assert len(divided(tmp_path, [1000 * MIB], 8, most=1)) == 1
    assert len(divided(tmp_path, [1000 * MIB], 8, most=5)) == 5


def test_missing_and_empty_files_are_tasks(tmp_path: Path) -> None:
    files = [*files_of(tmp_path, [0, 0]), TaskFile("gone.jsonl", "gone", tmp_path)]
    assert list(divide(files, cast(Work[Any], Divisible()), 4)) == files
