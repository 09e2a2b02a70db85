"""A file system that does not answer for a while, as when an NFS server restarts, and then goes on."""

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import pytest

from flows.embed import embed
from flows.watching import run_progress as progress_module
from flows.watching import stalls as stalls_module
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.files.task_files import find_files
from tests.faults.campaign import IS_LONG
from tests.faults.conftest import TEST_S, WriteJob, leftovers, within, write_corpus

STALL_S = 60 if IS_LONG else 6
pytestmark = pytest.mark.timeout(TEST_S)


class Freezer:
    """An ext4 that can be frozen: what writes to it waits in the kernel, and no signal ends the wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def freeze(self, seconds: float) -> None:
        thaw = f"fsfreeze --freeze {self.folder}; sleep {seconds}; fsfreeze --unfreeze {self.folder}"
        subprocess.run(["setsid", "sh", "-c", thaw], check=True)  # also if the test is killed


@pytest.fixture
def freezer(tmp_path: Path) -> Iterator[Freezer]:
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    lines = f"truncate -s 64M {image} && mkfs.ext4 -q {image} && mount -o loop {image} {folder}"
    mounted = subprocess.run(["sh", "-c", lines], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system that can be frozen can be mounted here: {mounted.stderr.strip()}")
    try:
        yield Freezer(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_run_waits_for_a_file_system_that_does_not_answer_says_so_and_loses_nothing(
    freezer: Freezer,
    embed_job: WriteJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_module, "STILL_S", 2.0)
    monkeypatch.setattr(stalls_module, "STILL_S", 2.0)
    monkeypatch.setattr(stalls_module, "ANSWER_S", 1.0)
    corpus = write_corpus(tmp_path / "many", dict.fromkeys([f"file{i}" for i in range(10)], 200))
    settings = {"local_settings.workers": 2, "local_settings.logging_dir": str(tmp_path / "logs"), "files_per_task": 1}
    output = freezer.folder / "out"
    job = embed_job(input_dir=str(corpus), output_dir=str(output), commit_documents=50)

    def disturb() -> None:
        within(TEST_S, lambda: len(list(output.rglob("[!.]*.h5"))) >= 2)
        freezer.freeze(STALL_S)

    with ThreadPoolExecutor(1) as thread:
        disturbance = thread.submit(disturb)
        started = time.monotonic()
        report = embed(job, settings)
        disturbance.result()
    assert time.monotonic() - started > STALL_S
    assert [row.status for row in report.reports] == ["embedded"] * 10
    assert [row.resumed for row in report.reports] == [0] * 10  # by no second worker
    log = (report.logs / "flow.log").read_text()
    assert f"{output}: its file system does not answer; the run waits" in log
    assert f"{output} answers again, after " in log
    # By PyTorch, as the run of this small corpus.
    undisturbed = {"params.output_dir": str(tmp_path / "undisturbed"), "params.openvino": "false"}
    work = embed_work(load_job(job, EmbeddingJob, undisturbed).params)
    for source in find_files(corpus, "*.jsonl", SOURCE_SUFFIXES):
        expected = Path(work.run(source).output)
        with h5py.File(expected) as here, h5py.File(output / "embeddings" / expected.name) as there:
            for name in ("embeddings", "source_line", "source_offset", "n_tokens"):
                assert here[f"train/{name}"][()].tobytes() == there[f"train/{name}"][()].tobytes(), name
    assert leftovers(output) == set()
