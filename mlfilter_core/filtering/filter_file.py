"""One annotated file to the file of its documents that are kept."""

import logging
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotated_format import compressed, remove_leftover_parts
from mlfilter_core.config.filtering import SCORE_PREFIX
from mlfilter_core.corpus.documents import BadRecordError
from mlfilter_core.corpus.records import Record, parse_line
from mlfilter_core.errors import AnnotationError, OutputConflictError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.new_file import HashedFile
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.filter_request import FilterRequest
from mlfilter_core.filtering.kept_counts import KeptCounts
from mlfilter_core.filtering.kept_documents import document_lines
from mlfilter_core.filtering.parquet import kinds_of, write_parquet
from mlfilter_core.filtering.parquet_rows import write_source_rows
from mlfilter_core.filtering.survey import Survey, check_unchanged, load_survey
from mlfilter_core.filtering.thresholds import MAX_SHOWN_GROUPS, describe_rank
from mlfilter_core.wording import natural_order, share
from mlfilter_core.work.same_request import REPLACE, check_same_request
from mlfilter_core.work.workload import ReportDefaults, facts_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilterReport(ReportDefaults):
    """The result of filtering one annotated file.

    Attributes:
        annotated: Path of the annotated file, relative to its folder.
        output: Path of the file of kept documents.
        status: `filtered`, or `skipped` where the output was finished before.
        documents: Number of documents.
        kept: Number of documents that are kept.
        without_score: Number of documents that lack one of the scores, and so do not reach its threshold.
        tokens: Number of tokens, of documents where it is known.
        kept_tokens: Number of tokens of the kept documents, where it is known.
        reached: Number of documents that reach the threshold of each score.
        by_group: `documents`, `kept`, `tokens` and `kept_tokens` of each value of `per`.
        score_sums: Number of documents with each score and sum of their scores, by value of `per` and score.
        criteria: Thresholds as text.
        notes: What a person should know about the groups that share tokens.
        seconds: Wall time; 0 where skipped.
        worker: Name of the process; empty where skipped.
        started: Start time in seconds since 1970, UTC; 0 where skipped.
    """

    SUMMED: ClassVar[Sequence[str]] = ("documents", "kept", "without_score", "tokens", "kept_tokens")
    PRINTED: ClassVar[Sequence[str]] = (*SUMMED, "seconds", "documents/s")
    NO_COLUMNS: ClassVar[Sequence[str]] = ("score_sums", "criteria", "notes")

    annotated: str
    output: str
    status: Literal["filtered", "skipped"]
    documents: int
    kept: int
    without_score: int
    tokens: int
    kept_tokens: int
    reached: Mapping[str, int]
    by_group: Mapping[str, Mapping[str, int]]
    score_sums: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    criteria: Sequence[str] = field(default=())
    notes: Sequence[str] = field(default=())
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0

    @staticmethod
    def remarks_on(reports: "Sequence[FilterReport]") -> list[str]:
        """Returns the thresholds, and how many documents reach them, by score and by group."""
        remarks = [*reports[0].criteria, *reports[0].notes]
        total = KeptCounts()
        reached: Counter[str] = Counter()
        groups: defaultdict[str, KeptCounts] = defaultdict(KeptCounts)
        for report in reports:
            total += KeptCounts(report.documents, report.kept, report.tokens, report.kept_tokens)
            reached.update(report.reached)
            for group, counts in report.by_group.items():
                groups[group] += KeptCounts(**counts)
        for name, n_reached in reached.items() if len(reached) > 1 else ():
            remarks.append(f"{name}: {n_reached:,} documents reach it, {share(n_reached, total.documents)}")
        if len(groups) > 1:
            largest = sorted(groups, key=lambda group: (-groups[group].documents, natural_order(group)))
            shown = sorted(largest[:MAX_SHOWN_GROUPS], key=natural_order)
            remarks += [f"{group or 'without the key'}: {groups[group].describe()}" for group in shown]
            if len(groups) > MAX_SHOWN_GROUPS:
                remarks.append(f"{len(groups) - MAX_SHOWN_GROUPS:,} smaller groups are in report/report.json")
        remarks.append(total.describe())
        if total.kept in (0, total.documents):
            remarks.append(
                f"{'nothing' if total.kept == 0 else 'everything'} is kept; `ml_filter filter --dry-run` shows what "
                "other limits would keep"
            )
        return remarks


