import pytest

from mlfilter_core.work.failures import RepeatedFailures, by_reason, describe_failures, same_reason


@pytest.mark.parametrize(
    ("name", "reason", "same"),
    [
        ("a/x.jsonl", '/corpus/a/x.jsonl:7: no "text"', 'FILE no "text"'),
        ("a/x.jsonl.gz (3 of 8)", "[Errno 28] No space left: '/out/a/x.h5'", "[Errno N] No space left: FILE"),
        ("x.jsonl", "3 of 40 lines are rejected", "N of N lines are rejected"),
        ("a+b(1).jsonl", "a+b(1).jsonl is broken", "FILE is broken"),
        (".hidden", "an error. And more", "an error. And more"),
    ],
)
def test_names_of_files_and_numbers_do_not_make_a_reason_another(name: str, reason: str, same: str) -> None:
    assert same_reason(name, reason) == same


FAILURES = {
    **{f"{i}.jsonl": f"/out/{i}.h5: no space left" for i in range(10_000)},
    "y.jsonl": "y.jsonl:3: no text",
}


def test_files_that_failed_for_one_reason_are_one_line() -> None:
    (first, names), (second, other) = by_reason(FAILURES.items())
    assert (first, len(names), second, other) == ("/out/0.h5: no space left", 10_000, "y.jsonl:3: no text", ["y.jsonl"])
    assert describe_failures(FAILURES, 5).splitlines() == [
        "  0.jsonl and 9,999 more: /out/0.h5: no space left",
        "  y.jsonl: y.jsonl:3: no text",
    ]
    assert describe_failures(FAILURES, 1).splitlines()[1:] == ["  and 1 more reason; the report has all"]


def test_repeated_failures_are_said_ever_less_often() -> None:
    repeated = RepeatedFailures()
    said = [line for name, reason in FAILURES.items() if (line := repeated.describe(name, reason))]
    assert said[:4] == [
        *(f"{i}.jsonl failed: /out/{i}.h5: no space left" for i in range(3)),
        "9.jsonl failed, the 10th file for this reason: /out/9.h5: no space left",
    ]
    assert said[-1] == "y.jsonl failed: y.jsonl:3: no text"
    assert len(said) == 3 + 9 + 9 + 9 + 1 + 1
