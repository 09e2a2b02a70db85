"""One annotated file to the documents of it that are kept."""

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotated_format import SUFFIXES, Compression, compressed, provenance_path
from mlfilter_core.config.filtering import SCORE_PREFIX, FilterParameters
from mlfilter_core.corpus.documents import BadRecordError
from mlfilter_core.corpus.records import Record, parse_line
from mlfilter_core.embedding_store.layout import SOURCE_OFFSET
from mlfilter_core.embedding_store.source_documents import SourceDocuments
from mlfilter_core.errors import AnnotationError, OutputConflictError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.new_file import HashedFile
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.filtering.annotated_file import annotation_of, embeddings_of, lines_of, record_of
from mlfilter_core.filtering.cuts import Cut, Cuts
from mlfilter_core.filtering.kept_counts import KeptCounts, share
from mlfilter_core.filtering.parquet import kinds_of, write_parquet
from mlfilter_core.filtering.survey import Survey, SurveyRequest, check_unchanged, load_survey, score_field
from mlfilter_core.work.same_request import REPLACE, check_same_request

ALL = slice(None)
PARQUET_SUFFIX = ".parquet"
OUTPUT_SUFFIXES = (*SUFFIXES.values(), PARQUET_SUFFIX)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilterRequest:
    """What is asked of every file of a filter run.

    Attributes:
        cuts: What a document must reach.
        survey: Where the surveys lie.
        output_dir: Folder of the kept documents.
        dropped_dir: Folder of the others.
        write_dropped: Whether they are written.
        output_format: Of the files, as is `compression`.
        source_dir: Where the sources lie now; None where they were embedded from.
    """

    cuts: Cuts
    survey: SurveyRequest
    output_dir: Path
    dropped_dir: Path
    write_dropped: bool = False
    output_format: Literal["jsonl", "parquet"] = "jsonl"
    compression: Compression = None
    source_dir: Path | None = None

    @staticmethod
    def of(params: FilterParameters, cuts: Cuts) -> "FilterRequest":
        """Returns what the parameters of a job ask for."""
        return FilterRequest(
            *(cuts, SurveyRequest.of(params), params.filtered_dir, params.dropped_dir, params.write_dropped),
            output_format=params.output_format,
            compression=params.compression,
            source_dir=params.source_dir,
        )

    @property
    def suffix(self) -> str:
        return PARQUET_SUFFIX if self.output_format == "parquet" else SUFFIXES[self.compression]

    def output(self, file: TaskFile) -> Path:
        return file.output(self.output_dir, self.suffix)

    def dropped(self, file: TaskFile) -> Path:
        return file.output(self.dropped_dir, self.suffix)

    def outputs(self, file: TaskFile) -> list[Path]:
        """Returns all that is written of a file, the kept documents first."""
        return [self.output(file), *([self.dropped(file)] if self.write_dropped else [])]

    def stale(self, file: TaskFile) -> list[Path]:
        """Returns what there is of the file that only another request writes."""
        written = [
            file.output(folder, end) for folder in (self.output_dir, self.dropped_dir) for end in OUTPUT_SUFFIXES
        ]
        wanted = self.outputs(file)
        return [path for path in written if path not in wanted and path.exists()]

    def provenance_file(self, file: TaskFile) -> Path:
        return provenance_path(self.output_dir, f"{file.stem}{self.suffix}")

    def criteria(self) -> tuple[str, ...]:
        """Returns what a document must reach, in words."""
        return tuple(cuts.describe() for cuts in self.cuts.of_scores)

    def provenance(self, groups: Iterable[str]) -> dict[str, Any]:
        """What decides the content of an output, but for the annotated file.

        Args:
            groups: Of the annotated file: new ones in other files change nothing of this one.
        """
        limits = [
            {group: cuts.by_group[group].rank for group in groups if group in cuts.by_group}
            for cuts in self.cuts.of_scores
        ]
        return {
            "keep": [cuts.bound.model_dump(exclude_none=True) | {"score": cuts.score} for cuts in self.cuts.of_scores],
            "at_least": self.cuts.n_needed,
            "per": self.survey.per,
            "cuts": limits,
            "whole_documents": self.survey.embeddings is not None,
            "write_dropped": self.write_dropped,
        }