def filter_file(file: TaskFile, request: FilterRequest) -> FilterReport:
    """Writes the kept documents of one annotated file, and the dropped ones where asked; complete or not at all.

    Raises:
        AnnotationError: A line is broken, or a source document has a field of a score's name.
        SourceError: The source documents are written, and the source is missing or changed since it was embedded.
        SurveyMissingError: The file has no survey.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    survey = load_survey(file, request.survey)
    report = report_of(file, request, survey)
    with ExitStack() as stack:
        targets = [stack.enter_context(publish(path)) for path in request.outputs(file)]
        made = provenance_of_filtered(request, survey, report, write_kept(targets, file, request, survey))
        # Published first: a filtered file without matching provenance is of unknown origin, and never replaced.
        publish_json(request.provenance_file(file), made)
    remove_stale(file, request)
    seconds = time.monotonic() - started
    _log.info("%s: %d of %d documents kept in %.1f s", file.relative, report.kept, report.documents, seconds)
    return replace(report, seconds=seconds)


def write_kept(targets: Sequence[Path], file: TaskFile, request: FilterRequest, survey: Survey) -> list[dict[str, Any]]:
    """Writes the kept documents of a file, or of a part of it, and the dropped ones to a second target.

    Returns:
        Identity of each written file.

    Raises:
        AnnotationError, SourceError, OSError: As `filter_file`.
    """
    kept = request.thresholds.kept(survey)
    identities = []
    try:
        for target, wanted in zip(targets, (kept, ~kept), strict=False):
            with HashedFile(target) as on_disk:
                _write(on_disk, file, request, wanted, spool_dir=target.parent)
            identities.append(on_disk.identity())
    except ValueError:
        check_unchanged(file, survey)  # a change explains a wrong number of lines
        raise
    check_unchanged(file, survey)
    return identities


def provenance_of_filtered(
    request: FilterRequest, survey: Survey, report: FilterReport, identities: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the provenance of a filtered file, given the identities of what was written."""
    return {
        "request": request.provenance(survey.groups),
        "groups": survey.groups,
        "annotated": survey.annotated,
        "output": identities[0],
        "dropped": identities[1] if request.write_dropped else None,
        "report": {name: value for name, value in facts_of(report).items() if name not in ("output", "status")},
    }


def remove_stale(file: TaskFile, request: FilterRequest) -> None:
    """Removes what other requests made of a file: there are only parts, unless the job overwrites."""
    for path in (*request.stale(file), *request.stale_provenance(file)):
        path.unlink(missing_ok=True)
    remove_leftover_parts(file, request.output_dir)


