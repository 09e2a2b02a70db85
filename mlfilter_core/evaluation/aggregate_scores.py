"""The aggregation of several draws, or of the scores of several heads, to one score for each document."""

import logging
from collections.abc import Iterator
from itertools import islice

from mlfilter_core.annotating.annotated_format import write_records
from mlfilter_core.corpus.documents import as_string
from mlfilter_core.corpus.records import Record
from mlfilter_core.errors import FileError
from mlfilter_core.evaluation.aggregation import (
    NO_VALID_SCORE,
    AggregationReport,
    AggregationRequest,
    Output,
    ScoredDocument,
)
from mlfilter_core.evaluation.input_files import find_draw_files
from mlfilter_core.evaluation.scores_of_draws import scores_of_draws
from mlfilter_core.evaluation.scores_of_heads import find_annotated_files, scores_of_heads
from mlfilter_core.files.new_file import open_new
from mlfilter_core.files.publishing import check_writable, publish

_log = logging.getLogger(__name__)


def aggregate_scores(request: AggregationRequest) -> AggregationReport:
    """Writes one file of scores for each draw file and raw file, or for each annotated file, and a report.

    Returns:
        Counts of the documents by result. A file that failed is among the failures; the others are written.

    Raises:
        ConfigError: There are no input files, two outputs have one name, annotated files do not match, or the output
            folder is not writable or is among the inputs.
        OSError: Reading or writing failed.
    """
    report = AggregationReport(request)
    if request.score_fields:
        outputs = scores_of_heads(find_annotated_files(request), request, request.score_fields)
    else:
        outputs = scores_of_draws(find_draw_files(request.input_directories[0]), request, report.failures)
    check_writable(request.output_directory, "--output-directory")
    for output, documents in outputs:
        try:
            _write(output, documents, request)
        except FileError as error:
            report.failures[output.failure_key] = str(error)
        else:
            report.outputs.append(output)
    report.write()
    return report


def _write(output: Output, documents: Iterator[ScoredDocument], request: AggregationRequest) -> None:
    records = _records(output, documents, request)
    with publish(request.output_directory / output.name) as temporary, open_new(temporary) as sink:
        while batch := list(islice(records, request.batch_size)):
            write_records(sink, batch)
            _log.info("%s: %d documents scored", output.name, output.scored)


def _records(output: Output, documents: Iterator[ScoredDocument], request: AggregationRequest) -> Iterator[Record]:
    for key, document_id, score in documents:
        if score is None:
            output.left_out.add(NO_VALID_SCORE, as_string(document_id))
        else:
            output.scored += 1
            yield {key: document_id, "score": score, "aggregation_type": request.scoring.aggregation}
