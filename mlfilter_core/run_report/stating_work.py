"""Work that also states what it made, so that the report of a large run need not open its outputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mlfilter_core.errors import FileError
from mlfilter_core.files.task_files import WHOLE, TaskFile
from mlfilter_core.run_report.known_outputs import MOST_SAMPLED, KnownOutput, NewlyKnownOutputs, read_output
from mlfilter_core.verification.output_kinds import OutputKind, VerifyRequest, output_kinds
from mlfilter_core.verification.stated_facts import UnreadableOutputError
from mlfilter_core.work.workload import FileReport, Report, Work


@contextmanager
def stating(
    work: Work[Report], output_dir: Path, group: str, n_files: int
) -> Iterator[tuple[Work[Report], Callable[[FileReport], None]]]:
    """Gives the work of a run, and the function that remembers what the outputs in its reports state.

    Of few files nothing is stated: their outputs are opened for the report.

    Args:
        work: The work on each file.
        output_dir: Output folder of the job.
        group: Name of the HDF5 group.
        n_files: Number of files of the run.
    """
    if n_files <= MOST_SAMPLED:
        yield work, lambda report: None
        return
    with NewlyKnownOutputs.in_folder(output_dir, group) as new:

        def remember(report: FileReport) -> None:
            for output in report.stated:
                new.add(output)

        yield StatingWork(work, output_dir, group), remember


@dataclass(frozen=True)
class StatingWork(Work[Report]):
    """The work on each file; reports also have what the outputs state.

    Attributes:
        work: The work.
        output_dir: Output folder of the job.
        group: Name of the HDF5 group.
    """

    work: Work[Report]
    output_dir: Path
    group: str

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return self.work.outputs(file)

    def finished(self, file: TaskFile, read_content: bool) -> Report | None:
        return self.work.finished(file, read_content)

    def make(self, file: TaskFile) -> Report:
        return self.work.make(file)

    def run(self, file: TaskFile) -> Report:
        return self._stating(file, self.work.run(file))

    def run_all(self, files: Sequence[TaskFile]) -> list[Report | FileError]:
        outcomes = zip(files, self.work.run_all(files), strict=True)
        return [each if isinstance(each, FileError) else self._stating(file, each) for file, each in outcomes]

    def _stating(self, file: TaskFile, report: Report) -> Report:
        return replace(report, stated=tuple(self._stated(file))) if file.part == WHOLE else report

    def _stated(self, file: TaskFile) -> Iterator[KnownOutput]:
        """Yields what the outputs of a file state, as far as they are in the output folder and can be read."""
        request = VerifyRequest(self.output_dir, self.group)
        found: dict[str, OutputKind] = {}
        for path in self.work.outputs(file):
            if not path.is_relative_to(self.output_dir):
                continue
            relative = path.relative_to(self.output_dir).as_posix()
            for kind in reversed(output_kinds().values()):
                if (output := kind.find(relative)) is not None:
                    found[output.path] = kind
                    break
        for relative, kind in found.items():
            with suppress(UnreadableOutputError):  # embeddings that were not to stay
                _, known = read_output(kind, relative, request)
                if known is not None:
                    yield known