def finished_filter(file: TaskFile, request: FilterRequest, read_content: bool) -> FilterReport | None:
    """Returns the report of a finished output, or None where the file has yet to be filtered.

    Args:
        file: The annotated file.
        request: Request of this run.
        read_content: Whether to read a file whose modification time differs; otherwise it counts as not finished.

    Raises:
        OutputConflictError: The output was made from another annotated file, by another request or by another tool.
    """
    for path in request.stale(file):
        raise OutputConflictError(f"{path} was made by another request; {REPLACE}")
    outputs = request.outputs(file)
    if not all(path.exists() for path in outputs):
        return None
    output = outputs[0]
    try:
        made = orjson.loads(request.provenance_file(file).read_bytes())
        made_by, asked = _by_score(made["request"]), _by_score(request.provenance(made["groups"]))
        found = {**made["report"], "output": str(output), "status": "skipped", "seconds": 0.0}
        report = FilterReport(**{**found, "criteria": request.criteria(), "notes": request.thresholds.notes})
        recorded = [made["annotated"], made["output"], made["dropped"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        raise OutputConflictError(f"{output} does not say which annotated file it was made from; {REPLACE}") from None
    check_same_request(output, made_by, asked)
    for path, identity in zip((file.path, *outputs), recorded, strict=False):
        is_same = is_same_file(path, identity, read_content)
        if is_same is False:
            what = "is of another version of" if path == file.path else "was changed since it was written:"
            raise OutputConflictError(f"{output} {what} {path}; {REPLACE}")
        if is_same is None:
            return None
    return report


def _by_score(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the provenance of a request for messages: bounds and thresholds by score, thresholds as text."""
    names = [bound["score"] for bound in provenance["keep"]]
    bounds = [{name: value for name, value in bound.items() if name != "score"} for bound in provenance["keep"]]
    thresholds = [
        {group: f"{describe_rank(rank)} (rank {rank})" for group, rank in by_group.items()}
        for by_group in provenance["cuts"]
    ]
    return {
        **provenance,
        "keep": dict(zip(names, bounds, strict=True)),
        "cuts": dict(zip(names, thresholds, strict=True)),
        **({"shares": dict(zip(names, shares, strict=True))} if (shares := provenance.get("shares")) else {}),
    }


def report_of(file: TaskFile, request: FilterRequest, survey: Survey) -> FilterReport:
    """Returns the report of a file, or of a part of it, given the survey of the whole file."""
    survey = survey.part(slice(*file.part.bounds(len(survey))))
    kept = request.thresholds.kept(survey)
    tokens = survey.known_tokens()
    groups = survey.groups if request.survey.per is not None else ()
    of_groups = KeptCounts.of_groups(len(groups), survey.group, tokens, kept) if groups else []
    return FilterReport(
        annotated=file.name,
        output=str(request.outputs(file)[0]),
        status="filtered",
        **vars(KeptCounts.of(tokens, kept)),
        without_score=int(np.isnan(survey.scores).any(axis=1).sum()),
        reached={each.score: int(each.reached(survey).sum()) for each in request.thresholds.of_scores},
        by_group={group: {**vars(counts)} for group, counts in zip(groups, of_groups, strict=True)},
        score_sums=survey.score_sums() if groups else {},
        criteria=request.criteria(),
        notes=request.thresholds.notes,
    )


def _write(
    output: IO[bytes], file: TaskFile, request: FilterRequest, wanted: NDArray[np.bool_], spool_dir: Path
) -> None:
    if request.output_format == "jsonl":
        with compressed(output, request.compression) as sink:
            sink.writelines(document_lines(file, request, wanted))
        return
    float_fields = {field for name in request.survey.scores for field in (name, f"{SCORE_PREFIX}{name}")}
    if write_source_rows(output, file, request, wanted, float_fields):
        return
    shown = wanted.copy()
    shown[:1] |= not wanted.any()  # a file without rows gets the columns of its first document
    # The types of the columns are only known after the last document. A file without a name leaves nothing behind.
    with tempfile.TemporaryFile(dir=spool_dir) as spool:
        spool.writelines(document_lines(file, request, shown))

        def records() -> Iterator[Record]:
            spool.seek(0)
            return (_document(line, file) for line in spool)

        kinds = kinds_of(records())
        kinds |= dict.fromkeys(float_fields & kinds.keys(), "float")  # 3 in one file, 2.5 in the next
        try:
            write_parquet(output, records() if wanted.any() else [], kinds)
        except orjson.JSONEncodeError as error:
            raise AnnotationError(f"{file.path}: a nested value cannot be written as JSON ({error})") from error


def _document(line: bytes, file: TaskFile) -> Record:
    record = parse_line(line)
    if isinstance(record, BadRecordError):
        raise AnnotationError(f"{file.path}: a document cannot be read: {record.detail}")
    return record
