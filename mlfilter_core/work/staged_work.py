"""The work of a job whose folders are in stores: files are staged in, made on this machine, and put out.

The job's own work sees folders of this machine. A receipt beside the outputs tells, for each finished file, from which
version of the source and by which request its outputs were made. Receipts save what the work would have to read; where
one is missing or does not fit, the outputs are staged in as well, and the work decides.
"""

import functools
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from mlfilter_core.config.execution import Job
from mlfilter_core.corpus.own_outputs import OWN_FOLDER
from mlfilter_core.errors import FileError, MlfilterError
from mlfilter_core.files.claims import claim, is_claimed
from mlfilter_core.files.publishing import publish, remove_leftovers
from mlfilter_core.files.store_claims import claimed_by_run
from mlfilter_core.files.stores import StoredFile, StoreFolder, folder_here
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.work.same_request import check_same_request, differing_fields
from mlfilter_core.work.workload import OF_THIS_RUN, SKIPPED, Report, Work, Workload, facts_of

TO_DO, TAKEN = "to_do.json", "taken"
N_TRIED_FIRST = 3  # before a run; a bad file must not stop it

_log = logging.getLogger(__name__)


def stores_of(job: Job) -> dict[str, StoreFolder]:
    """Returns the folders of a job that are in stores, by the field that names them."""
    return {field: StoreFolder(url, job.mirror(field)) for field, url in job.urls.items()}


def staged(workload: Workload[Report], job: Job, inputs: str) -> Workload[Report]:
    """Returns a workload that stages its files; the same one where no folder is in a store.

    Args:
        workload: Workload of the job on this machine.
        job: The job as written.
        inputs: Field of the folder of the files.

    Raises:
        ConfigError: A store refuses to be listed.
        OSError: A store does not answer.
    """
    stores = stores_of(job)
    if not stores:
        return workload
    outputs = stores.get("output_dir") or folder_here(job.params.output_dir)
    work = StagedWork(
        work=workload.work,
        flow=workload.flow,
        report=workload.work.REPORT,
        request=orjson.loads(orjson.dumps(workload.work.made_by(), default=str)),
        overwrite=bool(getattr(job.params, "overwrite", False)),
        inputs=stores.get(inputs),
        others=tuple(store for field, store in stores.items() if field not in (inputs, "output_dir")),
        destination=outputs,
        folder=job.staging,
        ranks=job.local.ranks,
        n_shards=job.local.tasks,
    )
    return replace(workload, work=work.with_receipts(workload.files))


@dataclass(frozen=True)
class _Receipts:
    """What a store had when it was listed: receipts by the name of the file, and all files."""

    receipts: Mapping[str, Any]
    files: Mapping[str, StoredFile]


