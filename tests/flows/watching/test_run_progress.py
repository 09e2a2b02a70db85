from dataclasses import replace
from pathlib import Path

import pytest

from flows.watching import run_progress as progress_module
from flows.watching.run_progress import RunProgress, Snapshot, describe
from mlfilter_core.annotating.annotate_report import AnnotateReport
from mlfilter_core.files.task_files import Part, TaskFile
from mlfilter_core.work.division import Tasks
from mlfilter_core.work.progress import Progress
from tests.flows.watching.reports import WAITED, report


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def files(tmp_path: Path) -> list[TaskFile]:
    """Files of 100, 300 and 600 bytes."""
    for name, size in (("a", 100), ("b", 300), ("c", 600)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"x" * size)
    return [TaskFile(f"{name}.jsonl", name, tmp_path) for name in "abc"]


def test_finished_files_and_those_under_way_add_up(clock: Clock, files: list[TaskFile]) -> None:
    run = RunProgress(5, Tasks(files), n_failed=0)
    run.hear("w1", Progress("a.jsonl", 5, 50, share=0.5))
    run.finish("a.jsonl", report("a.jsonl"))
    clock.now += 10
    run.hear("w1", Progress("b.jsonl", 4, 40, 1, share=0.5, waited={"reading": 1.0, "encoding": 0.5}, out_of_memory=1))
    run.hear("w2", Progress("c.jsonl", 6, 60, share=0.25))
    clock.now += 10
    now = run.snapshot()
    assert (now.files, now.files_before, now.files_done, now.files_failed) == (5, 2, 1, 0)
    assert (now.documents, now.tokens, now.rejected, now.out_of_memory) == (20, 200, 2, 3)
    assert now.share == pytest.approx((100 + 150 + 150) / 1000)
    assert now.waited == {"reading": 6.0, "encoding": 1.5}
    assert now.bottleneck == "encoding"
    assert [(file.worker, file.progress.file, file.seconds) for file in now.under_way] == [
        ("w1", "b.jsonl", 10),
        ("w2", "c.jsonl", 10),
    ]


def test_rates_are_those_of_the_last_minute_and_the_rest_goes_by_them(clock: Clock, files: list[TaskFile]) -> None:
    run = RunProgress(3, Tasks(files), n_failed=0)
    for second in range(0, 601, 10):
        run.hear("w", Progress("c.jsonl", 2 * second, 20 * second, share=second / 1200))
        clock.now = 1000.0 + second
        now = run.snapshot()
    assert now.documents_per_s == pytest.approx(2, rel=0.01)
    assert now.tokens_per_s == pytest.approx(20, rel=0.01)
    # 60 % of 1,000 bytes take 1,200 s, and 0.7 of all are left.
    assert now.seconds_left == pytest.approx(0.7 / (0.6 / 1200), rel=0.01)


def test_a_failed_file_counts_as_done(clock: Clock, files: list[TaskFile]) -> None:
    run = RunProgress(4, Tasks(files), n_failed=1)
    run.hear("w", Progress("c.jsonl", 6, share=0.9))
    run.fail("c.jsonl")
    now = run.snapshot()
    assert (now.files_before, now.files_failed, now.documents, now.under_way) == (0, 2, 0, [])
    assert now.share == pytest.approx(0.6)


def test_a_file_that_failed_in_one_of_its_parts_counts_as_done(clock: Clock, files: list[TaskFile]) -> None:
    parts = [replace(files[2], part=Part(n, 3)) for n in (1, 2, 3)]
    run = RunProgress(3, Tasks(files, {2: parts}), n_failed=0)
    run.finish("a.jsonl", report("a.jsonl"))
    run.finish("b.jsonl", report("b.jsonl"))
    run.hear("w", Progress(parts[0].name, 6, share=0.5))
    run.fail(parts[1].name)
    run.hear("w", Progress(parts[0].name, 7, share=0.6))  # told before its task was dropped
    now = run.snapshot()
    assert (now.files_done, now.files_failed, now.share) == (2, 1, 1.0)


def test_a_file_that_another_worker_takes_up_begins_anew(clock: Clock, files: list[TaskFile]) -> None:
    run = RunProgress(3, Tasks(files), n_failed=0)
    run.hear("w1", Progress("a.jsonl", 8, share=0.8))
    clock.now += 100
    run.snapshot()
    run.hear("w2", Progress("a.jsonl", 2, share=0.2))
    clock.now += 5
    now = run.snapshot()
    assert now.documents == 2
    assert now.documents_per_s == 0  # and not less
    assert now.under_way[0].seconds == 5


