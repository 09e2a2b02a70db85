import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.prefect_api import database_disk
from flows.prefect_api.database_disk import DatabaseError, check_room, usable_folder
from flows.prefect_api.server import TemporaryServer
from tests.conftest import REPOSITORY
from tests.machines import python_with_mounts, without_locks


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    yield
    database_disk._temporary_folder.cache_clear()


def test_a_folder_is_for_its_user_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "older").mkdir(mode=0o755)
    for name in ("older", "new/host"):
        folder = usable_folder(tmp_path / name)
        assert folder == tmp_path / name
        assert folder.stat().st_mode & 0o777 == 0o700
        assert list(folder.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_without_locks_the_database_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    other = usable_folder(tmp_path / "host")
    assert other.stat().st_mode & 0o777 == 0o700
    assert not other.is_relative_to(tmp_path)
    assert (
        f"{tmp_path}/host cannot hold a database, which needs locks (No locks available); Prefect's records of this "
        f"run are in {other}" in capsys.readouterr().err
    )
    assert usable_folder(tmp_path / "host") == other


def test_a_disk_without_locks_and_no_temporary_folder_end_the_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from flows.prefect_api.database_disk import DatabaseError, usable_folder\n"
        "try: usable_folder(Path(sys.argv[1]) / 'host')\n"
        "except DatabaseError as error: print(error)"
    )
    environment = {**without_locks(tmp_path, tmp_path), "PYTHONPATH": str(REPOSITORY)}
    closed = "mount --rbind {0} {0}; mount -o remount,ro,bind {0};"
    mounts = f"mount --bind {tmp_path} {tmp_path}; {closed.format('/tmp')} {closed.format('/var/tmp')} cd /proc"
    said = python_with_mounts(mounts, code, tmp_path, **environment)
    assert said.startswith(
        f"Prefect's database in {tmp_path}/host cannot be written: it cannot hold a database, which needs locks (No "
        "locks available), and no temporary folder can be made instead ([Errno 2] No usable temporary directory "
    )


def test_a_folder_of_another_user_is_left_alone(unprivileged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = Path("/usr")
    assert usable_folder(system) != system
    assert "/usr belongs to another user; Prefect's records of this run are in " in capsys.readouterr().err


def test_the_temporary_folder_ends_with_the_process(tmp_path: Path) -> None:
    code = "from flows.prefect_api.database_disk import _temporary_folder; print(_temporary_folder().is_dir())"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env={"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_does_not_start_where_its_database_cannot_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_room(tmp_path)
    monkeypatch.setattr(database_disk, "LEAST_ROOM_BYTES", 1 << 60)
    with pytest.raises(DatabaseError, match=r"at least 1,\d+ PB are needed, and .* are free. Make room there, or set"):
        TemporaryServer(tmp_path, {})
