"""The documents of raw files with the scores that draw files give them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import copied_value, string_at
from mlfilter_core.corpus.records import Record, id_key, parse_records
from mlfilter_core.corpus.source_files import stem_of
from mlfilter_core.errors import AnnotationError, ConfigError, FileError
from mlfilter_core.evaluation.aggregation import (
    NOT_ANNOTATED,
    NOT_IN_RAW_FILE,
    AggregationRequest,
    Output,
    ScoredDocument,
)
from mlfilter_core.evaluation.draws import Scoring, keep_last
from mlfilter_core.evaluation.input_files import annotator_of_name, parse_draws, raw_data_file
from mlfilter_core.tallies.tally import N_EXAMPLES, Tally, merged

Scores = dict[str, float | None]


def scores_of_draws(
    files: Sequence[Path], request: AggregationRequest, failures: dict[str, str]
) -> Iterator[tuple[Output, Iterator[ScoredDocument]]]:
    """Yields an output, with its documents, for each draw file and each raw file that it refers to.

    Draw files are read twice: the names of all outputs are checked before the first is yielded. Memory contains the
    scores of one draw file at a time.

    Args:
        files: Draw files.
        request: Request of the aggregation.
        failures: Receives the reasons for draw files that cannot be used, by path.

    Raises:
        ConfigError: Two outputs have one name.
    """
    for path, outputs in _plan(files, request, failures).items():
        try:
            scores = _read_scores(path, request.scoring, outputs)
        except FileError as error:  # the file has changed since the plan
            failures[str(path)] = str(error)
            continue
        for reference, output in outputs.items():
            yield output, _documents(_raw_file(reference, request), scores[reference], output)


def _plan(
    files: Sequence[Path], request: AggregationRequest, failures: dict[str, str]
) -> dict[Path, dict[str, Output]]:
    """Returns the outputs of each draw file, by its reference to the raw file."""
    plan: dict[Path, dict[str, Output]] = {}
    known: dict[str, Output] = {}
    for path in files:
        try:
            references = _references(path)
        except FileError as error:
            failures[str(path)] = str(error)
            continue
        plan[path] = {}
        for reference in references:
            raw = _raw_file(reference, request)
            name = f"{stem_of(raw)}_{annotator_of_name(path)}_aggregated_scores_{request.scoring.aggregation}.jsonl"
            output = plan[path][reference] = Output(name, (path,), raw)
            other = known.setdefault(name, output)
            if other is not output:
                raise ConfigError(
                    f"{other.made_from[0]} (of {other.raw_data_file}) and {path} (of {raw}) would both be written to "
                    f"{name}; rename one, or aggregate their folders one by one, each to its own --output-directory"
                )
    return plan


def _references(path: Path) -> list[str]:
    bad_lines = Tally()
    references = dict.fromkeys(reference for _, reference in parse_records(path, raw_data_file, bad_lines))
    if not references:
        raise AnnotationError(f"{path}: no record refers to a raw file: {bad_lines or 'the file is empty'}")
    return list(references)


def _raw_file(reference: str, request: AggregationRequest) -> Path:
    lookup = request.raw_data_lookup_dir
    return lookup / Path(reference).name if lookup else Path(reference)


def _read_scores(path: Path, scoring: Scoring, outputs: Mapping[str, Output]) -> dict[str, Scores]:
    """Returns the scores of a draw file, by id, for each reference to a raw file; counts in the outputs."""
    bad_lines = Tally()
    scores: dict[str, Scores] = {reference: {} for reference in outputs}
    for line, (reference, (document_id, draws)) in parse_records(path, _parse, bad_lines):
        if (output := outputs.get(reference)) is None:
            raise AnnotationError(f"{path}:{line}: the file changed while it was read; aggregate it again")
        score = scoring.score(draws, output.invalid_draws, f"{path}:{line}")
        keep_last(scores[reference], document_id, score, output.duplicates)
    for output in outputs.values():
        output.bad_lines = merged([bad_lines])
    return scores


def _parse(record: Record) -> tuple[str, tuple[str, list[Any]]]:
    return raw_data_file(record), parse_draws(record)


def _documents(raw: Path, scores: Scores, output: Output) -> Iterator[ScoredDocument]:
    """Yields the documents of a raw file that have draws, in its order; counts the others."""
    matched = set()
    for _, (key, document_id, value) in parse_records(raw, _id, output.bad_lines):
        if document_id in scores:
            matched.add(document_id)
            yield key, value, scores[document_id]
        else:
            output.left_out.add(NOT_ANNOTATED, document_id)
    if not output.scored:
        why = (
            f"no draw for a document of {raw} is valid: {output.invalid_draws}; check --labels"
            if matched
            else _why_unmatched(raw, scores, output)
        )
        raise AnnotationError(f"{output.made_from[0]}: {why}; no output is written for it")
    for document_id in scores:
        if document_id not in matched:
            output.left_out.add(NOT_IN_RAW_FILE, document_id)


def _id(record: Record) -> tuple[str, str, Any]:
    key = id_key(record)
    return key, string_at(record, key), copied_value(record, key)


def _why_unmatched(raw: Path, scores: Scores, output: Output) -> str:
    here, there = list(scores)[:N_EXAMPLES], output.left_out.examples.get(NOT_ANNOTATED, [])
    return (
        f"none of its {len(scores):,} documents is among the {output.documents:,} in {raw}; it contains "
        f"{', '.join(here)}, the raw file {', '.join(there) or output.bad_lines or 'none'}; check --raw-data-lookup-dir"
    )
