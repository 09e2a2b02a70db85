from pathlib import Path

import pytest

from mlfilter_core.files.matching import HIDDEN, IN_A_CYCLE, NO_PATH, TWICE, match_files, match_names

TREE = ("x.jsonl", "a/y.jsonl", "a/b/z.jsonl", "a/b/z.csv", "c/part-0", ".git/w.jsonl")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in TREE:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    return tmp_path / "tree"


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*.jsonl",
        "**/*",
        "**/*.jsonl",
        "a/*",
        "a/**/*",
        "**/b/*",
        "*/*.jsonl",
        "**/a/**/z*",
        "**/**/z.jsonl",
        "?/[!y]*",
        *("a/b/z.csv", "./x.jsonl", "a//y.jsonl"),
    ],
)
def test_a_pattern_means_what_it_means_to_pathlib(tree: Path, pattern: str) -> None:
    found = [path.relative_to(tree) for path in tree.glob(pattern) if path.is_file()]
    expected = sorted({path.as_posix() for path in found if not path.as_posix().startswith(".")})
    assert match_files(tree, pattern).files == expected
    assert match_names(TREE, pattern).files == expected


def test_two_stars_at_the_end_are_all_files_below(tree: Path) -> None:
    assert match_files(tree, "a/**").files == ["a/b/z.csv", "a/b/z.jsonl", "a/y.jsonl"]


@pytest.mark.parametrize("pattern", ["", "**.jsonl", "a/x**/y"])
def test_what_is_no_pattern_is_refused(tree: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"unacceptable|whole folders"):
        match_files(tree, pattern)


def test_hidden_names_are_counted_and_not_searched(tree: Path) -> None:
    (tree / ".x.jsonl").touch()
    assert match_files(tree, "**/*.jsonl").left_out == {HIDDEN: [".git/", ".x.jsonl"]}
    assert match_files(tree, "*.csv").left_out == {}


def test_links_to_folders_are_followed_also_from_behind_a_link(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "disk1/deep").mkdir(parents=True)
    (tmp_path / "disk2").mkdir()
    (tmp_path / "disk1/deep/v.jsonl").touch()
    (tmp_path / "disk2/u.jsonl").touch()
    (tree / "linked").symlink_to(tmp_path / "disk1")
    (tmp_path / "disk1/onwards").symlink_to(tmp_path / "disk2")
    assert match_files(tree, "linked/**/*").files == ["linked/deep/v.jsonl", "linked/onwards/u.jsonl"]
    assert "linked/deep/v.jsonl" in match_files(tree, "**/*.jsonl").files


def test_cycles_are_found_and_counted(tree: Path) -> None:
    (tree / "a/b/up").symlink_to(tree / "a")
    (tree / "self").symlink_to(tree)
    matches = match_files(tree, "**/*.jsonl")
    assert matches.files == ["a/b/z.jsonl", "a/y.jsonl", "x.jsonl"]
    assert matches.left_out[IN_A_CYCLE] == ["a/b/up", "self"]


def test_a_link_to_a_folder_above_all_is_searched_once(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.jsonl").touch()
    (tree / "up").symlink_to(tmp_path)
    matches = match_files(tree, "**/*.jsonl")
    assert matches.files == ["a/b/z.jsonl", "a/y.jsonl", "up/beside.jsonl", "x.jsonl"]
    assert matches.left_out[IN_A_CYCLE] == ["up/tree"]


def test_a_file_that_is_found_under_two_names_counts_once(tree: Path, tmp_path: Path) -> None:
    """Its documents would be embedded twice."""
    (tree / "latest").symlink_to(tree / "a")
    matches = match_files(tree, "**/*.jsonl")
    assert matches.files == ["a/b/z.jsonl", "a/y.jsonl", "x.jsonl"]
    assert matches.left_out[TWICE] == ["latest"]
    assert match_files(tree, "latest/*").files == ["latest/y.jsonl"]


def test_links_to_one_file_are_different_files(tree: Path) -> None:
    """Only their names tell them apart, as in a cache of the hub."""
    (tree / "1.jsonl").symlink_to(tree / "x.jsonl")
    assert match_files(tree, "*.jsonl").files == ["1.jsonl", "x.jsonl"]


def test_names_in_a_store_that_are_no_paths_are_left_out() -> None:
    names = ["../../etc/x.jsonl", "a//x.jsonl", "a/./x.jsonl", ".git/x.jsonl", "a/x.jsonl"]
    found = match_names(names, "**/*.jsonl")
    assert found.files == ["a/x.jsonl"]
    assert found.left_out == {NO_PATH: sorted(names[:3]), HIDDEN: [".git/x.jsonl"]}
