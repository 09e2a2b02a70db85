import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.running.machine import check_semaphores, exhausted
from tests.conftest import NOBODY
from tests.flows.commands.processes import REPOSITORY
from tests.machines import python_with_mounts


def test_a_user_without_a_home_can_import_prefect(tmp_path: Path) -> None:
    """In a user namespace without an entry in the list of users, as in a container."""
    unknown = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if subprocess.run([*unknown, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not available here")
    code = "from flows.running.machine import fit_any_machine; fit_any_machine(); import prefect"
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    environment["PREFECT_HOME"] = str(tmp_path)
    line = [*unknown, sys.executable, "-c", code]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_home_of_another_user_is_not_read(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from flows.running.machine import fit_any_machine; import flows.prefect_api.server as server;"
        f"os.setgid({NOBODY}); os.setuid({NOBODY}); fit_any_machine(); server.may_set_api(Path('/nowhere'));"
        "server.keep_prefect_home_in(Path('/')); print(Path.home(), os.environ['PREFECT_HOME'])"
    )
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_HOME"}
    line = [sys.executable, "-c", code, REPOSITORY]
    done = subprocess.run(
        line, env={**environment, "HOME": str(home)}, capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.stdout == "/ /\n", done.stderr
    assert done.stderr == f"warning: the home {home} cannot be read; HOME=/ is used instead\n"


def test_semaphores_are_there() -> None:
    check_semaphores()


def test_without_shared_memory_a_run_is_refused_at_once() -> None:
    code = (
        "import sys; from flows.running.machine import MachineError, check_semaphores\n"
        "try: check_semaphores()\n"
        "except MachineError as error: print(error)"
    )
    said = python_with_mounts("mount -t tmpfs -o ro none /dev/shm", code)
    assert said == (
        "workers cannot start: no semaphore can be made in /dev/shm (Read-only file system); mount a tmpfs there, as "
        "container engines do unless they are told otherwise\n"
    )
    missing = python_with_mounts("mount -t tmpfs none /dev", code)  # without shm
    assert missing.startswith("workers cannot start: no semaphore can be made in /dev/shm (")


HUNGRY = """
import mmap, resource, threading, typer
from flows.running.script import run_and_print

def hungry():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
    {act}

typer.run(lambda: run_and_print(hungry))
"""


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("bytes(1 << 30)", "MemoryError"),
        ("threading.Thread(target=print).start()", "can't start new thread"),
        ("mmap.mmap(-1, 1 << 30)", "[Errno 12] Cannot allocate memory"),
    ],
)
def test_a_run_that_gets_no_more_memory_ends_with_a_message(act: str, said: str) -> None:
    line = [sys.executable, "-c", HUNGRY.format(act=act)]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"gives the process of the run no more memory or threads ({said}); look at free" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_of_the_program_are_not_taken_for_lack_of_memory() -> None:
    assert exhausted(RuntimeError("other")) is None
    assert exhausted(OSError(errno.ENOSPC, "No space left on device")) is None
