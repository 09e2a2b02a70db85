"""Score fields of annotated files to one score for each document, as if each head had made one draw."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeGuard

from mlfilter_core.annotating.annotated_format import write_records
from mlfilter_core.corpus.documents import BadRecordError
from mlfilter_core.corpus.records import Record
from mlfilter_core.corpus.source_files import find_jsonl, stem_of
from mlfilter_core.errors import AnnotationError, ConfigError, FileError
from mlfilter_core.evaluation.aggregation_report import NO_VALID_SCORE, AggregationReport, OutputReport
from mlfilter_core.evaluation.draws import Aggregation, aggregate, valid_draws
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.score_fields import ScoredRecord, ScoreFields
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import check_writable, publish
from mlfilter_core.tallies.tally import Tally

SAME_DOCUMENTS = "give annotated files that were made from the same embeddings"


@dataclass(frozen=True)
class HeadAggregation:
    """What is asked of all annotated files below some folders.

    Attributes:
        input_directories: Those folders. Files at the same place in several are of the same documents, line by line.
        output_directory: Where the outputs, which mirror the folders, go, with the report.
        aggregation: How the scores of a document become one.
        score_fields: Which fields are scores.
        scale: The labels that a score may be; None takes any finite number.
    """

    input_directories: tuple[Path, ...]
    output_directory: Path
    aggregation: Aggregation
    score_fields: ScoreFields
    scale: Scale | None = None


def aggregate_heads(request: HeadAggregation) -> AggregationReport:
    """Writes one file for each annotated file, `a/x_heads_aggregated_scores_mean.jsonl` for `a/x.jsonl`.

    Memory does not depend on the size of the files.

    Returns:
        What became of the documents. A file that failed is among its failures; the others are written.

    Raises:
        ConfigError: There are no annotated files, one has none beside it in another folder, two outputs would have one
            name, or the outputs would lie among the inputs.
        OSError: Reading or writing failed.
    """
    inputs = _find_inputs(request)
    check_writable(request.output_directory, "--output_directory")
    report = AggregationReport(_facts(request))
    for stem, paths in inputs.items():
        try:
            report.outputs.append(_aggregate(stem, paths, request))
        except FileError as error:
            report.failures[" + ".join(map(str, paths))] = str(error)
    report.write(request.output_directory)
    return report


def _facts(request: HeadAggregation) -> dict[str, object]:
    return {
        "input_directory": [str(folder) for folder in request.input_directories],
        "score_keys": request.score_fields.written,
        "aggregation": request.aggregation,
        "labels": request.scale.labels if request.scale else None,
    }


def _find_inputs(request: HeadAggregation) -> dict[str, list[Path]]:
    """Returns the files at each place, one of each folder, by their path below it without suffix."""
    inputs: dict[str, list[Path]] = {}
    for i, folder in enumerate(request.input_directories):
        if request.output_directory.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"--output_directory {request.output_directory} lies in --input_directory {folder}, where the next run "
                "would take its outputs for inputs; give a folder beside it"
            )
        for path in find_jsonl(folder, "*"):
            stem = (path.parent / stem_of(path)).relative_to(folder).as_posix()
            places = inputs.setdefault(stem, [])
            if len(places) > i:
                raise ConfigError(f"{places[-1]} and {path} would both be written to {stem}; rename one")
            places.append(path)
    for stem, places in inputs.items():
        if len(places) < len(request.input_directories):
            raise ConfigError(
                f"{places[0]}: not every --input_directory has a file {stem}.jsonl[.gz|.zst]; give folders of "
                "annotated files that were made from the same embeddings"
            )
    if not inputs:
        folders = ", ".join(map(str, request.input_directories))
        raise ConfigError(f"--input_directory: there is no .jsonl, .jsonl.gz or .jsonl.zst file below {folders}")
    return inputs


def _aggregate(stem: str, paths: Sequence[Path], request: HeadAggregation) -> OutputReport:
    name = f"{stem}_heads_aggregated_scores_{request.aggregation}.jsonl"
    rows = _JoinedRows(paths, request)
    with publish(request.output_directory / name) as temporary, open_new(temporary) as sink:
        write_records(sink, rows.scored_records())
        if rows.bad_lines.total + rows.left_out.total and not rows.n_scored:
            what = "; ".join(str(tally) for tally in (rows.invalid_draws, rows.bad_lines) if tally)
            raise AnnotationError(
                f"{' + '.join(map(str, paths))}: no score is valid: {what}; check --score_keys, and --labels, without "
                "which any finite number is valid"
            )
    return OutputReport(
        output=name,
        made_from=tuple(map(str, paths)),
        raw_data_file=None,
        documents=rows.n_scored + rows.left_out.total,
        scored=rows.n_scored,
        left_out=rows.left_out,
        invalid_draws=rows.invalid_draws,
        duplicates=Tally(),
        bad_lines=rows.bad_lines,
    )


class _JoinedRows:
    """The lines of annotated files of the same documents, side by side.

    Attributes:
        n_scored: Documents with a score so far.
        left_out: Documents without one.
        invalid_draws: Scores that are none, by reason.
        bad_lines: Lines that are no records; a document with one in any of the files is left out.
    """

    def __init__(self, paths: Sequence[Path], request: HeadAggregation) -> None:
        self.n_scored = 0
        self.left_out = Tally()
        self.invalid_draws = Tally()
        self.bad_lines = Tally()
        self._paths = paths
        self._request = request
        self._labels = frozenset(request.scale.labels) if request.scale else None

    def scored_records(self) -> Iterator[Record]:
        """Yields a record for each document with a score, in the order of the files.

        Raises:
            AnnotationError: The files are not of the same documents, or differ in their score fields; or a majority is
                asked for of scores that are no labels.
        """
        for rows in zip_longest(*(self._request.score_fields.read(path) for path in self._paths)):
            documents = [row for path, row in zip(self._paths, rows, strict=True) if self._is_record(row, path)]
            if len(documents) < len(self._paths):
                continue
            self._check_same_document(documents)
            draws = [
                draw
                for path, document in zip(self._paths, documents, strict=True)
                for draw in self._draws(path, document)
            ]
            first = documents[0]
            if not draws:
                self.left_out.add(NO_VALID_SCORE, first.document_id)
                continue
            self.n_scored += 1
            score = aggregate(draws, self._request.aggregation)
            yield {first.key: first.record[first.key], "score": score, "aggregation_type": self._request.aggregation}

    def _is_record(self, row: ScoredRecord | tuple[int, BadRecordError] | None, path: Path) -> TypeGuard[ScoredRecord]:
        if row is None:
            raise AnnotationError(
                f"{path} has fewer lines than {' or '.join(str(other) for other in self._paths if other != path)}; "
                f"{SAME_DOCUMENTS}"
            )
        if isinstance(row, ScoredRecord):
            return True
        line, error = row
        self.bad_lines.add(error.reason, f"{path}:{line}: {error.detail}")
        return False

    def _check_same_document(self, documents: Sequence[ScoredRecord]) -> None:
        first = documents[0]
        for path, document in zip(self._paths, documents, strict=True):
            if document.document_id != first.document_id:
                raise AnnotationError(
                    f"{path}:{document.line}: the document is {document.document_id}, and at {self._paths[0]}:"
                    f"{first.line} it is {first.document_id}; {SAME_DOCUMENTS}"
                )

    def _draws(self, path: Path, document: ScoredRecord) -> list[float]:
        if self._request.aggregation == "majority":
            for name, value in document.scores.items():
                if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
                    raise AnnotationError(
                        f"{path}:{document.line}: {name} is {value}, which hardly equals the score of another head; a "
                        "majority is of labels: give --score_keys 'int_score_*' (integer_scales of the annotation job "
                        "writes them), or another --aggregation"
                    )
        return valid_draws(document.scores.values(), self._labels, self.invalid_draws, path, document.line)
