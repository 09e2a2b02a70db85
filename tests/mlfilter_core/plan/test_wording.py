import pytest

from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.wording import Wording, estimated, in_bytes, in_number, in_rate, in_share, in_time


@pytest.mark.parametrize(
    ("say", "n", "expected"),
    [
        (in_bytes, 999, "999 B"),
        (in_bytes, 3_420_000, "3.42 MB"),
        (in_bytes, 999_700, "1 MB"),
        (in_bytes, 5e18, "5,000 PB"),
        (in_time, 42, "42 s"),
        (in_time, 720, "12 minutes"),
        (in_time, 9000, "2.5 hours"),
        (in_time, 12 * 86400, "12.0 days"),
        (in_number, 12_345, "12,345"),
        (in_number, 1.234e9, "1.23 billion"),
        (in_number, 999_900_000, "1 billion"),
        (in_rate, 2.44, "2.4"),
        (in_rate, 1200, "1,200"),
    ],
)
def test_numbers_are_rounded_to_what_a_person_reads(say: Wording, n: float, expected: str) -> None:
    assert say(n) == expected


def test_an_estimate_says_its_interval_and_a_known_number_does_not() -> None:
    assert estimated(Estimate(1200, 1100, 1300)) == "about 1,200 (1,100 to 1,300)"
    assert estimated(Estimate(54, 54, 54)) == "54"
    assert estimated(Estimate(1.2e6, 1.2e6 - 1, 1.2e6 + 1)) == "1.2 million"


def test_a_share_of_nothing_is_none() -> None:
    assert (in_share(1, 3), in_share(0, 0)) == ("33 %", "0 %")


@pytest.mark.parametrize(
    ("part", "said"), [(52, "100 %"), (51.8, "100 %"), (5.2, "10 %"), (5, "9.6 %"), (0.052, "0.1 %")]
)
def test_shares_have_two_digits_at_least(part: float, said: str) -> None:
    assert in_share(part, 52) == said
