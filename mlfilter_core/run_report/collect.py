"""The facts of a report, collected from an output folder and its logs."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from mlfilter_core.errors import ConfigError
from mlfilter_core.run_report.facts import FilterFacts, OutputFacts, RunFacts
from mlfilter_core.run_report.file_rows import RecordedFiles
from mlfilter_core.run_report.known_outputs import DEFAULT_GROUP
from mlfilter_core.run_report.limit_examples import limit_examples
from mlfilter_core.run_report.output_totals import OutputTotals
from mlfilter_core.run_report.read_outputs import FoundOutputs, read_outputs
from mlfilter_core.run_report.rejected_examples import rejects_by_reason
from mlfilter_core.run_report.run_records import read_run_records
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import LOGS_DIR
from mlfilter_core.wording import plural

REPORT_DIR, FACTS, PAGE, ROWS = "report", "report.json", "index.html", "files.jsonl"


def collect(
    output_dir: Path,
    logs: Sequence[Path] = (),
    group: str | None = None,
    remembers: bool = False,
    most_opened: int | None = None,
) -> OutputFacts:
    """Returns the facts that an output folder and its logs contain.

    Of more than `MOST_READ` outputs, those are opened of which it is not known what they state, and a sample for the
    statistics.

    Args:
        output_dir: Output folder of one or several jobs; they may be running.
        logs: Folders of logs besides `<output_dir>/logs`, such as the `logging_dir` of a job.
        group: Group of the HDF5 files; None takes the group of the latest job.
        remembers: Whether to remember what opened outputs state.
        most_opened: Largest number of outputs to open beside the sample; None for all.

    Raises:
        ConfigError: There is neither an output nor a record of a run.
        TooManyToOpenError: More than `most_opened` outputs would have to be opened.
    """
    records = read_run_records(output_dir, output_dir / LOGS_DIR, [*logs, *_known_logs(output_dir)])
    runs = [record.run for record in records]
    recorded = RecordedFiles(records)
    group = group or _group_of(runs)
    try:
        found = read_outputs(VerifyRequest(output_dir, group), recorded, remembers, most_opened)
    except ConfigError as error:
        if not records:
            raise ConfigError(
                f"nothing to report in {output_dir}: no outputs, and no logs of runs; give the output_dir of a job, or "
                "run one first, such as `ml_filter embed`"
            ) from error
        found = FoundOutputs(OutputTotals())
    outputs, files = found.totals, recorded.with_others(found.unrecorded)
    encoder = outputs.encoder.made_by if outputs.encoder else {}
    clustered, deduplicated = outputs.clustered.facts(output_dir), outputs.deduplicated.facts(output_dir)
    notices = [*_notices_of_runs(runs), *_notices_of_failures(recorded.n_failed()), *found.notices()]
    notices += [
        *outputs.notices(),
        *(notice for each in (clustered, deduplicated) if each for notice in each.notices()),
    ]
    return OutputFacts(
        output_dir=str(output_dir.absolute()),
        made=time.time(),
        notices=notices,
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
        filtered=_with_examples(found, output_dir, group),
        clustered=clustered,
        deduplicated=deduplicated,
        n_truncated=outputs.n_truncated,
        samples=outputs.samples,
        n_files=len(files),
    )


def _with_examples(found: FoundOutputs, output_dir: Path, group: str) -> FilterFacts | None:
    filtered = found.totals.filtered.facts()
    if filtered is None:
        return None
    examples = limit_examples(output_dir, filtered, found.with_examples, found.embeddings, group)
    return replace(filtered, examples=examples)


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


def _notices_of_failures(n_failed: Mapping[str, int]) -> list[str]:
    return [f"{plural(n, 'file')} of {flow} failed: see Failed files" for flow, n in n_failed.items() if n]


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
