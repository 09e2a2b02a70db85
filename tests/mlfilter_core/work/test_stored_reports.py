import pickle
import random

from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.work.stored_reports import BLOCK, StoredReports


def report(place: int) -> EmbedReport:
    return EmbedReport(
        f"{place:05}.jsonl", f"{place:05}.h5", "embedded", 20, 20, 0, 0, 0, 0, 580, worker=f"w{place % 7}"
    )


def test_reports_are_read_in_the_order_of_their_files() -> None:
    places = list(range(3 * BLOCK + 5))
    random.Random(1).shuffle(places)
    reports = StoredReports[EmbedReport]()
    for place in places:
        reports.add(place, report(place))
    expected = [report(place) for place in sorted(places)]
    assert list(reports) == expected
    assert reports[:3] == expected[:3]
    assert (reports[0], reports[-1], len(reports)) == (expected[0], expected[-1], len(expected))
    assert pickle.loads(pickle.dumps(reports)) == expected


def test_reports_may_come_after_others_were_read() -> None:
    reports = StoredReports[EmbedReport]()
    assert not reports
    reports.add(9, report(9))
    assert list(reports) == [report(9)]
    reports.add(3, report(3))
    assert list(reports) == [report(3), report(9)]


def test_reports_take_a_tenth_of_the_memory_of_the_objects() -> None:
    reports = StoredReports[EmbedReport]()
    for place in range(4 * BLOCK):
        reports.add(place, report(place))
    n_bytes = sum(map(len, reports._blocks))
    assert n_bytes / len(reports) < 150
