"""Proves, from the files of an output folder alone, that its outputs are complete and consistent."""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlfilter_core.compute.cores import usable_cores
from mlfilter_core.compute.isolation import DIED, in_processes, time_limit_s
from mlfilter_core.config.embedding import UNKEPT_DIR
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.publishing import COMMITTED_SUFFIX, TEMPORARY_SUFFIX
from mlfilter_core.verification.discrepancies import FileCheck, LineCounts, Place
from mlfilter_core.verification.embedding_files import REJECTED_DIR
from mlfilter_core.verification.output_kinds import (
    Output,
    OutputKind,
    RelatedFiles,
    VerifyRequest,
    output_kinds,
    without_suffix,
)
from mlfilter_core.verification.outputs import Outputs
from mlfilter_core.verification.whole_folder import differing_settings, missing_origins, missing_outputs

LOGS_DIR = "logs"
# Suffixes of hidden files beside an unfinished output; a lock alone does not show one.
UNFINISHED_SUFFIXES = (COMMITTED_SUFFIX, TEMPORARY_SUFFIX)


@dataclass(frozen=True)
class OutputFolder:
    """The files of an output folder, sorted; paths are relative to it.

    Attributes:
        outputs: Outputs of each kind of job, by its flow; also missing outputs, if other files show that they
            existed.
        rejects: Rejects files.
        has_unkept: Whether embeddings were made here that were to be removed after use.
        unfinished: Files that killed or running jobs left, counted by suffix; `.h5` are embeddings that were to be
            annotated and removed.
    """

    outputs: Mapping[str, Outputs]
    rejects: Sequence[str]
    has_unkept: bool
    unfinished: Mapping[str, int]


@dataclass(frozen=True)
class Verification:
    """Result of a verification.

    Attributes:
        folder: The files.
        wrong: Files and folders with problems.
        counts: Sums over the sources; as stated where a source was not read.
        annotated_lines: Sum over the annotated files.
        kept: Sum over the filtered files; `dropped` likewise.
        not_checked: Contents that could not be checked, with the number of files.
        n_bytes: Bytes read.
        seconds: Wall time.
        read_content: Whether the content of the files was read.
    """

    folder: OutputFolder
    wrong: Sequence[FileCheck]
    counts: LineCounts
    annotated_lines: int
    not_checked: Mapping[str, int]
    n_bytes: int
    seconds: float
    read_content: bool
    kept: int = 0
    dropped: int = 0

    @property
    def is_right(self) -> bool:
        return not self.wrong and self.counts.add_up

    def summary(self) -> str:
        """Returns the totals as text of a few lines."""
        numbers = {kind.plural: len(self.folder.outputs[flow]) for flow, kind in output_kinds().items()}
        files = ", ".join(f"{n:,} {plural}" for plural, n in numbers.items() if n) or "files of rejected lines only"
        filtered = f"; {self.kept:,} documents kept + {self.dropped:,} dropped" if self.kept + self.dropped else ""
        lines = [
            f"{files}: {f'{len(self.wrong):,} not right' if self.wrong else 'all right'}",
            f"{self.counts}; {self.annotated_lines:,} annotated lines{filtered}",
        ]
        lines += [f"not checked: {n:,} files {what}" for what, n in sorted(self.not_checked.items())]
        if not self.read_content:
            lines.append("not checked: any content (--quick)")
        lines += [
            f"unfinished, of killed or running jobs: {n:,} files {suffix}"
            for suffix, n in sorted(self.folder.unfinished.items())
        ]
        n_megabytes, seconds = self.n_bytes / 1e6, self.seconds
        return "\n".join([*lines, f"read {n_megabytes:,.1f} MB in {seconds:.1f} s ({n_megabytes / seconds:,.1f} MB/s)"])


def verify(
    request: VerifyRequest, n_workers: int | None = None, on_file: Callable[[FileCheck], None] = lambda _: None
) -> Verification:
    """Checks every file of an output folder, several at a time.

    Worker processes import the main module: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        request: Request of the verification, with the folder.
        n_workers: Processes; None takes one for each core.
        on_file: Called with each result, in the order of the files.

    Raises:
        ConfigError: The folder is missing or unreadable, or has nothing to verify.
    """
    started = time.monotonic()
    folder = find_outputs(request.output_dir)
    wrong: list[FileCheck] = []
    not_checked: Counter[str] = Counter()
    counts, annotated_lines, n_bytes, kept, dropped = LineCounts(), 0, 0, 0, 0
    for check in _checks(folder, request, n_workers or usable_cores()):
        wrong += [check] if check.problems else []
        counts += check.counts or LineCounts()
        annotated_lines += check.annotated_lines
        n_bytes += check.n_bytes
        kept += check.kept
        dropped += check.dropped
        not_checked.update(check.not_checked)
        on_file(check)
    seconds = time.monotonic() - started
    return Verification(
        *(folder, wrong, counts, annotated_lines, not_checked, n_bytes, seconds, request.read_content, kept, dropped)
    )


