import pytest

from flows.watching.speeds import FACTOR, GRACE_S, WINDOW_S, Speeds, Straggler
from mlfilter_core.work.progress import Progress

KNOWN_S = int(GRACE_S + WINDOW_S)


def heard(per_s: dict[str, float], seconds: int = KNOWN_S, unit: str = "tokens") -> Speeds:
    """Speeds of files, each with its own worker, for seconds from 0 on."""
    speeds = Speeds()
    for second in range(seconds + 1):
        for file, speed in per_s.items():
            count = int(speed * second)
            done = Progress(file, documents=count // (10 if unit == "tokens" else 1), share=count / 100_000)
            speeds.hear(f"worker of {file}", Progress(**{**vars(done), unit: count}), second)
    return speeds


@pytest.mark.parametrize("unit", ["tokens", "documents"])
def test_a_file_far_slower_than_the_median_of_the_others_is_a_straggler(unit: str) -> None:
    (found,) = heard({"a": 100, "b": 90, "c": 110, "slow": 30}, unit=unit).stragglers(KNOWN_S)
    assert (found.worker, found.progress.file, found.unit) == ("worker of slow", "slow", unit)
    assert (found.speed, found.others) == (pytest.approx(30), pytest.approx(100))
    assert found.left_s == pytest.approx((100_000 - 30 * KNOWN_S) / 30)
    assert found.left_elsewhere_s == pytest.approx(100_000 / 100)  # nothing is committed


def test_what_is_committed_need_not_be_done_again_elsewhere() -> None:
    progress = Progress("a", documents=200, tokens=1000, committed=150, share=0.25)
    slow = Straggler("w", progress, "tokens", 10.0, 100.0)
    assert (slow.left_s, slow.left_elsewhere_s) == (300, (4000 - 750) / 100)
    assert Straggler("w", progress, "tokens", 0.0, 100.0).left_s == float("inf")


@pytest.mark.parametrize(
    ("per_s", "now"),
    [
        ({"a": 100, "b": 90, "slow": 95 / FACTOR + 1}, KNOWN_S),
        ({"a": 100, "slow": 1}, KNOWN_S),  # two files: which is the unusual one?
        ({"a": 100, "b": 100, "slow": 1}, KNOWN_S - 1),
        ({"a": 0, "b": 0, "c": 0}, KNOWN_S),  # heads, which count the same documents in each epoch
    ],
)
def test_nobody_is_a_straggler_by_a_little_or_too_soon_or_among_few(per_s: dict[str, float], now: int) -> None:
    assert not heard(per_s, now).stragglers(now)


def test_files_that_have_ended_are_compared_with_and_stragglers_no_more() -> None:
    speeds = heard({"a": 100, "b": 100, "slow": 10})
    speeds.end("a")
    speeds.end("b")
    assert [each.progress.file for each in speeds.stragglers(KNOWN_S)] == ["slow"]
    speeds.end("slow")
    assert not speeds.stragglers(KNOWN_S)


def test_a_worker_that_says_nothing_is_slow_unless_its_file_is_almost_done() -> None:
    speeds = heard({"a": 100, "b": 100, "silent": 100, "done": 820})
    assert not speeds.stragglers(KNOWN_S)
    later = KNOWN_S + 1000
    for file in "ab":
        for second in range(KNOWN_S + 1, later):
            speeds.hear(f"worker of {file}", Progress(file, tokens=100 * second, share=0.5), second)
    assert [each.progress.file for each in speeds.stragglers(later)] == ["silent"]


@pytest.mark.parametrize(("worker", "tokens"), [("another worker", 10**6), ("worker of slow", 0)])
def test_a_file_that_begins_anew_is_not_judged_by_what_was_before(worker: str, tokens: int) -> None:
    speeds = heard({"a": 100, "b": 100, "slow": 10})
    assert speeds.stragglers(KNOWN_S)
    speeds.hear(worker, Progress("slow", tokens=tokens), KNOWN_S)
    assert not speeds.stragglers(KNOWN_S)
