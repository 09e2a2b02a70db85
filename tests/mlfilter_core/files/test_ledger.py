import os
from pathlib import Path

import pytest

from mlfilter_core.files import ledger as ledger_module
from mlfilter_core.files.ledger import MOST_READ, MOST_SEGMENTS, SUFFIX, Entry, Ledger, Versions, versions_of

VERSIONS: Versions = ((2530, 1_790_000_000_123_456_789, 1_790_000_001_000_000_000), None)


def entry(name: str, documents: int = 20, request: str = "abc") -> Entry:
    return Entry(name, request, VERSIONS, {"documents": documents, "rejected_by_reason": {"not_json": 2}})


def write(folder: Path, *entries: Entry) -> Path:
    """Returns the segment that a process with these entries writes."""
    before = set(folder.glob(f"*{SUFFIX}"))
    with Ledger(folder) as ledger:
        for each in entries:
            ledger.add(each)
    (segment,) = set(folder.glob(f"*{SUFFIX}")) - before
    return segment


def test_entries_are_found_by_the_next_process(tmp_path: Path) -> None:
    entries = [entry(f"a/{i}.jsonl", i) for i in range(100)]
    write(tmp_path / "ledger", *entries)
    with Ledger(tmp_path / "ledger") as ledger:
        assert [ledger.find(each.name) for each in reversed(entries)] == entries[::-1]
        assert ledger.find("a/100.jsonl") is None
        assert len(ledger) == 100


def test_a_missing_ledger_is_empty_and_is_not_made_for_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.find("a") is None
    assert not (tmp_path / "ledger").exists()


def test_the_last_entry_of_a_file_counts(tmp_path: Path) -> None:
    write(tmp_path, entry("a", 1), entry("b", 1), entry("a", 2))
    write(tmp_path, entry("a", 3, "def"))
    with Ledger(tmp_path) as ledger:
        assert ledger.find("a") == entry("a", 3, "def")
        assert ledger.find("b") == entry("b", 1)


def test_no_corrupted_byte_changes_an_entry(tmp_path: Path) -> None:
    """Each byte in turn is changed, and the file is cut after it: what is found is right, or nothing."""
    entries = [entry("a", 1), entry("b", 2)]
    segment = write(tmp_path, *entries)
    content = segment.read_bytes()
    n_found = 0
    for i, byte in enumerate(content):
        for damaged in (content[:i] + bytes([byte ^ 1]) + content[i + 1 :], content[: i + 1]):
            segment.write_bytes(damaged)
            with Ledger(tmp_path) as ledger:
                found = [ledger.find(each.name) for each in entries]
            assert all(one in (each, None) for one, each in zip(found, entries, strict=True)), damaged
            n_found += sum(one is not None for one in found)
    assert n_found > 1.3 * len(content), "the entry that is not damaged is found"


@pytest.mark.parametrize("content", ["[]", "{}", '["a", "b", 3, {}]', '["a", "b", [[1]], {}]', "null"])
def test_lines_of_another_release_are_left_out(tmp_path: Path, content: str) -> None:
    segment = write(tmp_path, entry("b"))
    line = b"%08x %b\n" % (ledger_module.crc32(content.encode()), content.encode())
    segment.write_bytes(line + segment.read_bytes())
    with Ledger(tmp_path) as ledger:
        assert ledger.find("a") is None
        assert ledger.find("b") == entry("b")


def test_segments_are_merged_but_those_of_living_processes_stay(tmp_path: Path) -> None:
    n = MOST_SEGMENTS + 1
    for i in range(n):
        write(tmp_path, entry("same", i), entry(f"own-{i}"))
    with Ledger(tmp_path) as living:
        living.add(entry("late"))
        (of_living,) = set(tmp_path.iterdir()) - {Path(segment.name) for segment in living._segments}
        with Ledger(tmp_path) as ledger:
            ledger.merge()
        assert len(list(tmp_path.iterdir())) == 2, "the merged one, and that of the living process"
        assert of_living.exists()
        living.add(entry("later"))
    with Ledger(tmp_path) as ledger:
        names = ["same", *(f"own-{i}" for i in range(n)), "late", "later"]
        assert [each.name for name in names if (each := ledger.find(name))] == names
        assert ledger.find("same") == entry("same", n - 1)
        assert len(ledger) == len(names)


def test_what_is_written_while_segments_are_merged_is_newer(tmp_path: Path) -> None:
    for i in range(MOST_SEGMENTS + 1):
        write(tmp_path, entry("same", i))
    with Ledger(tmp_path) as ledger:
        ledger.add(entry("same", 100))  # as a run does that makes the file again
        write(tmp_path, entry("other", 100))
        ledger.merge()
        assert ledger.find("same") == entry("same", MOST_SEGMENTS)
    with Ledger(tmp_path) as ledger:
        assert ledger.find("same") == entry("same", 100)
        assert ledger.find("other") == entry("other", 100)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_segment_that_grew_since_it_was_read_is_not_lost(tmp_path: Path) -> None:
    for i in range(MOST_SEGMENTS + 1):
        write(tmp_path, entry(f"{i}"))
    with Ledger(tmp_path) as growing:
        growing.add(entry("first"))
        growing.flush()
        with Ledger(tmp_path) as ledger:
            growing.add(entry("second"))
            growing.close()
            ledger.merge()
    with Ledger(tmp_path) as ledger:
        assert ledger.find("second") == entry("second")
        assert ledger.find("0") == entry("0")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"no line of a ledger\n"])
def test_segments_without_a_readable_line_are_merged_away(tmp_path: Path, content: bytes) -> None:
    """Processes that were killed at once leave empty ones, and other releases other lines."""
    segments = [write(tmp_path, entry("a")) for _ in range(MOST_SEGMENTS + 1)]
    for segment in segments:
        segment.write_bytes(content)
    (tmp_path / "of another tool.ledger").write_bytes(b"?")
    with Ledger(tmp_path) as ledger:
        ledger.merge()
    assert not any(segment.exists() for segment in segments)
    assert (tmp_path / "of another tool.ledger").exists()


def test_of_very_many_segments_the_newest_are_read(tmp_path: Path) -> None:
    for i in range(MOST_READ + 3):
        (tmp_path / f"{i:020}.00000000.{i}.00000000{SUFFIX}").write_bytes(ledger_module._line(entry(f"{i}")))
    with Ledger(tmp_path) as ledger:
        assert len(ledger) == MOST_READ
        assert ledger.find("2") is None
        assert ledger.find("3") == entry("3")


def test_few_segments_are_left_alone(tmp_path: Path) -> None:
    segments = {write(tmp_path, entry(f"{i}")) for i in range(MOST_SEGMENTS)}
    with Ledger(tmp_path) as ledger:
        ledger.merge()
    assert set(tmp_path.iterdir()) == segments


def test_a_ledger_that_cannot_be_written_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger").write_text("no folder")
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.add(entry("a"))
        ledger.add(entry("b"))
        assert ledger.find("a") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the next run reads its finished files again" in caplog.text


def test_versions_tell_what_changed(tmp_path: Path) -> None:
    path, missing = tmp_path / "a", tmp_path / "b"
    path.write_text("x")
    os.utime(path, ns=(5, 7))
    before, *others = versions_of([path, missing, path / "below"])
    assert before is not None
    assert (before[:2], others) == ((1, 7), [None, None])
    path.write_text("y")
    os.utime(path, ns=(5, 7))
    (after,) = versions_of([path])
    assert after is not None
    assert after[:2] == before[:2]
    assert after[2] > before[2], "written again, with the size and the time of before"
