"""Annotation files to one score for each document of the raw files that they are about."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from mlfilter_core.annotating.annotated_format import write_records
from mlfilter_core.corpus.documents import as_string
from mlfilter_core.corpus.records import Record, id_key, parse_records
from mlfilter_core.corpus.source_files import stem_of
from mlfilter_core.errors import AnnotationError, ConfigError, FileError
from mlfilter_core.evaluation.aggregation_report import (
    NO_VALID_SCORE,
    NOT_ANNOTATED,
    NOT_IN_RAW_FILE,
    AggregationReport,
    OutputReport,
)
from mlfilter_core.evaluation.annotation_files import (
    Annotation,
    annotator_of_name,
    find_annotation_files,
    parse_annotation,
    raw_data_file,
)
from mlfilter_core.evaluation.draws import Aggregation, aggregate, valid_draws
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import check_writable, publish
from mlfilter_core.tallies.tally import N_EXAMPLES, Tally, merged

DEFAULT_BATCH_SIZE = 100_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotationAggregation:
    """What is asked of all annotation files below a folder.

    Attributes:
        input_directory: That folder.
        output_directory: Where the outputs and the report go.
        aggregation: How draws become one score.
        scale: The labels that a draw may be.
        raw_data_lookup_dir: Folder of the raw files, by name; None where the annotations say.
        batch_size: Documents written at a time.
    """

    input_directory: Path
    output_directory: Path
    aggregation: Aggregation
    scale: Scale
    raw_data_lookup_dir: Path | None = None
    batch_size: int = DEFAULT_BATCH_SIZE


@dataclass(frozen=True)
class _Output:
    """One file to write.

    Attributes:
        annotations: The annotation file.
        named: The raw file as the annotations name it.
        raw: The raw file to read.
        path: What to write.
    """

    annotations: Path
    named: str
    raw: Path
    path: Path


@dataclass
class _Scores:
    """What one annotation file says of the documents of one raw file; None for one without a valid draw."""

    by_id: dict[str, float | None] = field(default_factory=dict)
    invalid_draws: Tally = field(default_factory=Tally)
    duplicates: Tally = field(default_factory=Tally)


def aggregate_annotations(request: AnnotationAggregation) -> AggregationReport:
    """Writes one file for each annotation file and each raw file that it is about, and `aggregation_report.json`.

    Annotation files are read twice: all outputs are known before the first is written. The scores of one of
    them stand in memory; raw files do not.

    Returns:
        What became of the documents. A file that failed is among its failures; the others are written.

    Raises:
        ConfigError: There are no annotation files, two outputs would have one name, or the output folder cannot be
            written to.
        OSError: Reading or writing failed.
    """
    files = find_annotation_files(request.input_directory)
    check_writable(request.output_directory, "--output_directory")
    report = AggregationReport(_facts(request))
    outputs = _plan(files, request, report.failures)
    for path, own in groupby(outputs, lambda output: output.annotations):
        bad_lines = Tally()
        try:
            scores = _read_scores(path, request, bad_lines)
        except FileError as error:  # it was sound a moment ago
            report.failures[str(path)] = str(error)
            continue
        for output in own:
            try:
                report.outputs.append(_write_output(output, scores.get(output.named, _Scores()), bad_lines, request))
            except FileError as error:
                report.failures[output.path.name] = str(error)
    report.write(request.output_directory)
    return report


def _facts(request: AnnotationAggregation) -> dict[str, object]:
    lookup = request.raw_data_lookup_dir
    return {
        "input_directory": str(request.input_directory),
        "aggregation": request.aggregation,
        "labels": request.scale.labels,
        "raw_data_lookup_dir": str(lookup) if lookup else None,
    }


def _plan(files: list[Path], request: AnnotationAggregation, failures: dict[str, str]) -> list[_Output]:
    by_path: dict[Path, _Output] = {}
    for path in files:
        try:
            for output in _outputs_of(path, request):
                other = by_path.setdefault(output.path, output)
                if other is not output:
                    raise ConfigError(
                        f"{other.annotations} (of {other.named}) and {path} (of {output.named}) would both be "
                        f"written to {output.path}; rename one, or aggregate their folders one by one, each with an "
                        "--output_directory of its own"
                    )
        except FileError as error:
            failures[str(path)] = str(error)
    return list(by_path.values())


def _outputs_of(path: Path, request: AnnotationAggregation) -> list[_Output]:
    bad_lines = Tally()
    named = dict.fromkeys(name for _, name in parse_records(path, raw_data_file, bad_lines))
    if not named:
        raise AnnotationError(f"{path}: no record says which raw file it is about: {bad_lines or 'it is empty'}")
    lookup = request.raw_data_lookup_dir
    outputs = []
    for name in named:
        raw = lookup / Path(name).name if lookup else Path(name)
        output = f"{stem_of(raw)}_{annotator_of_name(path)}_aggregated_scores_{request.aggregation}.jsonl"
        outputs.append(_Output(path, name, raw, request.output_directory / output))
    return outputs


def _read_scores(path: Path, request: AnnotationAggregation, bad_lines: Tally) -> dict[str, _Scores]:
    labels = frozenset(request.scale.labels)
    by_raw_file: dict[str, _Scores] = {}
    for line, (raw, annotation) in parse_records(path, _parse, bad_lines):
        scores = by_raw_file.setdefault(raw, _Scores())
        draws = valid_draws(annotation.scores, labels, scores.invalid_draws, path, line)
        score = aggregate(draws, request.aggregation) if draws else None
        document_id = annotation.document_id
        if document_id in scores.by_id:
            is_same = scores.by_id[document_id] == score
            scores.duplicates.add("with_same_score" if is_same else "with_other_score", document_id)
        scores.by_id[document_id] = score
    return by_raw_file


def _parse(record: Record) -> tuple[str, Annotation]:
    return raw_data_file(record), parse_annotation(record)


def _write_output(
    output: _Output, scores: _Scores, bad_annotations: Tally, request: AnnotationAggregation
) -> OutputReport:
    joined = _JoinedFile(output.raw, scores.by_id)
    n_scored = 0
    with publish(output.path) as temporary, open_new(temporary) as sink:
        records = joined.scored_records(request.aggregation)
        while batch := list(islice(records, request.batch_size)):
            write_records(sink, batch)
            n_scored += len(batch)
            _log.info("%s: %d documents scored", output.path.name, n_scored)
        if not n_scored:
            raise AnnotationError(f"{output.annotations}: {joined.why_nothing(scores)}; nothing is written for it")
    joined.count_others()
    return OutputReport(
        output=output.path.name,
        made_from=(str(output.annotations),),
        raw_data_file=str(output.raw),
        documents=n_scored + joined.left_out.counts[NO_VALID_SCORE] + joined.left_out.counts[NOT_ANNOTATED],
        scored=n_scored,
        left_out=joined.left_out,
        invalid_draws=scores.invalid_draws,
        duplicates=scores.duplicates,
        bad_lines=merged([bad_annotations, joined.bad_lines]),
    )


class _JoinedFile:
    """The documents of a raw file, joined to their scores by id.

    Attributes:
        left_out: Documents that have no line in the output, by reason.
        bad_lines: Lines of the raw file that are no documents with an id.
    """

    def __init__(self, raw: Path, by_id: dict[str, float | None]) -> None:
        self.left_out = Tally()
        self.bad_lines = Tally()
        self._raw = raw
        self._by_id = by_id
        self._matched: set[str] = set()

    def scored_records(self, aggregation: Aggregation) -> Iterator[Record]:
        """Yields a record for each document with a score, in the order of the raw file."""
        for _, (key, value) in parse_records(self._raw, _id, self.bad_lines):
            document_id = as_string(value)
            if document_id not in self._by_id:
                self.left_out.add(NOT_ANNOTATED, document_id)
                continue
            self._matched.add(document_id)
            score = self._by_id[document_id]
            if score is None:
                self.left_out.add(NO_VALID_SCORE, document_id)
            else:
                yield {key: value, "score": score, "aggregation_type": aggregation}

    def count_others(self) -> None:
        """Counts, after the last record, the annotated documents that are not in the raw file."""
        for document_id in self._by_id:
            if document_id not in self._matched:
                self.left_out.add(NOT_IN_RAW_FILE, document_id)

    def why_nothing(self, scores: _Scores) -> str:
        """Returns why, after the last record, there was none."""
        if self._matched:
            return f"no draw of a document of {self._raw} is valid: {scores.invalid_draws}; check --labels"
        here, there = list(self._by_id)[:N_EXAMPLES], self.left_out.examples.get(NOT_ANNOTATED, [])
        return (
            f"none of its {len(self._by_id):,} documents is among the {self.left_out.total:,} of {self._raw}; it has "
            f"{', '.join(here)}, there are {', '.join(there) or self.bad_lines or 'none'}. Check --raw_data_lookup_dir"
        )


def _id(record: Record) -> tuple[str, Any]:
    key = id_key(record)
    return key, record[key]