def test_reports_without_tokens_and_files_without_a_size_do(clock: Clock, tmp_path: Path) -> None:
    run = RunProgress(1, Tasks([TaskFile("x.h5", "x", tmp_path)]), n_failed=0)
    run.hear("w", Progress("x.h5", 1, share=0.5))
    assert run.snapshot().share == 0.5
    run.finish("x.h5", AnnotateReport("x.h5", "x.jsonl", "annotated", 3, {}))
    now = run.snapshot()
    assert (now.documents, now.tokens, now.share, now.bottleneck) == (3, 0, 1, None)


def test_a_run_without_progress_says_for_how_long(clock: Clock, files: list[TaskFile]) -> None:
    run = RunProgress(3, Tasks(files), n_failed=0)
    clock.now += 100
    assert run.snapshot().still_s == 0  # there is no worker
    run.have_workers(1)
    clock.now += 5
    assert run.snapshot().still_s == 5  # also before a worker has told of a file: it may never open it
    run.hear("w", Progress("c.jsonl", 6, share=0.1))
    run.snapshot()
    clock.now += 45
    assert "no progress for 45.0 s" in describe(run.snapshot())
    run.hear("w", Progress("c.jsonl", 7, share=0.1))
    assert "no progress" not in describe(run.snapshot())
    for name in ("a", "b", "c"):
        run.fail(f"{name}.jsonl")
    run.snapshot()
    clock.now += 45
    assert "no progress" not in describe(run.snapshot())


def test_a_file_that_has_ended_is_no_straggler_although_its_worker_goes_on(clock: Clock, files: list[TaskFile]) -> None:
    run = RunProgress(3, Tasks(files), n_failed=0)
    for second in range(150):
        clock.now = 1000.0 + second
        for name, speed in (("a", 100), ("b", 100), ("c", 10)):
            run.hear(f"worker of {name}", Progress(f"{name}.jsonl", second, speed * second, share=0.1))
    assert [slow.progress.file for slow in run.stragglers()] == ["c.jsonl"]
    run.fail("c.jsonl")
    for second in range(150):
        clock.now += 1
        for name, speed in (("a", 100), ("b", 100), ("c", 10)):
            run.hear(f"worker of {name}", Progress(f"{name}.jsonl", second, 20_000 + speed * second, share=0.1))
    assert not run.stragglers()


def test_a_snapshot_in_words() -> None:
    now = Snapshot(9, 2, 1, 0, 12_345, 1_000_000, 0, 0.5, 949.6, 350_000.4, 11_520, 0, WAITED, [], "encoding")
    assert describe(now) == (
        "3 of 9 files, 12,345 documents, 950 documents/s, 350,000 tokens/s, 3 h 12 min left, encoding is the bottleneck"
    )
    now = Snapshot(9, 0, 0, 1, 0, 0, 3, 0.0, 0.04, 0, None, 0, {}, [])
    assert describe(now) == "0 of 9 files, 1 failed, 0 documents, 3 rejected, 0.0 documents/s"
    now = Snapshot(9, 2, 0, 0, 0, 0, 0, 0.0, 0, 0, None, 0, {}, [])
    assert describe(now) == "2 of 9 files, waiting for the first worker"


def test_the_bottleneck_changes_only_when_another_stage_waits_much_less(clock: Clock, files: list[TaskFile]) -> None:
    run = RunProgress(3, Tasks(files), n_failed=0)

    def bottleneck(**waited: float) -> str | None:
        run.hear("w", Progress("c.jsonl", 6, share=0.1, waited=waited))
        return run.snapshot().bottleneck

    assert bottleneck(reading=0.4, encoding=0.3) is None
    assert bottleneck(reading=9.0, encoding=8.9) == "encoding"
    assert bottleneck(reading=8.0, encoding=9.9) == "encoding"
    assert bottleneck(reading=6.0, encoding=9.9) == "reading"
    assert bottleneck(reading=9.9, encoding=9.0) == "reading"


def test_a_run_waits_while_it_has_no_worker(clock: Clock, files: list[TaskFile]) -> None:
    run = RunProgress(3, Tasks(files), n_failed=0)
    seen = [run.snapshot().is_waiting]
    for n_workers in (0, 2, 0):
        run.have_workers(n_workers)
        seen.append(run.snapshot().is_waiting)
    assert seen == [True, True, False, True]
