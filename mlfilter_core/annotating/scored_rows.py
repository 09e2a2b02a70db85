"""Rows of a file of embeddings to lines with scores: read, scored and written at the same time."""

from collections.abc import Callable, Iterator, Sequence
from typing import IO

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.compute.stages import Stages
from mlfilter_core.corpus.json_lines import Members, lines, members
from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.embedding_store.output_values import OutputValues
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import AnnotationError
from mlfilter_core.heads.head import Head
from mlfilter_core.heads.scores import ScoreColumns
from mlfilter_core.heads.scoring_threads import ScoringThreads
from mlfilter_core.tallies.score_statistics import ScoreStatistics, score_statistics

Outputs = NDArray[np.float32]


def write_scored_rows(
    sink: IO[bytes],
    file: EmbeddingFile,
    slices: Sequence[slice],
    heads: Sequence[Head],
    columns: ScoreColumns,
    values: OutputValues,
    tell: Callable[[slice], None] = lambda rows: None,
) -> ScoreStatistics:
    """Writes one line for each row, in order: its output keys, then its scores.

    Embeddings and output keys are read ahead, each in a thread of its own, and lines written in another. Some five
    batches are in memory, more with many cores. The first failure, in the order of the rows, ends all threads.

    Args:
        sink: Stream for the lines.
        file: The file of embeddings, open.
        slices: Rows to score at a time, one slice after another.
        heads: Heads for embeddings of this width, with the same device and dtype.
        columns: The columns that their outputs make.
        values: The output keys of the file.
        tell: Called in another thread with each slice that is written.

    Returns:
        The statistics of the scores.

    Raises:
        AnnotationError: A score is NaN or infinite, or as for `OutputValues.members`.
        SourceError, EmbeddingFileError, OSError: Reading or writing failed.
    """
    statistics = score_statistics(columns.scores(columns.table(np.empty((0, columns.n_outputs), np.float32))))
    n_documents = sum(rows.stop - rows.start for rows in slices)
    n_embeddings = n_documents * file.n_chunks // max(1, file.n_rows)
    with Stages("reading", "scoring", "writing") as stages, ScoringThreads(heads, n_embeddings, len(slices)) as scoring:
        found = stages.run(some for rows in slices for some in values.members(rows))

        def write(scored: Iterator[tuple[slice, Outputs]]) -> None:
            nonlocal statistics
            for rows, outputs in scored:
                _check_finite(outputs, heads, file, rows)
                table = columns.table(outputs, file.chunk_starts(rows))
                statistics += score_statistics(columns.scores(table))
                try:
                    of_rows = [members(name, column) for name, column in table.items()]
                except orjson.JSONEncodeError as error:  # such as a label that is no Unicode
                    raise AnnotationError(
                        f"{file.path}: a score cannot be written as JSON ({error}); check the labels of the heads"
                    ) from error
                start, n_rows = 0, rows.stop - rows.start
                while start < n_rows:
                    n, keys = next(found)
                    of_keys = slice(start, start := start + n)
                    sink.write(lines([*keys, *(Members(m.before, m.texts[of_keys], m.after) for m in of_rows)]))
                tell(rows)

        batches = stages.run((rows, file.embeddings(rows)) for rows in slices)
        stages.hand_over(scoring.outputs(batches), write, in_order=True)
    return statistics


def _check_finite(outputs: Outputs, heads: Sequence[Head], file: EmbeddingFile, rows: slice) -> None:
    """Checks the outputs of heads for some rows of a file.

    Raises:
        AnnotationError: A score is NaN or infinite; names its document and its head.
    """
    if np.isfinite(outputs).all():
        return
    place, column = np.argwhere(~np.isfinite(outputs))[0]
    row = int(np.searchsorted(file.chunk_starts(rows), place, side="right")) - 1
    names = [head.name for head in heads for _ in range(head.n_outputs)]
    ids = file.find(DOCUMENT_ID)
    name = file.column(ids, slice(rows.start + row, rows.start + row + 1))[0] if ids else "without an id"
    raise AnnotationError(
        f"{file.path}: row {rows.start + row} (document {name}): head {names[column]} gives {outputs[place, column]}; "
        "check the head's weights, the embedding, and model_dtype (float16 overflows)"
    )
