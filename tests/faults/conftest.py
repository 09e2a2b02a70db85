"""Disks that get full, and the Prefect server and the job files of the flows' tests."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.conftest import annotate_job as annotate_job
from tests.flows.conftest import api as api
from tests.flows.conftest import client as client
from tests.flows.conftest import corpus as corpus
from tests.flows.conftest import embed_job as embed_job
from tests.flows.conftest import heads as heads

PAGE = 4096  # in which a tmpfs counts


@dataclass(frozen=True)
class Disk:
    """A small file system of its own, at a folder."""

    folder: Path

    def remount(self, options: str) -> None:
        """Changes it while it is in use: `size=1m`, `ro`, `rw`."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def fill(self, n_free: int) -> None:
        """Leaves so many bytes free, in whole pages."""
        self.free()
        status = os.statvfs(self.folder)
        with open(self.folder / "ballast", "wb") as ballast:
            n_bytes = (status.f_bavail - n_free // PAGE) * status.f_frsize
            if n_bytes > 0:
                os.posix_fallocate(ballast.fileno(), 0, n_bytes)

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


WriteJob = Callable[..., Path]
