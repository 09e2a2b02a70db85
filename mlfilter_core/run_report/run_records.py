"""The runs that log folders describe."""

import json
import logging
import shlex
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.files.claims import is_claimed
from mlfilter_core.job_kinds import kind_of_flow
from mlfilter_core.run_report.facts import FileFacts, RunFacts, State, WorkerFacts
from mlfilter_core.run_report.throughput import rates_of
from mlfilter_core.work.run_log import EARLIER, JOB, ROWS, RUN, writable

FAILED, SKIPPED = "failed", "skipped"
MAX_JOB_BYTES = 1 << 20

_log = logging.getLogger(__name__)
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
    files: Sequence[FileFacts]
    output_dir: str = ""


def read_run_records(output_dir: Path, own_logs: Path, other_logs: Sequence[Path] = ()) -> list[RunRecord]:
    """Returns the runs that wrote to an output folder, the latest first.

    Unreadable parts are skipped, such as an incomplete line of a killed run.

    Args:
        output_dir: The folder.
        own_logs: Folder with logs of its runs only; it may have been renamed or copied with the outputs.
        other_logs: Folders that may also contain logs of runs with other output folders.
    """
    others = [folder for log in other_logs for folder in _run_folders(log) if _wrote_to(output_dir, folder)]
    folders = {folder.resolve(): folder for folder in (*_run_folders(own_logs), *others)}
    records: dict[tuple[str, float | None], RunRecord] = {}
    for folder in folders.values():
        record = read_run_record(folder)
        if not (folder / RUN).exists() and all(file.status == SKIPPED for file in record.files):
            continue  # every file was finished before the run
        records.setdefault((record.run.name, record.run.started), record)  # a copy of the folder is the same run
    return sorted(records.values(), key=lambda record: -(record.run.started or 0.0))


def read_run_record(folder: Path) -> RunRecord:
    """Returns the run that a log folder describes."""
    about = _json_object(folder / RUN)
    name = folder.name if not folder.name.startswith(EARLIER) else f"{folder.parent.name}/{folder.name}"
    rows = [row for row in _rows(folder / ROWS) if isinstance(row.get("file"), str)]
    flow = str(about.get("flow") or (folder.name if not about else "").rpartition("-")[0].partition("-")[0] or "run")
    files = [_file(row, flow, name) for row in rows]
    done = [(row, file) for row, file in zip(rows, files, strict=True) if file.status not in (FAILED, SKIPPED)]
    started = _number(about.get("started")) or None
    last = max([file.started + file.seconds for _, file in done], default=0.0)
    state = _state(folder, about)
    seconds = _number(about.get("seconds"))
    if not seconds and started is not None:
        seconds = (time.time() if state == "running" else max(last, started)) - started
    busy_s, waited_s = _stages([row for row, _ in done])
    finished = [file for _, file in done]
    n_failed = sum(file.status == FAILED for file in files)
    run = RunFacts(
        name=name,
        flow=flow,
        state=state,
        started=started or min((file.started for file in finished if file.started), default=None),
        seconds=seconds,
        files=int(_number(about.get("files"))) or len(files),
        finished_before=int(_number(about.get("finished_before"))),
        done=len(finished),
        failed=n_failed,
        documents=sum(file.n_new for file in finished),
        tokens=sum(file.n_new_tokens for file in finished),
        error=str(about.get("error") or ""),
        workers=_workers(finished),
        busy_s=busy_s,
        waited_s=waited_s,
        # Without each worker's own measurements, which are in brackets.
        encoders=sorted({str(row["encoder"]).partition(" (")[0] for row, _ in done if row.get("encoder")}),
        rates=rates_of(finished),
        logs=str(folder),
        command=_command(flow, folder) if (folder / JOB).exists() else "",
        job=_text(folder / JOB),
        versions={str(key): str(value) for key, value in dict(about.get("versions") or {}).items()},
    )
    return RunRecord(run, files, str(about.get("output_dir") or ""))


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


def _file(row: Row, flow: str, run: str) -> FileFacts:
    speed = row.get("documents/s")
    return FileFacts(
        file=writable(row["file"]),
        flow=flow,
        run=run,
        status=str(row.get("status", "")),
        **{name: int(_number(row.get(name))) for name in ("documents", "rejected", "truncated", "tokens")},
        seconds=_number(row.get("seconds")),
        documents_per_s=speed if isinstance(speed, (int, float)) else None,
        started=_number(row.get("started")),
        worker=writable(str(row.get("worker") or "")),
        output=writable(str(row.get("output", ""))),
        reason=writable(str(row.get("reason", ""))),
        resumed=int(_number(row.get("resumed"))),
        kept=int(_number(row["kept"])) if "kept" in row else None,
    )


def _workers(files: Sequence[FileFacts]) -> list[WorkerFacts]:
    by_name: dict[str, list[FileFacts]] = defaultdict(list)
    for file in files:
        if file.worker and file.started:
            by_name[file.worker].append(file)
    return [
        WorkerFacts(
            name,
            len(own),
            sum(file.n_new for file in own),
            sum(file.n_new_tokens for file in own),
            sum(file.seconds for file in own),
            min(file.started for file in own),
            max(file.started + file.seconds for file in own),
        )
        for name, own in sorted(by_name.items())
    ]


def _stages(rows: Sequence[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns seconds of work and of waiting by stage: the stages of a file run side by side for all of its time."""
    busy, waited = defaultdict[str, float](float), defaultdict[str, float](float)
    for row in rows:
        own = row.get("waited")
        for stage, value in own.items() if isinstance(own, dict) else ():
            seconds = min(_number(value), _number(row.get("seconds")))
            waited[str(stage)] += seconds
            busy[str(stage)] += _number(row.get("seconds")) - seconds
    return dict(busy), dict(waited)


def _rows(path: Path) -> Iterator[Row]:
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    _log.warning("%s has a line that is not JSON, as a killed run leaves; it is left out", path)
                    continue
                if isinstance(row, dict):
                    yield row
    except FileNotFoundError:
        return


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


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
