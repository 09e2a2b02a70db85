from pathlib import Path

from mlfilter_core.corpus.documents import Rejection
from mlfilter_core.corpus.rejects import RejectsFile
from mlfilter_core.run_report.rejected_examples import N_CHARACTERS, N_EXAMPLES, rejects_by_reason


def write(path: Path, *lines: tuple[str, bytes]) -> None:
    with RejectsFile(path) as rejects:
        for i, (reason, content) in enumerate(lines, 1):
            rejects.add(Rejection(i, 0, reason, "what is wrong"), content)


def test_examples_come_from_as_many_files_as_it_takes(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ("not_json", b"one"), ("not_json", b"two"))
    write(tmp_path / "b.jsonl", ("missing_key", b"{}"), *[("not_json", b"more")] * 5)
    files = [("a.jsonl", {"not_json": 2}), ("b.jsonl", {"missing_key": 1, "not_json": 5}), ("absent", {"not_json": 1})]
    found = rejects_by_reason(tmp_path, {"missing_key": 1, "not_json": 8}, files)
    assert [(row.reason, row.count) for row in found] == [("not_json", 8), ("missing_key", 1)]
    assert [example["text"] for example in found[0].examples] == ["one", "two", "more"]
    assert len(found[0].examples) == N_EXAMPLES
    assert found[1].examples[0] == {"file": "b.jsonl", "line": 1, "detail": "what is wrong", "text": "{}"}


def test_long_lines_are_cut_and_bytes_that_are_no_text_are_not_shown(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ("not_json", "ä".encode() * 500), ("not_utf8", b"\xff\xfe"))
    found = rejects_by_reason(tmp_path, {"not_json": 1, "not_utf8": 1}, [("a.jsonl", {"not_json": 1, "not_utf8": 1})])
    assert found[0].examples[0]["text"] == "ä" * N_CHARACTERS + "..."
    assert found[1].examples[0]["text"] == "(no UTF-8)"


def test_a_rejects_file_that_is_broken_or_gone_costs_its_examples_alone(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"line": \n')
    (row,) = rejects_by_reason(tmp_path, {"not_json": 4}, [("broken.jsonl", {"not_json": 2}), ("b", {"not_json": 2})])
    assert (row.count, row.examples) == (4, ())
