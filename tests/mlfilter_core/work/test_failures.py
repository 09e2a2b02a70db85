import pytest

from mlfilter_core.work.failures import RepeatedFailures, by_reason, describe_failures, same_reason


@pytest.mark.parametrize(
    ("name", "reason", "same"),
    [
        ("a/x.jsonl", '/corpus/a/x.jsonl:7: no "text"', 'FILE no "text"'),
        ("a/x.jsonl.gz (3 of 8)", "[Errno 28] No space left: '/out/a/x.h5'", "[Errno 28] No space left: FILE"),
        ("x.jsonl", "3 of 40 lines are rejected (first: line:3)", "N of N lines are rejected (first: line:N)"),
        ("a+b(1).jsonl", "a+b(1).jsonl is broken", "FILE is broken"),
        ("a (1).jsonl", "a label is missing", "a label is missing"),
        ("e", "a field with e.g. text1", "a field with FILE text1"),
        (".hidden", "an error. And more", "an error. And more"),
        ("x.jsonl", 'x.jsonl: "text1" is missing, width 384', 'FILE "text1" is missing, width 384'),
    ],
)
def test_names_of_files_lines_and_counts_do_not_make_a_reason_another(name: str, reason: str, same: str) -> None:
    assert same_reason(name, reason) == same


def test_a_long_reason_takes_no_time() -> None:
    assert len(same_reason("x.jsonl", "y" * 10**7)) == 2000


FAILURES = {
    **{f"{i}.jsonl": f"/out/{i}.h5: no space left" for i in range(10_000)},
    "y.jsonl": "y.jsonl:3: no text",
}


def test_files_that_failed_for_one_reason_are_one_line() -> None:
    (first, names), (second, other) = by_reason(FAILURES.items())
    assert (first, len(names), second, other) == ("/out/0.h5: no space left", 10_000, "y.jsonl:3: no text", ["y.jsonl"])
    assert describe_failures(FAILURES, 5).splitlines() == [
        *(f"  {i}.jsonl: /out/{i}.h5: no space left" for i in range(3)),
        "  and 9,997 more for the same reason",
        "  y.jsonl: y.jsonl:3: no text",
    ]
    assert describe_failures(FAILURES, 4).splitlines()[3:] == ["  and 9,997 more for the same reason", "  and others"]


def test_repeated_failures_are_said_ever_less_often() -> None:
    repeated = RepeatedFailures()
    said = [line for name, reason in FAILURES.items() if (line := repeated.describe(name, reason))]
    assert said[:4] == [
        *(f"{i}.jsonl failed: /out/{i}.h5: no space left" for i in range(3)),
        "9.jsonl failed, the 10th file for this reason: /out/9.h5: no space left",
    ]
    assert said[-1] == "y.jsonl failed: y.jsonl:3: no text"
    assert len(said) == 3 + 9 + 9 + 9 + 1 + 1
