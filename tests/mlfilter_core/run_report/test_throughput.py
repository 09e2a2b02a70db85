import numpy as np
import pytest

from mlfilter_core.run_report.facts import FileFacts
from mlfilter_core.run_report.report_figures import quantiles_of_present
from mlfilter_core.run_report.throughput import MAX_TIME_BINS, rates_of


def file(started: float, seconds: float, n: int, worker: str = "w", resumed: int = 0) -> FileFacts:
    return FileFacts(
        *(f"{started}", "embed", "run", "embedded", n), tokens=10 * n, seconds=seconds, started=started, worker=worker,
        resumed=resumed,
    )  # fmt: skip


def test_a_file_counts_evenly_over_its_time() -> None:
    rates = rates_of([file(100.5, 2.0, 40), file(102.5, 1.0, 7)])
    assert rates is not None
    assert (rates.started, rates.bin_s) == (100.5, 1)
    assert rates.documents == {"w": [20.0, 20.0, 7.0, 0.0]}
    assert rates.tokens == {"w": [200.0, 200.0, 70.0, 0.0]}


@pytest.mark.parametrize("span", [0.01, 59, 3600, 7 * 86_400])
def test_no_document_is_lost_at_any_width_of_bins(span: float) -> None:
    generator = np.random.default_rng(0)
    files = [
        file(1e9 + start, seconds, 100, f"w{i % 5}")
        for i, (start, seconds) in enumerate(
            zip(generator.uniform(0, span, 200), generator.uniform(0.001, span / 3, 200), strict=True)
        )
    ]
    rates = rates_of(files)
    assert rates is not None
    values = np.array(list(rates.documents.values()))
    assert values.shape[1] <= MAX_TIME_BINS + 1
    assert values.sum() * rates.bin_s == pytest.approx(20_000, rel=1e-3)


def test_what_an_earlier_run_had_encoded_is_no_speed_of_this_one() -> None:
    rates = rates_of([file(0.5, 10.0, 1000, resumed=800)])  # 200 of the 1,000 were done now
    assert rates is not None
    assert sum(rates.documents["w"]) == pytest.approx(200)
    assert sum(rates.tokens["w"]) == pytest.approx(2000)


def test_without_times_there_are_no_rates() -> None:
    assert rates_of([file(0, 5.0, 10), file(100, 0.0, 0)]) is None


def test_workers_that_have_ended_or_not_begun_are_no_slow_ones() -> None:
    rates = np.array([[10.0, 0, 10, 0, 0, 0], [0, 0, 0, 0, 10, 10]])
    np.testing.assert_array_equal(quantiles_of_present(rates)[1], [10, 0, 10, 0, 10, 10])
