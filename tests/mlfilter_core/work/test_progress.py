import pytest

from mlfilter_core.work import progress as progress_module
from mlfilter_core.work.progress import Progress, ProgressTeller, heard_by


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


def test_nothing_is_due_where_nobody_listens() -> None:
    teller = ProgressTeller()
    assert not teller.is_due(committed=5)
    teller.tell(Progress("x"))  # and does no harm


def test_progress_is_due_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, heard = Clock(monkeypatch), []
    with heard_by(heard.append):
        teller = ProgressTeller()
        assert not teller.is_due()
        clock.now += 0.9
        assert not teller.is_due()
        clock.now += 0.1
        assert teller.is_due()
        teller.tell(Progress("x", 3))
        assert not teller.is_due()
    assert heard == [Progress("x", 3)]


def test_what_is_committed_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    with heard_by(lambda progress: None):
        teller = ProgressTeller()
        assert teller.is_due(committed=10)
        teller.tell(Progress("x", committed=10))
        assert not teller.is_due(committed=10)
        assert teller.is_due(committed=11)
