import subprocess
import sys
from pathlib import Path

import pytest

from flows.workers.open_files import OF_A_RUN, OF_A_WORKER_ELSEWHERE, OF_A_WORKER_HERE

ALLOW = """
import resource, sys
from flows.workers.open_files import allow_open_files
from mlfilter_core.errors import ConfigError
try:
    allow_open_files(int(sys.argv[1]), sys.argv[2:] == ["elsewhere"])
except ConfigError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def limited(soft: int, hard: int, *arguments: str) -> str:
    line = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", ALLOW, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("arguments", "each"), [(["100"], OF_A_WORKER_HERE), (["100", "elsewhere"], OF_A_WORKER_ELSEWHERE)]
)
def test_the_limit_is_raised_to_what_the_workers_need(arguments: list[str], each: int) -> None:
    assert limited(256, 4096, *arguments) == f"{OF_A_RUN + 100 * each}\n"
    assert limited(4096, 4096, *arguments) == "4096\n"


def test_more_workers_than_the_system_allows_are_refused() -> None:
    assert limited(256, 256, "100") == (
        "local_settings.workers: 100 workers need 1264 open files, but ulimit -Hn allows 256; lower "
        "local_settings.workers, or have the limit raised\n256\n"
    )
    assert limited(256, 256, "100", "elsewhere").startswith("slurm_settings.workers: 100 workers need 664 open files")
    assert limited(256, 256, "16") == "256\n"
    assert limited(256, 256, "17") != "256\n"


def test_workers_take_no_more_open_files_than_are_allowed(tmp_path: Path) -> None:
    n_workers = 3
    code = f"""
import os
from pathlib import Path
from distributed import Client
from flows.workers.local import _start
if __name__ == "__main__":
    started = _start({n_workers}, "cpu", Path({str(tmp_path / "dask")!r}))
    with Client(started.cluster.result()) as client:
        client.wait_for_workers({n_workers})
        client.gather(client.map(abs, range(100)))
        print(len(os.listdir("/proc/self/fd")), max(client.run(lambda: len(os.listdir("/proc/self/fd"))).values()))
    started.closing.close()
"""
    script = tmp_path / "start.py"
    script.write_text(code)
    line = ["prlimit", "--nofile=40:256", sys.executable, script]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    of_run, of_worker = map(int, done.stdout.split())
    assert of_run <= OF_A_RUN + n_workers * OF_A_WORKER_HERE
    assert of_worker <= OF_A_RUN
