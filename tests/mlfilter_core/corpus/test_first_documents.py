import json
from pathlib import Path

import pytest

from mlfilter_core.corpus import first_documents as first_documents_module
from mlfilter_core.corpus.first_documents import MAX_BYTES, N_FILES, N_LINES, read_first_documents
from mlfilter_core.corpus.sources import Source, open_source
from mlfilter_core.files.task_files import TaskFile
from tests.conftest import WriteLines


def file(path: Path) -> TaskFile:
    return TaskFile(path.name, path.stem, path.parent)


def test_the_files_that_are_read_are_spread_over_all(write_lines: WriteLines) -> None:
    files = [file(write_lines(f"{i:04}.jsonl.gz", [{"file": i}] * 40)) for i in range(100)]
    first = read_first_documents(files, 1000)
    seen = [record["file"] for record in first.records]
    assert len(seen) == N_FILES * N_LINES
    assert min(seen) == 0
    assert max(seen) > 90
    assert first.n_bytes == sum(len(json.dumps(record)) + 1 for record in first.records)


def test_what_cannot_be_read_and_what_is_no_object_is_passed_over(write_lines: WriteLines, tmp_path: Path) -> None:
    cut = write_lines("cut.jsonl.gz", [{"a": 1}] * 5)
    cut.write_bytes(cut.read_bytes()[:-9])
    mixed = write_lines("mixed.jsonl", [b"{", b"", b"[1]", {"a": 2}, b"x" * 2000])
    first = read_first_documents([file(cut), file(mixed), file(tmp_path / "gone.jsonl")], 1000)
    assert {"a": 2} in first.records
    assert all(isinstance(record, dict) for record in first.records)


def test_of_a_thousand_files_a_few_are_opened(write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def noted(path: Path, relative: str) -> Source:
        opened.append(path)
        return open_source(path, relative=relative)

    monkeypatch.setattr(first_documents_module, "open_source", noted)
    path = write_lines("x.jsonl.gz", [{"text": "word " * 100}] * 40)
    read_first_documents([file(path)] * 1000, 64 << 20)
    assert len(opened) == N_FILES


def test_of_long_lines_a_few_suffice(write_lines: WriteLines) -> None:
    long = write_lines("long.jsonl", [{"text": "x" * MAX_BYTES}] * 8)
    assert len(read_first_documents([file(long)], 64 << 20).records) == 1
