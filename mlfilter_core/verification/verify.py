"""The proof, from the files of an output folder alone, that everything in it adds up."""

import functools
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlfilter_core.annotating.annotated_format import PROVENANCE_FOLDER, SUFFIXES
from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.config.embedding import UNKEPT_DIR
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.publishing import COMMITTED_SUFFIX, TEMPORARY_SUFFIX
from mlfilter_core.verification.annotated_files import Surroundings, check_annotations
from mlfilter_core.verification.discrepancies import FileCheck, LineCounts
from mlfilter_core.verification.embedding_files import REJECTED_DIR, VerifyRequest, check_embeddings, without_suffix
from mlfilter_core.verification.isolation import in_processes

LOGS_DIR = "logs"
# Of hidden files beside an output that is not finished; a lock alone says nothing of that.
UNFINISHED_SUFFIXES = (COMMITTED_SUFFIX, TEMPORARY_SUFFIX)
# A process that takes longer over a file is ended: over broken bytes, HDF5 may never return. Arbitrary, and far slower
# than any disk: so many seconds for a file, and for each byte of it and of its embeddings.
FILE_S = 600.0
BYTE_S = 2e-6
ANNOTATED_SUFFIXES = tuple(SUFFIXES.values())


@dataclass(frozen=True)
class OutputFolder:
    """The files of an output folder: paths relative to it, sorted.

    Attributes:
        embeddings: HDF5 files.
        annotated: Annotated files; also one that is missing, with its provenance there.
        rejects: Rejects files.
        holds_unkept: Whether embeddings were made here that did not stay.
        unfinished: What killed or running jobs left, by the suffix of its name; `.h5` are embeddings that were to
            be annotated and removed.
    """

    embeddings: tuple[str, ...]
    annotated: tuple[str, ...]
    rejects: tuple[str, ...]
    holds_unkept: bool
    unfinished: Mapping[str, int]


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        folder: The files.
        wrong: Those that are not right, with their problems.
        counts: Sums over the sources; as stated where a source was not read.
        annotated_lines: Sum over the annotated files.
        not_checked: What could not be checked, and of how many files.
        n_bytes: Read.
        seconds: Wall time.
        read_content: Whether more than metadata were checked.
    """

    folder: OutputFolder
    wrong: tuple[FileCheck, ...]
    counts: LineCounts
    annotated_lines: int
    not_checked: Mapping[str, int]
    n_bytes: int
    seconds: float
    read_content: bool

    @property
    def is_right(self) -> bool:
        return not self.wrong and self.counts.add_up

    def summary(self) -> str:
        """Returns the totals in words, a few lines."""
        files = f"{len(self.folder.embeddings):,} files of embeddings, {len(self.folder.annotated):,} annotated files"
        lines = [
            f"{files}: {f'{len(self.wrong):,} not right' if self.wrong else 'all right'}",
            f"{self.counts}; {self.annotated_lines:,} annotated lines",
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
        request: The folder, and what is asked.
        n_workers: Processes; None takes one for each core.
        on_file: Called with each result, in the order of the files.

    Raises:
        ConfigError: The folder is not there, not readable, or holds nothing to verify.
    """
    started = time.monotonic()
    folder = find_outputs(request.output_dir)
    wrong: list[FileCheck] = []
    not_checked: Counter[str] = Counter()
    counts, annotated_lines, n_bytes = LineCounts(), 0, 0
    for check in _checks(folder, request, n_workers or _n_cores()):
        wrong += [check] if check.problems else []
        counts += check.counts or LineCounts()
        annotated_lines += check.annotated_lines
        n_bytes += check.n_bytes
        not_checked.update(check.not_checked)
        on_file(check)
    seconds = time.monotonic() - started
    return Verification(
        folder, tuple(wrong), counts, annotated_lines, not_checked, n_bytes, seconds, request.read_content
    )