@dataclass(frozen=True)
class FilterReport:
    """What became of one annotated file.

    Attributes:
        annotated: Path relative to the folder of annotated files.
        output: The file of the kept documents.
        status: `filtered` now, or `skipped` because it was finished.
        documents: Of the annotated file.
        kept: Documents that were kept.
        without_score: Documents that lack one of the scores, and count as not reaching it.
        tokens: Of the documents that say how many they have, as `kept_tokens` of those that were kept.
        reached: Of how many documents each score is good enough.
        by_group: `documents`, `kept`, `tokens` and `kept_tokens` of each value of `per`.
        criteria: What a document had to reach, in words.
        seconds: Wall time; 0 where skipped.
        worker: The process that did it; empty where skipped.
        started: When that began, in seconds since 1970, UTC; 0 where skipped.
    """

    PRINTED: ClassVar[Sequence[str]] = (
        *("documents", "kept", "without_score", "tokens", "kept_tokens", "seconds", "documents/s"),
    )
    SUMMED: ClassVar[Sequence[str]] = ("documents", "kept", "without_score", "tokens", "kept_tokens")

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
    criteria: Sequence[str] = field(default=())
    seconds: float = 0.0
    worker: str = ""
    started: float = 0.0

    @staticmethod
    def remarks_on(reports: "Sequence[FilterReport]") -> list[str]:
        """Returns what a document had to reach, and how many did, of each group and by each score."""
        remarks = list(reports[0].criteria)
        total = KeptCounts()
        groups: defaultdict[str, KeptCounts] = defaultdict(KeptCounts)
        for report in reports:
            total += KeptCounts(report.documents, report.kept, report.tokens, report.kept_tokens)
            for group, counts in report.by_group.items():
                groups[group] += KeptCounts(**counts)
        for name in reports[0].reached if len(reports[0].reached) > 1 else ():
            n_reached = sum(report.reached[name] for report in reports)
            remarks.append(f"{name}: {n_reached:,} documents reach it, {share(n_reached, total.documents)}")
        if len(groups) > 1:
            remarks += [f"{group or 'without the key'}: {of.describe()}" for group, of in sorted(groups.items())]
        remarks.append(total.describe())
        if total.kept in (0, total.documents):
            remarks.append(
                f"{'nothing' if total.kept == 0 else 'everything'} is kept; `ml_filter filter --dry-run` shows what "
                "other limits would keep"
            )
        return remarks


def filter_file(file: TaskFile, request: FilterRequest) -> FilterReport:
    """Writes the documents of one annotated file that are kept. They appear complete or not at all.

    Raises:
        AnnotationError: A line is broken, or a document has a score's name as a key.
        SourceError: The source is needed, and missing or changed since it was embedded.
        FileError: The file has no survey.
        OSError: Reading or writing failed.
    """
    started = time.monotonic()
    survey = load_survey(file, request.survey)
    kept = request.cuts.kept(survey)
    report = _report(file, request, survey, kept)
    with ExitStack() as stack:
        identities = []
        try:
            for path, wanted in zip(request.outputs(file), (kept, ~kept), strict=False):
                output = stack.enter_context(publish(path))
                with HashedFile(output) as on_disk:
                    _write(on_disk, file, request, wanted, spool_dir=output.parent)
                identities.append(on_disk.identity())
        except ValueError:
            check_unchanged(file, survey)  # which is why it has another number of lines
            raise
        check_unchanged(file, survey)
        made = {
            "request": request.provenance(survey.groups),
            "groups": survey.groups,
            "annotated": survey.annotated,
            "output": identities[0],
            "dropped": identities[1] if request.write_dropped else None,
            "report": {name: value for name, value in asdict(report).items() if name not in ("output", "status")},
        }
        # It appears first: a filtered file without it, or of another size or time, is not ours to replace.
        publish_json(request.provenance_file(file), made)
    for path in request.stale(file):  # which nobody gets here with, but who replaces them
        path.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    _log.info("%s: %d of %d documents kept in %.1f s", file.relative, report.kept, report.documents, seconds)
    return FilterReport(**{**vars(report), "seconds": seconds})


def finished_filter(file: TaskFile, request: FilterRequest, read_content: bool) -> FilterReport | None:
    """Returns the report of a finished output, or None where there is none yet.

    Args:
        file: The annotated file.
        request: What is asked of it.
        read_content: Whether to read a file whose time of change differs; None is returned for it otherwise.

    Raises:
        OutputConflictError: The output was made from another annotated file, by another request or another tool.
    """
    for path in request.stale(file):
        raise OutputConflictError(f"{path} was written by another request; {REPLACE}")
    outputs = request.outputs(file)
    if not all(path.exists() for path in outputs):
        return None
    output = outputs[0]
    try:
        made = orjson.loads(request.provenance_file(file).read_bytes())
        made_by, asked = _by_score(made["request"]), _by_score(request.provenance(made["groups"]))
        found = {**made["report"], "output": str(output), "status": "skipped", "seconds": 0.0}
        report = FilterReport(**{**found, "criteria": request.criteria()})
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
    """Returns the provenance of a request with limits by the name of their score and cuts in words, for messages."""
    names = [bound["score"] for bound in provenance["keep"]]
    bounds = [{name: value for name, value in bound.items() if name != "score"} for bound in provenance["keep"]]
    cuts = [
        {group: f"{Cut(rank).describe()} (rank {rank})" for group, rank in by_group.items()}
        for by_group in provenance["cuts"]
    ]
    return {**provenance, "keep": dict(zip(names, bounds, strict=True)), "cuts": dict(zip(names, cuts, strict=True))}


