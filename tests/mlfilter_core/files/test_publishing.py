import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.files import claims
from mlfilter_core.files.claims import claim, hold
from mlfilter_core.files.publishing import check_writable, claim_outputs, publish, publish_json, remove_leftovers


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a/b/x.h5"
    with publish(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "x.h5"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), publish(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half way"), publish(tmp_path / "x.h5"):
        raise ValueError("half way")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["x" * 252 + ".h5", "\N{OLD ITALIC LETTER A}" * 63 + ".h5"], ids=["ascii", "four bytes"]
)
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    assert len(name.encode()) == 255
    with publish(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert (tmp_path / name).read_text() == "new"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "x.h5"
    with publish(target) as first:
        with publish(target) as second:
            first.write_text("first")
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with publish(tmp_path / "x.h5") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.h5").stat().st_mode) == mode


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(
            ConfigError, match=rf"params\.output_dir: {folder} cannot be written to \(.+\); fix its perm"
        ):
            check_writable(folder)


KILLED_WHILE_IT_PUBLISHES = """
import os, signal, sys
from pathlib import Path
from mlfilter_core.files.claims import claim
from mlfilter_core.files.publishing import publish
with claim(Path(sys.argv[1])), publish(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_stays(tmp_path: Path) -> None:
    target = tmp_path / "a" / "x.h5"
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_PUBLISHES, target], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.suffix for path in target.parent.iterdir()) == [".lock", ".part"]
    with claim(tmp_path / "z.h5"), publish(tmp_path / "z.h5") as own:
        assert remove_leftovers(tmp_path) == 2
        assert list(target.parent.iterdir()) == []
        assert own.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["z.h5"]


def test_what_a_process_on_another_machine_left_is_removed_only_where_its_lock_would_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / ".y.h5.0123abcd.999999999.89abcdef.part"
    foreign.touch()
    with open(foreign, "rb") as living:
        hold(living)
        assert remove_leftovers(tmp_path) == 0
    monkeypatch.setattr(claims, "why_locks_are_local", lambda folder: "it is mounted with localflock")
    assert remove_leftovers(tmp_path) == 0
    monkeypatch.undo()
    assert remove_leftovers(tmp_path) == 1


def test_files_of_others_are_no_leftovers(tmp_path: Path) -> None:
    for name in (".a.part", ".b.lock", ".c.d.e.f.part", ".x.h5.committed", ".gitignore"):
        (tmp_path / name).write_text("theirs")
    assert remove_leftovers(tmp_path) == 0


def test_who_claims_a_file_removes_what_the_last_one_left_of_it_when_it_died(tmp_path: Path) -> None:
    target = tmp_path / "a" / "x.h5"
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_PUBLISHES, target], check=False)
    assert killed.returncode == -signal.SIGKILL
    target.touch()
    for committed in (tmp_path / "a/.x.h5.committed", tmp_path / "a/.y.h5.committed"):
        committed.touch()
        os.utime(committed, (0, 0))
    with claim_outputs(target, tmp_path / "rejected/x.jsonl"):
        assert sorted(path.name for path in target.parent.iterdir()) == [".x.h5.lock", ".y.h5.committed", "x.h5"]


def test_what_was_committed_goes_once_its_file_is_there(tmp_path: Path) -> None:
    (tmp_path / ".x.h5.committed").touch()
    assert remove_leftovers(tmp_path) == 0
    (tmp_path / "x.h5").touch()
    assert remove_leftovers(tmp_path) == 1


def test_a_folder_that_may_not_be_written_to_is_refused(unprivileged: Path) -> None:
    (unprivileged / "out").mkdir(mode=0o500)
    message = rf"params\.output_dir: {unprivileged}/out cannot be written to \(Permission denied\); fix its permissions"
    with pytest.raises(ConfigError, match=message):
        check_writable(unprivileged / "out")
    with pytest.raises(ConfigError, match=r"local_settings\.logging_dir: .*/out/logs cannot be written to"):
        check_writable(unprivileged / "out" / "logs", "local_settings.logging_dir")


def test_facts_are_written_as_json_complete_or_not_at_all(tmp_path: Path) -> None:
    publish_json(tmp_path / "a" / "facts.json", {"größe": [1, None, float("nan")]})
    assert (tmp_path / "a" / "facts.json").read_text() == '{\n  "größe": [\n    1,\n    null,\n    null\n  ]\n}\n'
    with pytest.raises(TypeError):
        publish_json(tmp_path / "a" / "facts.json", {"path": tmp_path})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["facts.json"]
    assert "größe" in (tmp_path / "a" / "facts.json").read_text()
