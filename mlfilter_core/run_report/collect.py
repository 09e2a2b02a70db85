"""An output folder to the facts of its report."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from mlfilter_core.config.embedding import UNKEPT_DIR
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding_store.fingerprint import FIELDS
from mlfilter_core.errors import ConfigError
from mlfilter_core.run_report.facts import FileFacts, OutputFacts, RunFacts, Totals
from mlfilter_core.run_report.outputs import (
    COUNTS,
    OutputFile,
    UnreadableOutputError,
    is_annotated,
    read_annotated,
    read_embeddings,
)
from mlfilter_core.run_report.rejected_examples import rejects_by_reason
from mlfilter_core.run_report.run_records import FAILED, SKIPPED, RunRecord, read_run_records
from mlfilter_core.tallies.histogram import Histogram
from mlfilter_core.tallies.score_statistics import ScoreStatistics
from mlfilter_core.verification.embedding_files import REJECTED_DIR, rejects_of, without_suffix
from mlfilter_core.verification.verify import LOGS_DIR, find_outputs

DEFAULT_GROUP = "train"
REPORT_DIR, FACTS, PAGE = "report", "report.json", "index.html"
ON_DISK = "on disk"


def collect(output_dir: Path, logs: Sequence[Path] = (), group: str | None = None) -> OutputFacts:
    """Returns what an output folder and its logs say.

    Args:
        output_dir: Of one or several jobs; they may still go on.
        logs: Folders of logs besides `<output_dir>/logs`, as `logging_dir` of a job.
        group: Of the HDF5 files; None takes that of the latest job.

    Raises:
        ConfigError: There is neither an output nor a record of a run.
    """
    records = read_run_records(output_dir, output_dir / LOGS_DIR, [*logs, *_known_logs(output_dir)])
    runs = [record.run for record in records]
    outputs = _Outputs(output_dir, group or _group_of(runs))
    try:
        outputs.read()
    except ConfigError as error:
        if not records:
            raise ConfigError(
                f"nothing to report of in {output_dir}: no outputs, and no logs of runs; give the output_dir of a job"
            ) from error
    rejects = rejects_by_reason(output_dir, outputs.by_reason, outputs.rejects_files)
    files = _files(records, outputs.files, output_dir)
    return OutputFacts(
        output_dir=str(output_dir.absolute()),
        made=time.time(),
        notices=[*_notices_of_runs(runs), *_notices_of_failures(files), *outputs.notices()],
        totals=outputs.totals,
        encoder=outputs.encoder,
        heads=outputs.heads,
        document_tokens=outputs.document_tokens,
        max_length=outputs.encoder.get("max_length"),
        rejects=rejects,
        scores=outputs.scores,
        runs=runs,
        files=files,
    )


@dataclass
class _Outputs:
    """Adds up what the outputs of a folder say, one after another: their histograms and requests are not kept."""

    output_dir: Path
    group: str
    totals: Totals = field(default_factory=Totals)
    document_tokens: Histogram = field(default_factory=Histogram)
    by_reason: Counter[str] = field(default_factory=Counter)
    rejects_files: list[tuple[str, Mapping[str, int]]] = field(default_factory=list)
    files: list[OutputFile] = field(default_factory=list)
    _unreadable: list[str] = field(default_factory=list)
    _encoders: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _n_by_encoder: Counter[str] = field(default_factory=Counter)
    _scores: dict[str, ScoreStatistics] = field(default_factory=dict)
    _heads: dict[str, Mapping[str, str]] = field(default_factory=dict)
    _n_by_scoring: Counter[str] = field(default_factory=Counter)
    _n_without_tokens: int = 0
    _n_without_scores: int = 0
    _n_of_others: int = 0
    _counted: set[tuple[str, str]] = field(default_factory=set)

    @property
    def encoder(self) -> Mapping[str, Any]:
        """Of the most files."""
        return self._encoders[self._n_by_encoder.most_common(1)[0][0]] if self._encoders else {}

    @property
    def heads(self) -> Mapping[str, str]:
        """Of the most files."""
        return self._heads[self._n_by_scoring.most_common(1)[0][0]] if self._heads else {}

    @property
    def scores(self) -> ScoreStatistics | None:
        """Of the heads of the most files."""
        if not self._n_by_scoring:
            return None
        return self._scores.get(self._n_by_scoring.most_common(1)[0][0])

    def read(self) -> None:
        """Reads the folder.

        Raises:
            ConfigError: There are no outputs.
        """
        folder = find_outputs(self.output_dir)
        self.totals = replace(self.totals, unfinished_files=sum(folder.unfinished.values()))
        # Embeddings first: what an annotated file says of its source counts only where they did not stay.
        for relative in (*folder.embeddings, *folder.annotated):
            try:
                if is_annotated(relative):
                    self._add_annotated(read_annotated(self.output_dir, relative))
                else:
                    self._add_embeddings(read_embeddings(self.output_dir, relative, self.group))
            except UnreadableOutputError as error:
                self._unreadable.append(str(error))

    def notices(self) -> list[str]:
        notices = []
        if self._unreadable:
            n = len(self._unreadable)
            notices.append(
                f"{_files_of(n)} cannot be read and {'is' if n == 1 else 'are'} left out: {self._unreadable[0]}"
            )
        if len(self._encoders) > 1:
            notices.append(
                f"the embeddings are of {len(self._encoders)} encoders or settings: totals are over all of them; the "
                "encoder shown is that of the most files"
            )
        if len(self._n_by_scoring) > 1:
            n_others = self._n_by_scoring.total() - self._n_by_scoring.most_common(1)[0][1]
            notices.append(
                f"the annotated files are of {len(self._n_by_scoring)} sets of heads: the scores shown are those of "
                f"the most files; {_files_of(n_others)} left out"
            )
        if self._n_of_others:
            notices.append(
                f"{_files_of(self._n_of_others)} of embeddings made by another tool: their lines are unknown"
            )
        if self._n_without_tokens:
            notices.append(
                f"{_files_of(self._n_without_tokens)} made by an earlier release, without the lengths of documents; "
                "the plot of lengths leaves them out"
            )
        if self._n_without_scores:
            notices.append(
                f"{_files_of(self._n_without_scores)} annotated by an earlier release, without statistics of their "
                "scores; the plots of scores leave them out"
            )
        if not self.totals.annotated_files:
            notices.append("there are no annotated files yet")
        if self.totals.unfinished_files:
            notices.append(f"{_files_of(self.totals.unfinished_files)} unfinished, of runs that go on or were killed")
        return notices

    def _add_embeddings(self, file: OutputFile) -> None:
        self.files.append(_row_of(file))
        self.totals = replace(self.totals, output_bytes=self.totals.output_bytes + file.n_bytes)
        if file.source is None:
            self._n_of_others += 1
            self.totals = replace(self.totals, documents=self.totals.documents + file.n_rows)
            return
        self._counted.add(file.source)
        self._add_counts(file)

    def _add_annotated(self, file: OutputFile) -> None:
        self.files.append(_row_of(file))
        totals = self.totals
        self.totals = replace(
            totals,
            output_bytes=totals.output_bytes + file.n_bytes,
            annotated_files=totals.annotated_files + 1,
            annotated=totals.annotated + file.n_rows,
        )
        if file.source is not None and file.counts and file.source not in self._counted:
            self._add_counts(file)
        scoring = json.dumps([file.heads, file.scores.names if file.scores else None], sort_keys=True)
        if file.scores is None:
            self._n_without_scores += 1
            return
        self._n_by_scoring[scoring] += 1
        self._heads[scoring] = file.heads
        known = self._scores.get(scoring)
        self._scores[scoring] = file.scores if known is None else known + file.scores

    def _add_counts(self, file: OutputFile) -> None:
        assert file.source is not None
        totals = self.totals
        sums = {name: getattr(totals, name) + int(file.counts[name]) for name in COUNTS}
        self.totals = replace(totals, embedded_files=totals.embedded_files + 1, **sums)
        by_reason = file.counts.get("rejected_by_reason") or {}
        self.by_reason.update(by_reason)
        if by_reason:
            place = rejects_of(file.relative, file.source[0])
            if is_annotated(file.relative):  # and the embeddings did not stay
                place = f"{REJECTED_DIR}/{without_suffix(file.source[0], SOURCE_SUFFIXES)}.jsonl"
            if place is not None:
                self.rejects_files.append((place, by_reason))
        if file.document_tokens is None:
            self._n_without_tokens += 1
        else:
            self.document_tokens += file.document_tokens
        made_by = json.dumps({name: file.encoder.get(name) for name in FIELDS}, sort_keys=True)
        self._encoders.setdefault(made_by, file.encoder)
        self._n_by_encoder[made_by] += 1


def _row_of(file: OutputFile) -> OutputFile:
    """Returns what the table of files needs of an output."""
    counts = {name: file.counts[name] for name in ("rejected", "truncated", "tokens") if name in file.counts}
    return replace(file, counts=counts, scores=None, document_tokens=None, encoder={}, heads={})


def _files(records: Sequence[RunRecord], outputs: Iterable[OutputFile], output_dir: Path) -> list[FileFacts]:
    """Returns one row for each file and flow: what the latest run did with it that did something.

    A run that skipped it found it finished, whatever failed before.
    """
    rows: dict[tuple[str, str], FileFacts] = {}
    for record in records:  # the latest first
        for file in record.files:
            key = (record.run.flow, file.file)
            if key not in rows or (rows[key].status == SKIPPED and file.status != FAILED):
                rows[key] = replace(file, output=_relative(file.output, output_dir))
    told = {row.output for row in rows.values() if row.status != FAILED}
    for output in outputs:
        if output.relative not in told:
            flow = "annotate" if is_annotated(output.relative) else "embed"
            counts = output.counts if flow == "embed" else {}
            rejected, truncated, tokens = (int(counts.get(name, 0)) for name in ("rejected", "truncated", "tokens"))
            rows[flow, output.relative] = FileFacts(
                *(output.relative, flow, "", ON_DISK, output.n_rows, rejected, truncated, tokens),
                output=output.relative,
            )
    return [rows[key] for key in sorted(rows)]


def _notices_of_runs(runs: Sequence[RunFacts]) -> list[str]:
    notices = []
    n_runs = Counter(run.flow for run in runs if run.done)
    for run in runs:
        if _is_made_up_for(run, runs):
            continue
        if run.state == "going on":
            notices.append(
                f"{run.name} is going on: what follows is as far as it has come; make the report again later"
            )
        elif run.state == "killed":
            notices.append(f"{run.name} was killed before its end; run it again, and it takes up what is missing")
        elif run.state == "without an end":
            notices.append(f"{run.name} has no end in its record: it goes on elsewhere, or it was killed")
        elif run.state == "ended by an error":
            notices.append(f"{run.name} ended by an error: {run.error}")
    for flow, n in sorted(n_runs.items()):
        if n > 1:
            notices.append(
                f"{n} runs of {flow} wrote to this folder: totals are over all; plots of speed are of the latest that "
                "finished a file"
            )
    if not runs:
        notices.append(
            "there are no records of runs that wrote to this folder, as of another release or in another logging_dir: "
            "no speeds"
        )
    return notices


def _is_made_up_for(run: RunFacts, runs: Sequence[RunFacts]) -> bool:
    """Tells whether a run of the same flow that began after this one came to its end."""
    if run.state == "going on" or run.started is None:
        return False
    ended = run.started + run.seconds
    later = (other for other in runs if other.flow == run.flow and (other.started or 0.0) >= ended and other is not run)
    return any(other.state.startswith("finished") for other in later)


def _notices_of_failures(files: Sequence[FileFacts]) -> list[str]:
    n_failed = Counter(file.flow for file in files if file.status == FAILED)
    return [f"{_files_of(n)} of {flow} failed: see Failed files" for flow, n in sorted(n_failed.items())]


def _known_logs(output_dir: Path) -> list[Path]:
    """Returns the folders of logs that an earlier report knew; the job may have said where."""
    try:
        known = json.loads((output_dir / REPORT_DIR / FACTS).read_bytes())
        return sorted({Path(run["logs"]).parent for run in known["runs"]})
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _group_of(runs: Sequence[RunFacts]) -> str:
    """Returns the HDF5 group of the latest job that says one."""
    for run in runs:
        try:
            return str(yaml.safe_load(run.job)["params"]["hdf5_dataset_name"])
        except (yaml.YAMLError, KeyError, TypeError):
            continue
    return DEFAULT_GROUP


def _relative(output: str, output_dir: Path) -> str:
    try:
        relative = Path(output).absolute().relative_to(output_dir.absolute()).as_posix()
    except ValueError:
        return output
    return output if relative.startswith(f"{UNKEPT_DIR}/") else relative


def _files_of(n: int) -> str:
    return f"{n:,} file" if n == 1 else f"{n:,} files"
