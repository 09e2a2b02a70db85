import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work import workload as workload_module
from mlfilter_core.work.progress import Progress, heard_by
from mlfilter_core.work.workload import Work, run_files, worker_name


@dataclass
class Sleeping(Work[EmbedReport]):
    """Takes time for its first file, like a process that loads a model; the last file is already finished."""

    is_loaded: bool = False

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return ()

    def finished(self, file: TaskFile, read_content: bool) -> EmbedReport | None:
        return None

    def make(self, file: TaskFile) -> EmbedReport:
        raise NotImplementedError

    def run(self, file: TaskFile) -> EmbedReport:
        time.sleep(0 if self.is_loaded else 0.3)
        self.is_loaded = True
        time.sleep(0.02)
        is_old = file.stem == "old"
        status, seconds = ("skipped", 0.0) if is_old else ("embedded", 0.02)
        return EmbedReport(file.relative, "x.h5", status, 1, 1, 0, 0, 0, 0, 5, seconds=seconds)  # type: ignore[arg-type]


def test_each_report_says_who_did_the_file_and_when() -> None:
    began = time.time()
    files = [TaskFile(f"{stem}.jsonl", stem, Path()) for stem in ("a", "b", "old")]
    first, second, skipped = run_files(files, Sleeping())
    assert first.worker == second.worker == worker_name()
    assert str(os.getpid()) in worker_name()
    assert (
        began + 0.29 < first.started <= second.started < time.time()
    )  # the time of loading does not count for the first file
    assert (skipped.worker, skipped.started) == ("", 0.0)


def test_a_finished_file_is_told_before_its_task_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a task of several files would be given up when its workers are stopped again and again."""
    monkeypatch.setattr(workload_module, "TELL_S", 0.01)
    heard: list[Progress] = []
    with heard_by(heard.append):
        run_files([TaskFile(f"{stem}.jsonl", stem, Path()) for stem in ("a", "b", "old")], Sleeping(is_loaded=True))
    assert [(each.file, each.documents, each.tokens, each.committed) for each in heard] == [
        ("a.jsonl", 1, 5, 1),
        ("b.jsonl", 1, 5, 1),
    ]
