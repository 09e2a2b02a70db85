from pathlib import Path

import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.files.disk_space import check_room_for, check_would_be_writable, free_space, nearest_folder


def test_a_folder_that_is_yet_to_be_made_has_the_room_of_the_one_above(tmp_path: Path) -> None:
    space = free_space(tmp_path / "a" / "b")
    assert space.folder == nearest_folder(tmp_path / "a" / "b") == tmp_path
    assert space.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_writing_is_tried(tmp_path: Path) -> None:
    check_would_be_writable(tmp_path / "a" / "b", "params.output_dir")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_nothing_can_be_made_is_refused(unprivileged: Path) -> None:
    (unprivileged / "own").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match=r"params.output_dir: .*own/out cannot be written to \(.*Permission denied"):
        check_would_be_writable(unprivileged / "own" / "out", "params.output_dir")


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/out cannot be written to \(.*Not a directory"):
        check_would_be_writable(tmp_path / "file" / "out", "params.output_dir")


def test_more_than_there_is_room_for_is_refused_with_both_numbers(tmp_path: Path) -> None:
    check_room_for(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"at least 1,000 PB are needed in .* are free; make room"):
        check_room_for(tmp_path, 1e18)
