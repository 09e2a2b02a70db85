"""The documents of annotated files, with the scores of several heads as draws."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from mlfilter_core.corpus.documents import copied_value
from mlfilter_core.corpus.source_files import stem_of
from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.aggregation import AggregationRequest, Output, ScoredDocument
from mlfilter_core.evaluation.draws import aggregate
from mlfilter_core.evaluation.input_files import find_inputs
from mlfilter_core.evaluation.score_fields import ScoredRecord, ScoreFields

END = ScoredRecord(0, {}, "", {})  # stands for the lines that a shorter file lacks
SAME_DOCUMENTS = "give annotated files that were made from the same embeddings"


def find_annotated_files(request: AggregationRequest) -> dict[str, list[Path]]:
    """Returns the files at each place in the input folders, one for each folder, by relative path without suffix.

    Raises:
        ConfigError: A folder has no files or contains the output folder, two files have one place, or a place has no
            file in one of the folders.
    """
    folders, by_place = request.input_directories, dict[str, list[Path]]()
    for i, folder in enumerate(folders):
        if request.output_directory.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"--output-directory {request.output_directory} is in --input-directory {folder}, so the next run "
                "would read the outputs as inputs; give a folder outside it"
            )
        for path in find_inputs(folder, "--input-directory", written_by="annotate"):
            place = (path.parent / stem_of(path)).relative_to(folder).as_posix()
            paths = by_place.setdefault(place, [])
            if len(paths) > i:
                raise ConfigError(f"{paths[-1]} and {path} would both be written to {place}; rename one")
            paths.append(path)
    for place, paths in by_place.items():
        if len(paths) < len(folders):
            raise ConfigError(
                f"{paths[0]}: not every --input-directory has a file {place}.jsonl[.gz|.zst]; {SAME_DOCUMENTS}"
            )
    return by_place


def scores_of_heads(
    inputs: Mapping[str, Sequence[Path]], request: AggregationRequest, score_fields: ScoreFields
) -> Iterator[tuple[Output, Iterator[ScoredDocument]]]:
    """Yields an output, with its documents, for each place: `a/x_heads_aggregated_scores_mean.jsonl` for `a/x`.

    Memory does not depend on the size of the files.

    Args:
        inputs: Annotated files of the same documents, line by line, by place.
        request: Request of the aggregation.
        score_fields: Fields to aggregate.
    """
    for place, paths in inputs.items():
        name = f"{place}_heads_aggregated_scores_{request.scoring.aggregation}.jsonl"
        output = Output(name, tuple(paths))
        yield output, _documents(request, score_fields, output)


def _documents(request: AggregationRequest, score_fields: ScoreFields, output: Output) -> Iterator[ScoredDocument]:
    """Yields the documents of annotated files, in their order; a bad line in any file leaves its document out."""
    paths, scoring = output.made_from, request.scoring
    for rows in zip_longest(*(score_fields.read(path, output.bad_lines) for path in paths), fillvalue=END):
        if END in rows:
            shorter = paths[rows.index(END)]
            others = " or ".join(str(path) for path in paths if path != shorter)
            raise AnnotationError(f"{shorter} has fewer lines than {others}; {SAME_DOCUMENTS}")
        documents = [row for row in rows if row is not None]
        if len(documents) < len(paths):
            continue
        first, draws = documents[0], list[float]()
        for path, document in zip(paths, documents, strict=True):
            if document.document_id != first.document_id:
                raise AnnotationError(
                    f"{path}:{document.line}: the document is {document.document_id}, but at {paths[0]}:{first.line} "
                    f"it is {first.document_id}; {SAME_DOCUMENTS}"
                )
            if scoring.aggregation == "majority":
                _check_labels(path, document)
            draws += scoring.valid_draws(document.scores.values(), output.invalid_draws, f"{path}:{document.line}")
        yield first.key, copied_value(first.record, first.key), aggregate(draws, scoring.aggregation) if draws else None
    if not output.scored and (output.documents or output.bad_lines):
        why = "; ".join(str(tally) for tally in (output.invalid_draws, output.bad_lines) if tally)
        raise AnnotationError(
            f"{output.failure_key}: no score is valid: {why}; check --score-keys and --labels (without --labels, any "
            "finite number is valid)"
        )


def _check_labels(path: Path, document: ScoredRecord) -> None:
    for name, value in document.scores.items():
        if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
            raise AnnotationError(
                f"{path}:{document.line}: {name} is {value}, which hardly ever equals the score of another head; a "
                "majority needs labels: give --score-keys 'int_score_*' (integer_scales of the annotation job writes "
                "them), or another --aggregation"
            )
