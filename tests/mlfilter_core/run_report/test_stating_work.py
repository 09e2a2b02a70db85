from collections.abc import Sequence
from pathlib import Path

from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.errors import FileError, SourceError
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.run_report.stating_work import StatingWork
from mlfilter_core.work.workload import Work

REPORT = EmbedReport("a.jsonl", "x.h5", "embedded", 1, 1, 0, 0, 0, 0, 5)
ERROR = SourceError("b.jsonl is broken")


class Together(Work[EmbedReport]):
    """Works on all files at once."""

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return ()

    def finished(self, file: TaskFile, read_content: bool) -> EmbedReport | None:
        return None

    def make(self, file: TaskFile) -> EmbedReport:
        raise NotImplementedError

    def run_all(self, files: Sequence[TaskFile]) -> list[EmbedReport | FileError]:
        assert [file.stem for file in files] == ["a", "b"]
        return [REPORT, ERROR]


def test_files_that_share_a_task_are_still_worked_on_together() -> None:
    files = [TaskFile(f"{stem}.jsonl", stem, Path()) for stem in ("a", "b")]
    assert StatingWork(Together(), Path("out"), "train").run_all(files) == [REPORT, ERROR]
