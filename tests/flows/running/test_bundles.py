from pathlib import Path
from typing import Any, cast

import pytest

import flows.running.bundles as bundles_module
from flows.running.bundles import MAX_FILES, MAX_TASKS_PER_S, MIN_TASK_S, Bundles
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.division import Tasks


class Report:
    """The part of a report that bundles read."""

    def __init__(self, seconds: float, status: str = "embedded") -> None:
        self.seconds = seconds
        self.status = status


def report(seconds: float, status: str = "embedded") -> EmbedReport:
    return cast(EmbedReport, Report(seconds, status))


@pytest.fixture
def files(tmp_path: Path) -> list[TaskFile]:
    """A thousand files of 100 bytes."""
    for i in range(1000):
        (tmp_path / f"{i:03}.jsonl").write_bytes(b"x" * 100)
    return [TaskFile(f"{i:03}.jsonl", f"{i:03}", tmp_path) for i in range(1000)]


def taken(bundles: Bundles, n_workers: int = 1) -> list[int]:
    sizes = []
    while bundles:
        sizes.append(len(bundles.take(n_workers)))
    return sizes


def test_a_file_is_a_task_until_files_are_known_to_be_small(files: list[TaskFile]) -> None:
    said: list[str] = []
    bundles = Bundles(Tasks(files), "auto", said.append)
    assert [len(bundles.take(2)) for _ in range(3)] == [1, 1, 1]
    bundles.learn(files[0], report(MIN_TASK_S))
    assert len(bundles.take(2)) == 1
    assert said == []
    bundles.learn(files[1], report(0.0, "skipped"))
    assert len(bundles.take(2)) == 1
    bundles = Bundles(Tasks(files), "auto", said.append)
    bundles.learn(files[0], report(MIN_TASK_S / 10.5))
    assert taken(bundles) == [10] * 100
    assert said == ["small files: about 10 of them share a task from now on"]


def test_more_workers_make_longer_tasks(files: list[TaskFile]) -> None:
    """Otherwise the flow's process could not keep the workers busy."""
    bundles = Bundles(Tasks(files), "auto", print)
    n_workers = 50
    bundles.learn(files[0], report(n_workers / MAX_TASKS_PER_S / 8.5))
    assert len(bundles.take(n_workers)) == 8


def test_tasks_become_shorter_at_the_end_so_that_all_workers_end_together(files: list[TaskFile]) -> None:
    bundles = Bundles(Tasks(files), "auto", print)
    bundles.learn(files[0], report(MIN_TASK_S / 40.5))
    sizes = taken(bundles, n_workers=10)
    assert sizes[0] == 40
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-10:] == [1] * 10
    assert sum(sizes) == 1000
    assert len(sizes) < 120


def test_very_many_files_share_tasks_however_long_they_take(
    files: list[TaskFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's database and UI would have a task run for each."""
    monkeypatch.setattr(bundles_module, "MAX_TASKS", 300)
    bundles = Bundles(Tasks(files), "auto", print)
    assert len(bundles) == 250
    assert len(bundles.take(4)) == 4
    bundles.learn(files[0], report(1000.0))
    sizes = taken(bundles, n_workers=4)
    assert sizes[:240] == [4] * 240
    assert sizes[-8:] == [1] * 8
    assert taken(Bundles(Tasks(files), 1, print)) == [1] * 1000


def test_large_files_among_small_ones_stay_alone(files: list[TaskFile]) -> None:
    files[5].path.write_bytes(b"x" * 100_000)
    bundles = Bundles(Tasks(files[:10]), "auto", print)
    bundles.learn(files[0], report(0.01))
    assert taken(bundles) == [5, 1, 4]


def test_a_bundle_has_a_largest_size(files: list[TaskFile]) -> None:
    bundles = Bundles(Tasks(files), "auto", print)
    bundles.learn(files[0], report(1e-6))
    assert taken(bundles) == [MAX_FILES, 1000 - MAX_FILES]


def test_a_given_number_of_files_share_a_task(files: list[TaskFile]) -> None:
    bundles = Bundles(Tasks(files[:10]), 4, print)
    assert len(bundles) == 3
    assert taken(bundles) == [4, 4, 2]


def test_files_of_a_bundle_that_died_are_tasks_of_their_own(files: list[TaskFile]) -> None:
    bundles = Bundles(Tasks(files[:4]), 4, print)
    died = bundles.take(1)
    assert not bundles
    bundles.separate(died)
    assert len(bundles) == 4
    assert [bundles.take(1) for _ in range(4)] == [(file,) for file in files[:4]]


def test_a_file_that_is_gone_is_for_its_task_to_report(files: list[TaskFile]) -> None:
    files[0].path.unlink()
    bundles: Any = Bundles(Tasks(files[:1]), "auto", print)
    assert bundles.take(1) == (files[0],)