def find_outputs(output_dir: Path) -> OutputFolder:
    """Returns the files of an output folder.

    Raises:
        ConfigError: The folder is not there, not readable, or holds nothing to verify.
    """
    embeddings, annotated, rejects, unfinished = [], set(), [], Counter[str]()
    provenance_dir = f"{ANNOTATED_DIR}/{PROVENANCE_FOLDER}/"
    for name in _walk(output_dir, output_dir, set()):
        top, file_name = name.partition("/")[0], name.rpartition("/")[2]
        if file_name.startswith("."):
            unfinished.update(suffix for suffix in UNFINISHED_SUFFIXES if name.endswith(suffix))
        elif top == UNKEPT_DIR:
            unfinished[".h5"] += 1
        elif name.startswith(provenance_dir):
            annotated.add(f"{ANNOTATED_DIR}/{name.removeprefix(provenance_dir).removesuffix('.json')}")
        elif top == ANNOTATED_DIR:
            annotated.update([name] if name.endswith(ANNOTATED_SUFFIXES) else [])
        elif top == REJECTED_DIR:
            rejects += [name] if name.endswith(".jsonl") else []
        elif name.endswith(EMBEDDING_SUFFIXES):
            embeddings.append(name)
    if not (embeddings or annotated or rejects):
        raise ConfigError(f"nothing to verify in {output_dir}; give the output_dir of a job")
    holds_unkept = (output_dir / UNKEPT_DIR).is_dir()
    return OutputFolder(
        tuple(sorted(embeddings)), tuple(sorted(annotated)), tuple(sorted(rejects)), holds_unkept, unfinished
    )


def _walk(folder: Path, output_dir: Path, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yields the files below a folder, relative to the output folder; links are followed, as jobs follow them."""
    try:
        status = folder.stat()
        entries = [] if (status.st_dev, status.st_ino) in seen else list(os.scandir(folder))
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be read ({error.strerror}); mend its path or rights") from error
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        path = folder / entry.name
        if not entry.is_dir():
            yield path.relative_to(output_dir).as_posix()
        elif path != output_dir / LOGS_DIR:
            yield from _walk(path, output_dir, seen)


def _checks(folder: OutputFolder, request: VerifyRequest, n_workers: int) -> Iterator[FileCheck]:
    """Yields the checks of all files: of embeddings first, as they tell which rejects belong to an annotated file."""
    rejects = set(folder.rejects)
    embeddings = ((name, _limit_s(request.output_dir, name)) for name in folder.embeddings)
    check = functools.partial(check_embeddings, request=request)
    for found in in_processes(check, embeddings, min(n_workers, len(folder.embeddings) or 1), _died):
        rejects.discard(found.rejects or "")
        yield found
    unclaimed = sorted(rejects, key=lambda name: (name.count("/"), name))
    annotated = (
        ((name, near), _limit_s(request.output_dir, name, *near.embeddings))
        for name, near in _annotated(folder, unclaimed)
    )
    check_annotated = functools.partial(_check_annotated, request=request)
    n_workers = min(n_workers, len(folder.annotated) or 1)
    for found in in_processes(check_annotated, annotated, n_workers, lambda item: _died(item[0])):
        rejects.discard(found.rejects or "")
        yield found
    for name in sorted(rejects):
        yield FileCheck(name, ("belongs to no embeddings and no annotations here; run their job again, or remove it",))


def _limit_s(output_dir: Path, *names: str) -> float:
    paths = [output_dir / name for name in names]
    return FILE_S + BYTE_S * sum(path.stat().st_size for path in paths if path.exists())


def _annotated(folder: OutputFolder, rejects: Iterable[str]) -> Iterator[tuple[str, Surroundings]]:
    """Yields each annotated file with what has its name in other folders: the embeddings' is not recorded."""
    embeddings_by_end = _by_end(folder.embeddings, EMBEDDING_SUFFIXES)
    rejects_by_end = _by_end(rejects, (".jsonl",))
    for name in folder.annotated:
        end = without_suffix(name.removeprefix(f"{ANNOTATED_DIR}/"), ANNOTATED_SUFFIXES)
        near = Surroundings(
            tuple(embeddings_by_end.get(end, ())), tuple(rejects_by_end.get(end, ())), folder.holds_unkept
        )
        yield name, near


def _by_end(names: Iterable[str], suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Returns names by every end of their paths: `a/b/x.h5` by `a/b/x`, `b/x` and `x`."""
    by_end: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = without_suffix(name, suffixes).split("/")
        for i in range(len(parts)):
            by_end["/".join(parts[i:])].append(name)
    return by_end


def _check_annotated(item: tuple[str, Surroundings], request: VerifyRequest) -> FileCheck:
    return check_annotations(item[0], request, item[1])


def _died(name: str) -> FileCheck:
    return FileCheck(name, ("the process that read it died or got nowhere, as over broken HDF5; make the file again",))


def _n_cores() -> int:
    """Returns how many cores this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