def _report(file: TaskFile, request: FilterRequest, survey: Survey, kept: NDArray[np.bool_]) -> FilterReport:
    tokens = survey.known_tokens()
    by_group = {}
    for code, group in enumerate(survey.groups if request.survey.per is not None else ()):
        inside = survey.group == code
        by_group[group] = asdict(KeptCounts.of(tokens[inside], kept[inside]))
    return FilterReport(
        *(file.relative, str(request.output(file)), "filtered"),
        **vars(KeptCounts.of(tokens, kept)),
        without_score=int(np.isnan(survey.scores).any(axis=1).sum()),
        reached={cuts.score: int(cuts.reached(survey).sum()) for cuts in request.cuts.of_scores},
        by_group=by_group,
        criteria=request.criteria(),
    )


def _write(
    output: IO[bytes], file: TaskFile, request: FilterRequest, wanted: NDArray[np.bool_], spool_dir: Path
) -> None:
    if request.output_format == "jsonl":
        with compressed(output, request.compression) as sink:
            sink.writelines(_lines(file, request, wanted))
        return
    shown = wanted.copy()
    shown[:1] |= not wanted.any()  # a file without rows has the columns of its first document
    # The columns are known at the end. The file has no name that a killed process would leave.
    with tempfile.TemporaryFile(dir=spool_dir) as spool:
        spool.writelines(_lines(file, request, shown))

        def records() -> Iterator[Record]:
            spool.seek(0)
            return (_document(line, file) for line in spool)

        kinds = kinds_of(records())
        fields = [field for name in request.survey.scores for field in (name, f"{SCORE_PREFIX}{name}")]
        kinds |= dict.fromkeys((field for field in fields if field in kinds), "float")  # 3 in one file, 2.5 in the next
        try:
            write_parquet(output, records() if wanted.any() else [], kinds)
        except orjson.JSONEncodeError as error:
            raise AnnotationError(f"{file.path}: a nested value cannot be written as JSON ({error})") from error


def _document(line: bytes, file: TaskFile) -> Record:
    record = parse_line(line)
    if isinstance(record, BadRecordError):
        raise AnnotationError(f"{file.path}: a document cannot be read: {record.detail}")
    return record


def _lines(file: TaskFile, request: FilterRequest, wanted: NDArray[np.bool_]) -> Iterator[bytes]:
    """Yields what is written of the documents that are wanted."""
    annotated = (line for line, is_wanted in zip(lines_of(file.path), wanted, strict=True) if is_wanted)
    folder = request.survey.embeddings
    if folder is None:
        yield from (line.content + b"\n" for line in annotated)
        return
    with embeddings_of(file, folder, request.survey.group) as embeddings:
        if embeddings.n_rows != len(wanted):
            raise AnnotationError(f"{embeddings.path} was changed since {file.path} was surveyed; annotate again")
        if not wanted.any():
            return
        offsets = embeddings.array(SOURCE_OFFSET, ALL)[wanted]
        with SourceDocuments(embeddings, request.source_dir, ["the whole document"]) as source:
            made = annotation_of(file)
            for document, line in zip(source.documents(offsets), annotated, strict=True):
                record = record_of(line, file.path)
                fields = _score_fields(file, request, record) if made is None else made["columns"]
                yield _encoded(_with_scores(document, record, fields, file), line.number, file)
            source.check_unchanged()


def _encoded(record: Record, line: int, file: TaskFile) -> bytes:
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:  # it writes fewer levels of nesting than it reads
        raise AnnotationError(f"{file.path}:{line}: the document cannot be written as JSON ({error})") from error


def _score_fields(file: TaskFile, request: FilterRequest, record: Record) -> Sequence[str]:
    """Returns what is written beside a source document where no annotation says what it computed."""
    fields = (score_field(name, record, file.path) for name in request.survey.scores)
    return [field for field in fields if field is not None]


def _with_scores(document: Record, record: Record, fields: Sequence[str], file: TaskFile) -> Record:
    clash = [name for name in fields if name in document]
    if clash:
        raise AnnotationError(
            f'{file.path}: the source documents have a key "{clash[0]}" already; annotate with another score_prefix'
        )
    return {**document, **{name: record.get(name) for name in fields}}
