"""The facts of a report, collected from an output folder and its logs."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from mlfilter_core.config.embedding import UNKEPT_DIR
from mlfilter_core.errors import ConfigError
from mlfilter_core.run_report.facts import FileFacts, FilterFacts, OutputFacts, RunFacts
from mlfilter_core.run_report.limit_examples import limit_examples
from mlfilter_core.run_report.output_totals import OutputTotals
from mlfilter_core.run_report.rejected_examples import rejects_by_reason
from mlfilter_core.run_report.run_records import FAILED, SKIPPED, RunRecord, read_run_records
from mlfilter_core.verification.embedding_files import find_embeddings
from mlfilter_core.verification.filtered_files import find_filtered
from mlfilter_core.verification.output_kinds import VerifyRequest, output_kinds
from mlfilter_core.verification.stated_facts import StatedFacts, UnreadableOutputError
from mlfilter_core.verification.verify import LOGS_DIR, find_outputs
from mlfilter_core.wording import plural

DEFAULT_GROUP = "train"
REPORT_DIR, FACTS, PAGE = "report", "report.json", "index.html"
ON_DISK = "on disk"


def collect(output_dir: Path, logs: Sequence[Path] = (), group: str | None = None) -> OutputFacts:
    """Returns the facts that an output folder and its logs contain.

    Args:
        output_dir: Output folder of one or several jobs; they may be running.
        logs: Folders of logs besides `<output_dir>/logs`, such as the `logging_dir` of a job.
        group: Group of the HDF5 files; None takes the group of the latest job.

    Raises:
        ConfigError: There is neither an output nor a record of a run.
    """
    records = read_run_records(output_dir, output_dir / LOGS_DIR, [*logs, *_known_logs(output_dir)])
    runs = [record.run for record in records]
    outputs, on_disk, notices = OutputTotals(), list[FileFacts](), list[str]()
    group = group or _group_of(runs)
    try:
        outputs, on_disk, notices = _read_outputs(output_dir, group)
    except ConfigError as error:
        if not records:
            raise ConfigError(
                f"nothing to report in {output_dir}: no outputs, and no logs of runs; give the output_dir of a job, or "
                "run one first, such as `ml_filter embed`"
            ) from error
    files = _files(records, on_disk, output_dir)
    encoder = outputs.encoder.made_by if outputs.encoder else {}
    return OutputFacts(
        output_dir=str(output_dir.absolute()),
        made=time.time(),
        notices=[*_notices_of_runs(runs), *_notices_of_failures(files), *notices, *outputs.notices()],
        totals=outputs.totals,
        encoder=encoder,
        heads=outputs.heads.made_by if outputs.heads else {},
        document_tokens=outputs.document_tokens,
        max_length=encoder.get("max_text_length", encoder.get("max_length")),
        rejects=rejects_by_reason(output_dir, outputs.rejected_by_reason, outputs.rejects_files),
        scores=outputs.heads.scores if outputs.heads else None,
        runs=runs,
        files=files,
        trained=outputs.trained,
        filtered=_with_examples(outputs.filtered.facts(), on_disk, output_dir, group),
    )


def _with_examples(
    filtered: FilterFacts | None, on_disk: Sequence[FileFacts], output_dir: Path, group: str
) -> FilterFacts | None:
    if filtered is None:
        return None
    names = {flow: dict[str, str]() for flow in ("embed", "filter")}
    for file in on_disk:
        if file.flow in names:
            own = find_embeddings(file.output) if file.flow == "embed" else find_filtered(file.output)
            names[file.flow] |= {own.name: own.path} if own else {}
    # The same name in another folder: `a/x` of `embeddings/a/x`.
    embeddings = {name.partition("/")[2]: path for name, path in names["embed"].items()}
    examples = limit_examples(output_dir, filtered, sorted(names["filter"]), embeddings, group)
    return replace(filtered, examples=examples)


def _read_outputs(output_dir: Path, group: str) -> tuple[OutputTotals, list[FileFacts], list[str]]:
    """Returns the sums over the outputs, a row for each, and notices of those that cannot be read."""
    folder = find_outputs(output_dir)
    request = VerifyRequest(output_dir, group)
    totals = OutputTotals(sum(folder.unfinished.values()))
    rows, unreadable = [], []
    counted: set[tuple[str, str]] = set()
    for flow, kind in output_kinds().items():
        sources: set[tuple[str, str]] = set()
        for output in folder.outputs[flow]:
            try:
                stated = kind.read(output.path, request)
            except UnreadableOutputError as error:
                unreadable.append(str(error))
                continue
            totals.add(output.name, stated, is_counted=stated.source in counted)
            rows.append(_row_on_disk(flow, output.path, stated))
            if stated.source is not None:
                sources.add(stated.source)
        counted |= sources
    notices = []
    if unreadable:
        verb = "is" if len(unreadable) == 1 else "are"
        notices = [f"{plural(len(unreadable), 'file')} cannot be read and {verb} left out: {unreadable[0]}"]
    return totals, rows, notices


def _row_on_disk(flow: str, path: str, stated: StatedFacts) -> FileFacts:
    # The counts of an annotated file are those of the source that was embedded.
    counts = stated.counts if stated.heads is None else {}
    kept = stated.n_rows if stated.filtered is not None else None
    n_documents = int(stated.filtered.report["documents"]) if stated.filtered is not None else stated.n_rows
    rejected, truncated, tokens = (int(counts.get(name, 0)) for name in ("rejected", "truncated", "tokens"))
    return FileFacts(path, flow, "", ON_DISK, n_documents, rejected, truncated, tokens, output=path, kept=kept)


def _files(records: Sequence[RunRecord], on_disk: Iterable[FileFacts], output_dir: Path) -> list[FileFacts]:
    """Returns one row for each file and flow: the latest run that did something with the file.

    A run that skipped the file found it finished, even if an earlier run had failed.
    """
    rows: dict[tuple[str, str], FileFacts] = {}
    for record in records:  # the latest first
        for file in record.files:
            key = (record.run.flow, file.file)
            if key not in rows or (rows[key].status == SKIPPED and file.status != FAILED):
                rows[key] = replace(file, output=_relative(file.output, record.output_dir or output_dir))
    recorded = {row.output for row in rows.values() if row.status != FAILED}
    rows |= {(row.flow, row.file): row for row in on_disk if row.output not in recorded}
    return [rows[key] for key in sorted(rows)]


def _notices_of_runs(runs: Sequence[RunFacts]) -> list[str]:
    if not runs:
        return [
            "no record of a run that wrote to this folder: an earlier release made it, or its logs are in another "
            "logging_dir; speeds are unknown"
        ]
    notices = [notice for run in runs if not _was_repeated(run, runs) and (notice := run.notice())]
    for flow, n in sorted(Counter(run.flow for run in runs if run.done).items()):
        if n > 1:
            notices.append(
                f"{n} runs of {flow} wrote to this folder: totals include all of them; speeds are those of the latest "
                "run that finished a file"
            )
    return notices


def _was_repeated(run: RunFacts, runs: Sequence[RunFacts]) -> bool:
    """Returns whether a later run of the same flow finished."""
    if run.state == "running" or run.started is None:
        return False
    ended = run.started + run.seconds
    later = (other for other in runs if other.flow == run.flow and (other.started or 0.0) >= ended and other is not run)
    return any(other.state.startswith("finished") for other in later)


def _notices_of_failures(files: Sequence[FileFacts]) -> list[str]:
    n_failed = Counter(file.flow for file in files if file.status == FAILED)
    return [f"{plural(n, 'file')} of {flow} failed: see Failed files" for flow, n in sorted(n_failed.items())]


def _known_logs(output_dir: Path) -> list[Path]:
    """Returns the folders of logs in an earlier report, whose command may have named them."""
    try:
        known = json.loads((output_dir / REPORT_DIR / FACTS).read_bytes())
        return sorted({Path(run["logs"]).parent for run in known["runs"]})
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _group_of(runs: Sequence[RunFacts]) -> str:
    """Returns the HDF5 group of the latest job that names one."""
    for run in runs:
        try:
            return str(yaml.safe_load(run.job)["params"]["hdf5_dataset_name"])
        except (yaml.YAMLError, KeyError, TypeError):
            continue
    return DEFAULT_GROUP


def _relative(output: str, output_dir: str | Path) -> str:
    """Returns an output relative to the output folder; `output_dir` may be absolute where the output is not."""
    folder, parts = Path(output_dir).absolute().parts, Path(output).parts
    n_shared = next((n for n in range(len(parts) - 1, 0, -1) if folder[-n:] == parts[:n]), 0)
    if not n_shared:
        return output
    relative = "/".join(parts[n_shared:])
    return output if relative.startswith(f"{UNKEPT_DIR}/") else relative