@dataclass(frozen=True)
class StagedWork(Work[Report]):
    """The work of a job on each file, around that of the same job on this machine.

    Attributes:
        work: Work on the mirrors.
        flow: Name of the flow.
        report: Class of the reports.
        request: Everything that determines the content of the outputs, beside the file.
        overwrite: Whether outputs of another request are replaced.
        inputs: Folder of the files; None where it is on this machine.
        others: Further folders that the work reads from.
        destination: Folder of the outputs.
        folder: Folder of the job's own staging.
        ranks: Shards of this run.
        n_shards: Number of shards.
        known: What the outputs' store had before the run; None in workers, which ask the store.
    """

    work: Work[Report]
    flow: str
    report: Callable[..., Report]
    request: Mapping[str, Any]
    overwrite: bool
    inputs: StoreFolder | None
    others: tuple[StoreFolder, ...]
    destination: StoreFolder
    folder: Path
    ranks: range
    n_shards: int
    known: _Receipts | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "IMPORTS", self.work.IMPORTS)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": None}

    def with_receipts(self, files: Sequence[TaskFile]) -> "StagedWork[Report]":
        """Returns the same work, which knows from one listing what the outputs' store has."""
        if self.destination.is_here:
            return self
        listed = self.destination.listing().files
        names = [name for file in files if (name := self._receipt_name(file)) in listed]
        contents = self.destination.read_all(names)
        receipts = {name: receipt for name, content in contents.items() if (receipt := _parsed(content)) is not None}
        return replace(self, known=_Receipts(receipts, listed))

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        return self.work.outputs(file)

    def finished(self, file: TaskFile, read_content: bool) -> Report | None:
        """Returns the report of a finished file by its receipt alone."""
        receipt = self._receipt(file)
        if receipt is None:
            return None
        try:
            if self.overwrite and differing_fields(receipt["request"], self.request):
                return None
            check_same_request(self._first_output(file), receipt["request"], self.request)
            is_same = _is_same(receipt["source"], self._identity(file)) and all(
                (there := self._there(name)) is not None and _is_same(facts, there.identity())
                for name, facts in receipt["outputs"].items()
            )
            return self.report(**receipt["report"], status=SKIPPED) if is_same else None
        except (KeyError, TypeError):  # of another release
            return None

    def check(self, files: Sequence[TaskFile]) -> None:
        with self._with_urls_in_errors():
            self.work.check(self._first(files))

    def prepare(self, files: Sequence[TaskFile]) -> None:
        with self._with_urls_in_errors():
            self.work.prepare(self._first(files))

    @contextmanager
    def session(self, to_do: Sequence[TaskFile]) -> Iterator[None]:
        """Makes this run the only one that stages and puts these files; tells workers which files come next."""
        with ExitStack() as closing:
            if not self.destination.is_here:
                closing.enter_context(claimed_by_run(self.destination, self.ranks, self.n_shards))
            closing.enter_context(claim(self._run_folder / TO_DO))
            shutil.rmtree(self._run_folder / TAKEN, ignore_errors=True)
            with publish(self._run_folder / TO_DO) as temporary:
                temporary.write_bytes(orjson.dumps([file.relative for file in to_do]))
            try:
                yield
            finally:
                self._remove_staged(to_do)

    def run(self, file: TaskFile) -> Report:
        taken = self._run_folder / TAKEN / file.relative
        with claim(taken), self._with_urls_in_errors():
            taken.touch()
            if (report := self.finished(file, read_content=True)) is not None:
                return report
            file = self._stage(file)
            if self.inputs is not None:
                self._stage_next(self.inputs, file)
            report = self._run_on_staged(file)
            self._unstage(file)
            return report

    def make(self, file: TaskFile) -> Report:
        return self.work.make(file)

    def _run_on_staged(self, file: TaskFile) -> Report:
        """Makes the outputs on this machine, puts them out, and removes them here."""
        names = self._output_names(file)
        there = {} if self.destination.is_here or self.overwrite else self._stage_outputs(names)
        report = self.work.run(file)
        if report.status != SKIPPED:  # also made again
            there = {}
        output = Path(report.output).absolute().relative_to(self.destination.mirror).as_posix()
        put = {name: there.get(name) or self._put(name) for name in reversed(names)}  # the first stands for all
        receipt = {
            "request": self.request,
            "source": self._identity(file),
            "outputs": {name: stored.identity() for name, stored in put.items() if stored is not None},
        }
        if not self.destination.is_here:
            report = replace(report, output=self.destination.url_to(output))
        facts = {name: fact for name, fact in facts_of(report).items() if name not in (*OF_THIS_RUN, "status")}
        self.destination.write(self._receipt_name(file), orjson.dumps({**receipt, "report": facts}))
        if not self.destination.is_here:
            for name in names:
                self.destination.unstage(name)
        return report

    def _put(self, name: str) -> StoredFile | None:
        """Puts an output into the store; removes it there if the file has no such output any more."""
        if self.destination.is_here:
            return self.destination.find(name)
        if (self.destination.mirror / name).exists():
            return self.destination.put(name)
        if self.destination.find(name) is not None:
            self.destination.remove(name)
        return None

    def _stage_outputs(self, names: Sequence[str]) -> dict[str, StoredFile]:
        """Stages outputs that the store has and this machine has not; the work decides whether they are finished."""
        found = {name: self.destination.find(name) for name in names if not (self.destination.mirror / name).exists()}
        return {name: self.destination.stage(name, stored) for name, stored in found.items() if stored is not None}

    def _stage(self, file: TaskFile) -> TaskFile:
        """Stages a file and what else its work reads."""
        if self.inputs is not None:
            file = replace(file, stored=self.inputs.stage(file.relative, file.stored))
        for store, name in self._further(file):
            store.stage(name)
        return file

    def _unstage(self, file: TaskFile) -> None:
        for store, name in self._further(file):
            store.unstage(name)
        if self.inputs is not None:
            self.inputs.unstage(file.relative)

    def _further(self, file: TaskFile) -> list[tuple[StoreFolder, str]]:
        """Returns the files in stores that the work reads beside a staged file."""
        paths = self.work.further_files(file) if self.others else ()
        return [
            (store, path.relative_to(store.mirror).as_posix())
            for path in paths
            for store in self.others
            if path.is_relative_to(store.mirror)
        ]

    def _stage_next(self, inputs: StoreFolder, file: TaskFile) -> None:
        """Stages, in the background, the next file that no worker has taken; one at a time in a process."""
        taken, path = self._run_folder / TAKEN, self._run_folder / TO_DO
        if _ahead and _ahead[0].is_waiting():
            return
        names = _names_to_do(path, path.stat().st_mtime_ns) if path.exists() else []
        later = names[names.index(file.relative) + 1 :] if file.relative in names else []
        for name in later:
            is_free = not (taken / name).exists() and inputs.staged(name) is None
            if is_free and not is_claimed(inputs.mirror / name):
                _ahead[:] = [_Ahead(inputs, name, taken / name)]
                return

    def _first(self, files: Sequence[TaskFile]) -> Sequence[TaskFile]:
        """Returns a staged file to check a job with: the first that is to be done, or another where it is bad."""
        if self.inputs is None and not self.others:
            return files
        to_do = (file for file in files if self._receipt(file) is None)
        for file, _ in zip(to_do, range(N_TRIED_FIRST), strict=False):
            try:
                return [self._stage(file)]
            except FileError:  # its task reports it
                continue
        return files

    def _remove_staged(self, files: Sequence[TaskFile]) -> None:
        """Removes what was staged ahead, once no worker is left."""
        if self.inputs is not None:
            for file in files:
                if is_claimed(self.inputs.mirror / file.relative) is False:
                    self.inputs.unstage(file.relative)
            remove_leftovers(self.inputs.mirror)
        shutil.rmtree(self._run_folder / TAKEN, ignore_errors=True)

    @property
    def _run_folder(self) -> Path:
        """Folder for what the workers of this run tell one another."""
        return self.folder / f"shards-{self.ranks.start}-{self.ranks.stop - 1}-of-{self.n_shards}"

    def _receipt(self, file: TaskFile) -> Any:
        name = self._receipt_name(file)
        if self.known is not None:
            return self.known.receipts.get(name)
        content = self.destination.read(name)
        return None if content is None else _parsed(content)

    def _receipt_name(self, file: TaskFile) -> str:
        return f"{OWN_FOLDER}/receipts/{self.flow}/{file.relative}.json"

    def _there(self, name: str) -> StoredFile | None:
        return self.destination.find(name) if self.known is None else self.known.files.get(name)

    def _identity(self, file: TaskFile) -> dict[str, Any]:
        if file.stored is not None:
            return file.stored.identity()
        status = file.path.stat()
        return StoredFile(status.st_size, status.st_mtime_ns, "").identity()

    def _output_names(self, file: TaskFile) -> list[str]:
        """Returns the outputs of a file below their folder, the one that stands for all first."""
        return [path.absolute().relative_to(self.destination.mirror).as_posix() for path in self.work.outputs(file)]

    def _first_output(self, file: TaskFile) -> str:
        return self.destination.url_to(self._output_names(file)[0])

    @contextmanager
    def _with_urls_in_errors(self) -> Iterator[None]:
        """Replaces mirrors by their URLs in messages, as people know only these."""
        try:
            yield
        except MlfilterError as error:
            for store in (self.destination, *self.others, *([self.inputs] if self.inputs else [])):
                if not store.is_here:
                    error.args = tuple(
                        part.replace(str(store.mirror), store.url) if isinstance(part, str) else part
                        for part in error.args
                    )
            raise


