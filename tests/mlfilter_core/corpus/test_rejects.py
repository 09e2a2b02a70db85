import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.corpus.documents import Rejection
from mlfilter_core.corpus.rejects import RejectsFile


def rejection(line: int, reason: str = "not_json") -> Rejection:
    return Rejection(line, 10 * line, reason, f"detail of {line}")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.parametrize("content", [b"", b"plain", "größe 日本".encode(), b'{"a": "\\u0000"}\r', b"a\x00b\x1f\x7f"])
def test_a_line_is_kept_whole(tmp_path: Path, content: bytes) -> None:
    with RejectsFile(tmp_path / "x.jsonl") as rejects:
        rejects.add(rejection(3), content)
    facts = {"line": 3, "offset": 30, "reason": "not_json", "detail": "detail of 3"}
    assert read(tmp_path / "x.jsonl") == [{**facts, "raw": content.decode()}]


def test_a_line_that_is_not_utf8_is_kept_in_base64(tmp_path: Path) -> None:
    with RejectsFile(tmp_path / "x.jsonl") as rejects:
        rejects.add(rejection(1), b"caf\xe9 \xff")
    (kept,) = read(tmp_path / "x.jsonl")
    assert "raw" not in kept
    assert base64.b64decode(kept["raw_base64"]) == b"caf\xe9 \xff"


@pytest.mark.parametrize("base64_bytes", [3, 6, 3 << 18])
def test_an_overlong_line_is_kept_whole_whatever_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base64_bytes: int
) -> None:
    monkeypatch.setattr("mlfilter_core.corpus.rejects.BASE64_BYTES", base64_bytes)
    rng = random.Random(0)
    lines = [[rng.randbytes(rng.randrange(12)) for _ in range(n_pieces)] for n_pieces in range(9)]
    with RejectsFile(tmp_path / "x.jsonl") as rejects:
        for number, pieces in enumerate(lines, 1):
            rejects.add_pieces(rejection(number, "line_too_long"), iter(pieces))
    kept = read(tmp_path / "x.jsonl")
    assert [base64.b64decode(line["raw_base64"]) for line in kept] == [b"".join(pieces) for pieces in lines]
    assert kept[1]["reason"] == "line_too_long"
    assert kept[1]["offset"] == 20


def test_reasons_are_counted_and_the_first_is_told(tmp_path: Path) -> None:
    with RejectsFile(tmp_path / "x.jsonl") as rejects:
        assert (rejects.n_rejected, rejects.first) == (0, "")
        rejects.add(rejection(4, "not_json"), b"a")
        rejects.add(rejection(5, "empty_text"), b"b")
        rejects.add_pieces(rejection(6, "not_json"), iter([b"c"]))
    assert rejects.by_reason == {"not_json": 2, "empty_text": 1}
    assert rejects.n_rejected == 3
    assert rejects.first == "line 4: detail of 4"


def test_without_rejections_there_is_no_file_and_one_of_an_earlier_run_goes(tmp_path: Path) -> None:
    path = tmp_path / "rejected/x.jsonl"
    with RejectsFile(path):
        pass
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_text("of an earlier run")
    with RejectsFile(path):
        pass
    assert not path.exists()


@pytest.mark.parametrize("n_rejections", [0, 2])
def test_nothing_is_written_when_the_block_raises(tmp_path: Path, n_rejections: int) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("of an earlier run")
    with pytest.raises(ValueError, match="half way"), RejectsFile(path) as rejects:
        for number in range(n_rejections):
            rejects.add(rejection(number), b"a")
        raise ValueError("half way")
    assert path.read_text() == "of an earlier run"
    assert list(tmp_path.iterdir()) == [path]
