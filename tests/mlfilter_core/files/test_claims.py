import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlfilter_core.files import claims
from mlfilter_core.files.claims import LOCK_SUFFIX, claim, hidden_name, is_claimed, why_locks_are_local
from tests.machines import without_locks

CLAIMS = """
import sys, time
from pathlib import Path
from mlfilter_core.files.claims import claim
with claim(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


def claimed_by_another_process(target: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", CLAIMS, target], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def test_a_file_that_another_process_writes_is_waited_for_and_its_death_ends_the_claim(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "a/x.h5"
    caplog.set_level(logging.INFO)
    with claimed_by_another_process(target) as other:
        threading.Timer(0.5, other.send_signal, [signal.SIGKILL]).start()
        with claim(target):
            assert other.wait() == -signal.SIGKILL
    assert f"{target} is being written by process {other.pid} on " in caplog.text
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_its_holder_removes_is_made_again_by_who_waits(tmp_path: Path) -> None:
    target = tmp_path / "a/x.h5"
    waited: list[bool] = []

    def wait() -> None:
        with claim(target) as has_died:
            waited.append(has_died)

    with claim(target):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        shutil.rmtree(target.parent)
    thread.join()
    assert waited == [False]
    assert list(target.parent.iterdir()) == []


def test_who_looks_at_a_claim_sees_whether_its_process_lives(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    assert is_claimed(target) is False
    with claimed_by_another_process(target) as other:
        assert is_claimed(target) is True
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert hidden_name(target, LOCK_SUFFIX).exists()
    assert is_claimed(target) is False


def test_a_claim_of_another_machine_is_not_judged_where_locks_stay_on_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "run.json"
    hidden_name(target, LOCK_SUFFIX).write_text("0123abcd process 7 on elsewhere")
    assert is_claimed(target) is False  # locks reach every machine here, and nobody holds it
    monkeypatch.setattr(claims, "why_locks_are_local", lambda folder: "mounted with nolock")
    assert is_claimed(target) is None


def test_of_many_that_want_a_file_one_has_it_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "WAIT_S", 0.001)
    holders: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            with claim(tmp_path / "x.h5"):
                holders.append(1)
                most.append(len(holders))
                time.sleep(0.0005)
                holders.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 160
    assert list(tmp_path.iterdir()) == []


def test_files_beside_each_other_are_claimed_independently(tmp_path: Path) -> None:
    with claim(tmp_path / "x.h5"), claim(tmp_path / "y.h5"):
        pass


def test_without_locks_a_claim_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_supported(handle: object, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", not_supported)
    with claim(tmp_path / "x.h5"), claim(tmp_path / "x.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    code = (
        "import sys; from pathlib import Path; from mlfilter_core.files.claims import claim, has_locks;"
        "print(*(has_locks(Path(folder)) for folder in sys.argv[1:]))\n"
        "with claim(Path(sys.argv[1]) / 'x.h5'), claim(Path(sys.argv[1]) / 'x.h5'): pass"
    )
    line = [sys.executable, "-c", code, tmp_path / "without", tmp_path]
    environment = {**os.environ, **without_locks(tmp_path / "without", tmp_path)}
    assert subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout == "False True\n"
    assert list((tmp_path / "without").iterdir()) == []


def test_a_hidden_name_fits_beside_the_longest_name(tmp_path: Path) -> None:
    assert hidden_name(tmp_path / "x.h5", ".lock") == tmp_path / ".x.h5.lock"
    with claim(tmp_path / ("x" * 252 + ".h5")):
        (lock,) = tmp_path.iterdir()
        assert lock.name.startswith(".")


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("lustre", "rw,relatime,rw,localflock", "/ (lustre) is mounted with localflock"),
        ("nfs", "rw,relatime,rw,vers=3,nolock", "/ (nfs) is mounted with nolock"),
        ("nfs4", "rw,relatime,rw,vers=4.2,local_lock=none", None),
        ("lustre", "rw,relatime,rw,flock", None),
        ("beegfs", "rw,relatime,rw", "/ is beegfs"),
        ("fuse.sshfs", "rw,relatime,rw", "/ is fuse.sshfs"),
        ("ext4", "rw,relatime,rw", None),
    ],
)
def test_a_mount_tells_whether_locks_reach_other_machines(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: str, why: str | None
) -> None:
    monkeypatch.setattr(claims, "_mount", lambda folder: ("/", kind, options))
    assert why_locks_are_local(Path("/")) == why


def test_the_mount_of_a_folder_is_the_innermost(tmp_path: Path) -> None:
    assert claims._mount(Path("/proc/self")) is not None
    found = claims._mount(Path(f"/proc/{os.getpid()}"))
    assert found is not None
    assert found[:2] == ("/proc", "proc")
    assert claims._mount(tmp_path.resolve()) is not None
