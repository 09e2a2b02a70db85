import hashlib
import os
from pathlib import Path

import pytest

from mlfilter_core.files.identity import cached_sha256, file_identity, file_sha256, is_same_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "x").write_bytes(b"content")
    return tmp_path / "x"


def test_the_digest_is_that_of_sha256sum(file: Path) -> None:
    assert file_sha256(file) == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize("read_content", [True, False])
def test_size_and_time_decide_without_reading(file: Path, read_content: bool) -> None:
    recorded = {**file_identity(file), "sha256": "not looked at"}
    assert is_same_file(file, recorded, read_content) is True
    file.write_bytes(b"more content")
    assert is_same_file(file, recorded, read_content) is False


def test_a_touched_file_is_told_by_its_content_where_that_may_be_read(file: Path) -> None:
    recorded = file_identity(file)
    os.utime(file, ns=(1, 1))
    assert is_same_file(file, recorded, read_content=False) is None
    assert is_same_file(file, recorded, read_content=True) is True
    file.write_bytes(b"CONTENT")
    assert is_same_file(file, recorded, read_content=True) is False


def test_a_digest_is_computed_again_only_for_a_changed_file(file: Path, hashed: list[Path]) -> None:
    first = cached_sha256(file)
    assert (first, cached_sha256(file), hashed) == (file_sha256(file), first, [file])
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(1, 1))
    assert cached_sha256(file) == hashlib.sha256(b"CONTENT").hexdigest()
    (file.parent / "other").write_bytes(b"other")
    os.utime(file.parent / "other", ns=(1, 1))
    (file.parent / "other").replace(file)
    assert cached_sha256(file) == hashlib.sha256(b"other").hexdigest()
    assert hashed == [file] * 3


def test_a_status_that_the_file_system_remembers_hides_no_replaced_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which may answer `stat` for a minute as it did before another machine replaced the file."""
    cached_sha256(file)
    remembered = file.stat()
    (file.parent / "other").write_bytes(b"CONTENT")
    (file.parent / "other").replace(file)
    monkeypatch.setattr(Path, "stat", lambda path, **kwargs: remembered)
    assert cached_sha256(file) == hashlib.sha256(b"CONTENT").hexdigest()
