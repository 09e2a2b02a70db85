import io
from pathlib import Path

import pytest

from mlfilter_core.files.identity import file_identity
from mlfilter_core.files.new_file import HashedFile, open_new


@pytest.mark.parametrize("n_bytes", [0, 3, 1_000_000])
def test_a_hashed_file_has_the_identity_of_its_content(tmp_path: Path, n_bytes: int) -> None:
    with HashedFile(tmp_path / "x") as file:
        for _ in range(3):
            file.write(b"a" * n_bytes)
            file.write(b"bc")
    assert file.identity() == file_identity(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == (b"a" * n_bytes + b"bc") * 3


def test_a_hashed_file_is_written_from_start_to_end(tmp_path: Path) -> None:
    with HashedFile(tmp_path / "x") as file:
        file.write(b"abc")
        with pytest.raises(io.UnsupportedOperation, match="from start to end"):
            file.seek(0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("open_file", [open_new, HashedFile])
def test_an_error_of_writing_names_the_file(open_file: type[HashedFile]) -> None:
    with pytest.raises(OSError, match=r"No space left.*: '/dev/full'"), open_file(Path("/dev/full")) as file:
        file.write(b"abc")