def find_outputs(output_dir: Path) -> OutputFolder:
    """Returns the files of an output folder.

    Raises:
        ConfigError: The folder is missing or unreadable, or has neither outputs nor rejects files.
    """
    found = {flow: Outputs(kind.find) for flow, kind in output_kinds().items()}
    # The last kind is asked first: embeddings may lie in any folder, also in one that has another kind's name.
    asked = list(reversed(found.values()))
    rejects, unfinished = [], Counter[str]()
    for path in _walk(output_dir, "", set()):
        top, file_name = path.partition("/")[0], path.rpartition("/")[2]
        if file_name.startswith("."):
            unfinished.update(suffix for suffix in UNFINISHED_SUFFIXES if path.endswith(suffix))
        elif top == UNKEPT_DIR:
            unfinished[".h5"] += 1
        elif top == REJECTED_DIR:
            rejects += [path] if path.endswith(".jsonl") else []
        else:
            any(outputs.add(path) for outputs in asked)
    for outputs in found.values():
        outputs.pack()
    if not (any(found.values()) or rejects):
        raise ConfigError(
            f"nothing to verify in {output_dir}; give the output_dir of a job, or run one first, such as "
            "`ml_filter embed`"
        )
    return OutputFolder(found, sorted(rejects), (output_dir / UNKEPT_DIR).is_dir(), unfinished)


def _walk(output_dir: Path, below: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yields the files below a folder, relative to the output folder; links are followed, as jobs follow them.

    Args:
        output_dir: The output folder.
        below: Path of the folder below it, which ends with a slash; empty for itself.
        seen: Folders that were walked.
    """
    folder = output_dir / below
    try:
        status = folder.stat()
        entries = [] if (status.st_dev, status.st_ino) in seen else list(os.scandir(folder))
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} cannot be read ({error.strerror}); fix its path or permissions"
        ) from error
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        path = below + entry.name
        if not entry.is_dir():
            yield path
        elif path != LOGS_DIR:
            yield from _walk(output_dir, f"{path}/", seen)


@dataclass(frozen=True)
class _Task:
    """The check of one output, for a worker process."""

    kind: OutputKind
    path: str
    request: VerifyRequest
    related: RelatedFiles

    def limit_s(self) -> float:
        paths = [self.request.output_dir / path for path in (self.path, *self.related.outputs)]
        return time_limit_s(sum(path.stat().st_size for path in paths if path.exists()))

    def run(self) -> FileCheck:
        return self.kind.check(self.path, self.request, self.related)

    def died(self) -> FileCheck:
        return FileCheck(self.path, (DIED,))


def _checks(folder: OutputFolder, request: VerifyRequest, n_workers: int) -> Iterator[FileCheck]:
    """Yields the checks of all files, and of those of each kind together.

    A rejects file belongs to the first output that claims it.
    """
    unclaimed = set(folder.rejects)
    earlier: dict[str, str] = {}
    places: dict[str, list[Place]] = defaultdict(list)
    kinds = output_kinds()
    for flow, kind in kinds.items():
        outputs = folder.outputs[flow]
        tasks = (
            _Task(kind, output.path, request, related)
            for output, related in _with_related(outputs, earlier, unclaimed, folder.has_unkept)
        )
        timed = ((task, task.limit_s()) for task in tasks)
        together = kind.check_together and kind.check_together(request)
        for check in in_processes(_Task.run, timed, min(n_workers, len(outputs) or 1), _Task.died):
            unclaimed.discard(check.rejects or "")
            if check.place is not None:
                if together is not None:
                    together.add(check.place)
                places[flow].append(replace(check.place, tally=None))
            yield check
        yield from differing_settings(kind, places[flow])
        if kind.made_from in kinds:
            origins = (places[kind.made_from], kinds[kind.made_from])
            yield from missing_outputs(kind, outputs, *origins)
            if not folder.has_unkept:
                yield from missing_origins(kind, outputs, *origins)
        if together is not None:
            problems = tuple(together.problems())
            yield from [FileCheck(places[flow][0].folder, problems)] if problems else []
        earlier |= {output.path: output.name for output in outputs}
    for path in sorted(unclaimed):
        yield FileCheck(path, ("belongs to no embeddings and no annotations here; run their job again, or remove it",))


def _with_related(
    outputs: Iterable[Output], earlier: Mapping[str, str], rejects: Iterable[str], has_unkept: bool
) -> Iterator[tuple[Output, RelatedFiles]]:
    """Yields each output with the files that have its name in other folders."""
    earlier_by_end = _by_end(earlier)
    # The place nearest to the top is the most likely one.
    nearest = sorted(rejects, key=lambda path: (path.count("/"), path))
    rejects_by_end = _by_end({path: without_suffix(path, (".jsonl",)) for path in nearest})
    for output in outputs:
        related, own_rejects = (tuple(by_end.get(output.name, ())) for by_end in (earlier_by_end, rejects_by_end))
        yield output, RelatedFiles(related, own_rejects, has_unkept)


def _by_end(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns paths by every end of their names: that of `a/b/x` by `a/b/x`, `b/x` and `x`."""
    by_end: dict[str, list[str]] = defaultdict(list)
    for path, name in names.items():
        parts = name.split("/")
        for i in range(len(parts)):
            by_end["/".join(parts[i:])].append(path)
    return by_end