class _Ahead:
    """A file that is staged in the background, for any worker."""

    def __init__(self, inputs: StoreFolder, name: str, taken: Path) -> None:
        self._path, self._taken = inputs.mirror / name, taken
        self._thread = threading.Thread(target=_stage_quietly, args=(inputs, name), name="staging", daemon=True)
        self._thread.start()

    def is_waiting(self) -> bool:
        """Returns whether the file is still staged, or lies there and no worker has taken it."""
        return self._thread.is_alive() or (self._path.exists() and not self._taken.exists())


# The file that this process stages ahead: at most one, beside the one that is read.
_ahead: list[_Ahead] = []


@functools.lru_cache(maxsize=1)
def _names_to_do(path: Path, mtime_ns: int) -> list[str]:
    names: list[str] = orjson.loads(path.read_bytes())
    return names


def _stage_quietly(inputs: StoreFolder, name: str) -> None:
    try:
        inputs.stage(name)
    except (MlfilterError, OSError) as error:  # the file's task reports it
        _log.info("%s was not staged ahead: %s", inputs.url_to(name), error)


def _parsed(content: bytes) -> Any:
    try:
        receipt = orjson.loads(content)
    except ValueError:
        return None
    return receipt if isinstance(receipt, dict) else None


def _is_same(made: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Returns whether two versions of a file are the same: by what the store calls them, otherwise by size and time."""
    if made["version"] and now["version"]:
        return bool(made["version"] == now["version"] and made["bytes"] == now["bytes"])
    return dict(made) == dict(now)
