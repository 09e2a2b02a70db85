"""The runs that log folders describe."""

import json
import resource
import shlex
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.files.claims import is_claimed
from mlfilter_core.job_kinds import kind_of_flow
from mlfilter_core.run_report.facts import FileFacts, RunFacts, State, WorkerFacts
from mlfilter_core.run_report.run_files import FAILED, SKIPPED, RunFiles, number
from mlfilter_core.run_report.throughput import TimedFiles
from mlfilter_core.work.run_log import EARLIER, JOB, ROWS, RUN

MAX_JOB_BYTES = 1 << 20

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run, and the results of its files.

    Attributes:
        run: The run.
        files: Results of its files.
        output_dir: Output folder at that time, which may have been renamed or copied since; empty where unknown.
    """

    run: RunFacts
    files: RunFiles
    output_dir: str = ""


def read_run_records(output_dir: Path, own_logs: Path, other_logs: Sequence[Path] = ()) -> list[RunRecord]:
    """Returns the runs that wrote to an output folder, the latest first.

    Unreadable parts are skipped, such as an incomplete line of a killed run.

    Args:
        output_dir: The folder.
        own_logs: Folder with logs of its runs only; it may have been renamed or copied with the outputs.
        other_logs: Folders that may also contain logs of runs with other output folders.
    """
    _allow_open_files()
    others = [folder for log in other_logs for folder in _run_folders(log) if _wrote_to(output_dir, folder)]
    folders = {folder.resolve(): folder for folder in (*_run_folders(own_logs), *others)}
    records: dict[tuple[str, float | None], RunRecord] = {}
    for folder in folders.values():
        record = read_run_record(folder, output_dir)
        if not (folder / RUN).exists() and not (record.run.done or record.run.failed):
            continue  # every file was finished before the run
        records.setdefault((record.run.name, record.run.started), record)  # a copy of the folder is the same run
    return sorted(records.values(), key=lambda record: -(record.run.started or 0.0))


def _allow_open_files() -> None:
    """Raises this process's limit of open files as far as it may: the rows of each run stay open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def read_run_record(folder: Path, default_dir: Path) -> RunRecord:
    """Returns the run that a log folder describes.

    Args:
        folder: The log folder.
        default_dir: Output folder of a run that does not name its own.
    """
    about = _json_object(folder / RUN)
    name = folder.name if not folder.name.startswith(EARLIER) else f"{folder.parent.name}/{folder.name}"
    flow = str(about.get("flow") or (folder.name if not about else "").rpartition("-")[0].partition("-")[0] or "run")
    output_dir = str(about.get("output_dir") or "")
    files, totals = RunFiles(folder / ROWS, flow, name, output_dir or str(default_dir)), _Totals()
    for row, file in files.read():
        totals.add(row, file)
    files.end()
    started = number(about.get("started")) or None
    state = _state(folder, about)
    seconds = number(about.get("seconds"))
    if not seconds and started is not None:
        seconds = (time.time() if state == "running" else max(totals.last, started)) - started
    run = RunFacts(
        name=name,
        flow=flow,
        state=state,
        started=started or totals.first,
        seconds=seconds,
        files=int(number(about.get("files"))) or len(files),
        finished_before=int(number(about.get("finished_before"))),
        done=totals.n_done,
        failed=totals.n_failed,
        documents=totals.documents,
        tokens=totals.tokens,
        error=str(about.get("error") or ""),
        workers=totals.workers(),
        busy_s=dict(totals.busy_s),
        waited_s=dict(totals.waited_s),
        encoders=sorted(totals.encoders),
        rates=totals.timed.rates(),
        logs=str(folder),
        command=_command(flow, folder) if (folder / JOB).exists() else "",
        job=_text(folder / JOB),
        versions={str(key): str(value) for key, value in dict(about.get("versions") or {}).items()},
    )
    return RunRecord(run, files, output_dir)


def _wrote_to(output_dir: Path, folder: Path) -> bool:
    written = _json_object(folder / RUN).get("output_dir")
    return isinstance(written, str) and Path(written).resolve() == output_dir.resolve()


def _run_folders(logs: Path) -> Iterator[Path]:
    for pattern in ("*", f"*/{EARLIER}*"):
        yield from (path for path in sorted(logs.glob(pattern)) if (path / ROWS).exists() or (path / RUN).exists())


def _state(folder: Path, about: Row) -> State:
    if not about:
        return "finished"  # an earlier release, which wrote its rows at the end
    if about.get("error"):
        return "ended by an error"
    if "seconds" in about:
        return "finished, some files failed" if about.get("failed") else "finished"
    is_alive = is_claimed(folder / RUN) if not folder.name.startswith(EARLIER) else False
    return {True: "running", False: "killed", None: "without an end"}[is_alive]  # type: ignore[return-value]


def _command(flow: str, folder: Path) -> str:
    kind = kind_of_flow(flow)
    words = ["ml_filter", kind.command_name if kind else flow, "--config", str(folder / JOB)]
    return shlex.join(words) + " --set params.output_dir=ANOTHER_FOLDER"


class _Totals:
    """Sums over the files that a run finished."""

    def __init__(self) -> None:
        self.n_done = self.n_failed = self.documents = self.tokens = 0
        self.first: float | None = None
        self.last = 0.0
        self.busy_s, self.waited_s = defaultdict[str, float](float), defaultdict[str, float](float)
        self.encoders: set[str] = set()
        self.timed = TimedFiles()
        self._workers: dict[str, WorkerFacts] = {}

    def add(self, row: Row, file: FileFacts) -> None:
        if file.status in (FAILED, SKIPPED):
            self.n_failed += file.status == FAILED
            return
        self.n_done += 1
        self.documents += file.n_new
        self.tokens += file.n_new_tokens
        self.last = max(self.last, file.started + file.seconds)
        if file.started:
            self.first = min(self.first or file.started, file.started)
        if row.get("encoder"):  # without each worker's own measurements, which are in brackets
            self.encoders.add(str(row["encoder"]).partition(" (")[0])
        self._add_stages(row.get("waited"), file.seconds)
        self._add_worker(file)
        self.timed.add(file)

    def workers(self) -> list[WorkerFacts]:
        return [worker for _, worker in sorted(self._workers.items())]

    def _add_stages(self, waited: Any, seconds: float) -> None:
        """Adds work and waiting of each stage: the stages of a file run side by side for all of its time."""
        for stage, value in waited.items() if isinstance(waited, dict) else ():
            own = min(number(value), seconds)
            self.waited_s[str(stage)] += own
            self.busy_s[str(stage)] += seconds - own

    def _add_worker(self, file: FileFacts) -> None:
        if not file.worker or not file.started:
            return
        end, new = file.started + file.seconds, (file.n_new, file.n_new_tokens)
        known = self._workers.get(file.worker)
        if known is None:
            self._workers[file.worker] = WorkerFacts(file.worker, 1, *new, file.seconds, file.started, end)
            return
        self._workers[file.worker] = WorkerFacts(
            *(file.worker, known.files + 1, known.documents + new[0], known.tokens + new[1]),
            *(known.busy_s + file.seconds, min(known.first, file.started), max(known.last, end)),
        )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MAX_JOB_BYTES)
    except FileNotFoundError:
        return ""
