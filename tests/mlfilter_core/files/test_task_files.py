import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from mlfilter_core.corpus.source_files import JSONL_SUFFIXES
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.task_files import PackedNames, Part, TaskFile, chosen, find_files, place_of, shard


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, pattern: str, suffixes: tuple[str, ...] = JSONL_SUFFIXES) -> list[str]:
    return [file.relative for file in find_files(folder, pattern, suffixes)]


def test_files_are_found_in_every_folder_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a/z.jsonl", "a/b/c.jsonl.gz", "a/b/d.jsonl.zst", "e.jsonl.zstd")
    assert found(tmp_path, "**/*.jsonl*") == [
        "a/b/c.jsonl.gz",
        "a/b/d.jsonl.zst",
        "a/z.jsonl",
        "b.jsonl",
        "e.jsonl.zstd",
    ]
    assert found(tmp_path, "*.jsonl") == ["b.jsonl"]
    assert found(tmp_path, "a/*.jsonl") == ["a/z.jsonl"]


def test_outputs_mirror_the_place_in_the_corpus(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.c/x.v1.jsonl.gz")
    (file,) = find_files(tmp_path, "**/*", JSONL_SUFFIXES)
    assert file == TaskFile("a/b.c/x.v1.jsonl.gz", "a/b.c/x.v1", tmp_path)
    assert file.path == tmp_path / "a/b.c/x.v1.jsonl.gz"
    assert file.output(Path("/out"), ".h5") == Path("/out/a/b.c/x.v1.h5")


def test_embedding_files_are_found_by_their_own_suffixes(tmp_path: Path) -> None:
    touch(tmp_path, "a.h5", "b/c.hdf5")
    assert found(tmp_path, "**/*", EMBEDDING_SUFFIXES) == ["a.h5", "b/c.hdf5"]


def test_a_relative_folder_is_remembered_as_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "corpus/x.jsonl")
    monkeypatch.chdir(tmp_path)
    (file,) = find_files(Path("corpus"), "*", JSONL_SUFFIXES)
    assert file.folder == tmp_path / "corpus"


def test_other_files_that_match_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "x.jsonl", "y.json", "z.csv")
    assert found(tmp_path, "**/*") == ["x.jsonl"]
    (message,) = caplog.messages
    assert "of what matches **/*, 2 have names that do not end with .jsonl or .jsonl.gz" in message
    assert message.endswith("and left out: y.json, z.csv")


def test_hidden_files_are_left_out_with_a_warning_and_those_of_runs_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "x.jsonl", ".x.h5.0123.part", ".provenance/x.jsonl.json")
    assert found(tmp_path, "**/*") == ["x.jsonl"]
    assert not caplog.messages
    touch(tmp_path, ".hidden.jsonl")
    assert found(tmp_path, "**/*") == ["x.jsonl"]
    (message,) = caplog.messages
    assert "1 are hidden, as their names begin with a dot, and left out: .hidden.jsonl" in message


def test_links_to_files_and_to_folders_are_followed_and_broken_ones_found(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/y.jsonl", "corpus/x.jsonl")
    (tmp_path / "corpus/linked.jsonl").symlink_to(tmp_path / "elsewhere/y.jsonl")
    (tmp_path / "corpus/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus/broken.jsonl").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path / "corpus", "**/*") == ["broken.jsonl", "folder/y.jsonl", "linked.jsonl", "x.jsonl"]


def test_two_sources_of_one_output_are_refused_naming_both(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jsonl", "a/x.jsonl.gz", "x.jsonl")
    with pytest.raises(
        ConfigError, match=r"a/x\.jsonl and a/x\.jsonl\.gz in .* both be written to a/x; rename one, or"
    ):
        find_files(tmp_path, "**/*", JSONL_SUFFIXES)
    assert found(tmp_path, "**/*.jsonl") == ["a/x.jsonl", "x.jsonl"]


@pytest.mark.parametrize("pattern", ["../*.jsonl", "a/../../*.jsonl", "/etc/*"])
def test_a_pattern_that_leaves_the_folder_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(
        ConfigError, match=rf'glob_pattern "{pattern}"'.replace("*", r"\*") + " leaves .*; give a pattern"
    ):
        find_files(tmp_path, pattern, JSONL_SUFFIXES)


def test_a_pattern_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='glob_pattern "": '):
        find_files(tmp_path, "", JSONL_SUFFIXES)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder .*/nowhere does not exist; fix the path"):
        find_files(tmp_path / "nowhere", "*", JSONL_SUFFIXES)


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "x.jsonl")
    with pytest.raises(ConfigError, match=r"x\.jsonl is a file; give its folder, and a glob_pattern"):
        find_files(tmp_path / "x.jsonl", "*", JSONL_SUFFIXES)


@pytest.mark.parametrize("hidden", ["corpus", "corpus/de", "corpus/de/a"])
def test_a_folder_that_may_not_be_read_is_refused_and_not_passed_over(unprivileged: Path, hidden: str) -> None:
    touch(unprivileged, "corpus/x.jsonl", "corpus/de/a/y.jsonl")
    (unprivileged / hidden).chmod(0)
    with pytest.raises(ConfigError, match=f"the folder {unprivileged}/{hidden} cannot be read"):
        find_files(unprivileged / "corpus", "**/*.jsonl", JSONL_SUFFIXES)


def test_nothing_found_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jsonl", "y.csv")
    with pytest.raises(
        ConfigError, match=r'no file below .* matches glob_pattern "\*" and ends with \.jsonl or .*"\*\*/\*"'
    ):
        find_files(tmp_path, "*", JSONL_SUFFIXES)


@pytest.mark.parametrize("n_shards", [1, 3, 7, 20])
def test_shards_deal_every_file_once(n_shards: int) -> None:
    files = [TaskFile(f"{i:02}.jsonl", f"{i:02}", Path("/corpus")) for i in range(10)]
    shards = [shard(files, [rank], n_shards) for rank in range(n_shards)]
    assert sorted(file for dealt in shards for file in dealt) == files
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shard(files, range(n_shards), n_shards) == files


def test_files_are_the_same_however_they_are_asked_for(tmp_path: Path) -> None:
    names = ["a/x.jsonl.gz", "b/ä.jsonl", "b/日本.jsonl", "c.jsonl"]
    touch(tmp_path, *names)
    files = find_files(tmp_path, "**/*", JSONL_SUFFIXES)
    expected = [TaskFile(name, name.partition(".")[0], tmp_path) for name in names]
    assert list(files) == [files[i] for i in range(4)] == list(files[:]) == expected
    assert list(reversed(files)) == list(pickle.loads(pickle.dumps(files)))[::-1] == expected[::-1]
    assert files[-1] == expected[-1]
    assert list(files[1:3]) == list(chosen(files, [1, 2])) == expected[1:3]
    assert list(files[::2]) == expected[::2]
    assert list(chosen(files[1:], [0, 2])) == [expected[1], expected[3]]
    assert [place_of(files, replace(file, part=Part(2, 3))) for file in expected] == [0, 1, 2, 3]
    assert [place_of(files[1:], file) for file in expected[1:]] == [0, 1, 2]


def test_names_take_little_memory() -> None:
    names = PackedNames([f"CC-MAIN-2024-10/{i:05}-of-01000.jsonl" for i in range(1000)])
    assert names.n_bytes / len(names) < 60


def test_a_folder_whose_own_path_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"c\xff")
    touch(folder, "x.jsonl")
    with pytest.raises(ConfigError, match=r"c\\xff/x.jsonl' is not UTF-8"):
        find_files(folder, "*", JSONL_SUFFIXES)
