"""The scores of the same documents in two output folders."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.corpus.lines import Line, SourceReader
from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.errors import SourceError
from mlfilter_core.verification.annotated_files import find_annotated

# Largest number of documents to compare one by one: each score takes 8 bytes of memory, and the correlations are
# exact to a thousandth. Arbitrary; further files are skipped and counted.
MAX_DOCUMENTS = 2_000_000
MAX_LINE_BYTES = 1 << 26  # longer annotated lines are skipped

Key = tuple[str, int]


@dataclass(frozen=True)
class PairedScores:
    """Scores of the documents that both folders have.

    Attributes:
        names: Names of the scores.
        one: float32 (n, k), scores in the first folder.
        other: float32 (n, k), scores in the second folder; row i is the same document.
        n_files: Files of both folders that were read.
        n_left_out: Files of both folders that were not read, as `MAX_DOCUMENTS` was reached.
        n_without_partner: Documents of these files that one folder lacks, or has no number for.
    """

    names: tuple[str, ...]
    one: NDArray[np.float32]
    other: NDArray[np.float32]
    n_files: int
    n_left_out: int
    n_without_partner: int


def pair_scores(one: Path, other: Path, names: Sequence[str], max_documents: int = MAX_DOCUMENTS) -> PairedScores:
    """Joins annotated files by their names and documents by their ids; documents with one id are joined in order.

    Memory grows with the scores of two files and with the pairs.

    Args:
        one: An output folder.
        other: Another one.
        names: Scores that both have.
        max_documents: Number of joined documents from which on further files are skipped.

    Raises:
        SourceError: A file is broken.
    """
    files = [_annotated_files(folder) for folder in (one, other)]
    shared = sorted(files[0].keys() & files[1].keys())
    pairs: list[NDArray[np.float32]] = []
    n_pairs, n_files, n_alone = 0, 0, 0
    for name in shared if names else []:
        if n_pairs >= max_documents:
            break
        own, theirs = (dict(_scores(folder[name], names)) for folder in files)
        found = [
            (scores, partner)
            for key, scores in own.items()
            if scores is not None and (partner := theirs.get(key)) is not None
        ]
        n_alone += len(own) + len(theirs) - 2 * len(found)
        n_pairs += len(found)
        n_files += 1
        if found:
            pairs.append(np.array(found, np.float32))
    paired = np.concatenate(pairs) if pairs else np.empty((0, 2, len(names)), np.float32)
    return PairedScores(tuple(names), paired[:, 0], paired[:, 1], n_files, len(shared) - n_files, n_alone)


def _annotated_files(output_dir: Path) -> dict[str, Path]:
    """Returns the annotated files by the name that they share with their embeddings."""
    paths = sorted((output_dir / ANNOTATED_DIR).rglob("[!.]*"))
    found = ((find_annotated(path.relative_to(output_dir).as_posix()), path) for path in paths)
    return {
        output.name: path for output, path in found if output and output_dir / output.path == path and path.is_file()
    }


def _scores(path: Path, names: Sequence[str]) -> Iterator[tuple[Key, tuple[float, ...] | None]]:
    """Yields each document's key, id and place among documents with it, and its scores; None if one is no number."""
    seen: Counter[str] = Counter()
    with SourceReader(path) as reader:
        for line in reader.lines(MAX_LINE_BYTES):
            if not isinstance(line, Line) or not line.content.strip():
                continue
            try:
                record = orjson.loads(line.content)
                name = str(record.get(DOCUMENT_ID, line.number))
                values = [record.get(score) for score in names]
            except (ValueError, AttributeError) as error:
                where = f"{path}:{line.number}"
                raise SourceError(f"{where}: no annotated record ({error}); annotate the file again") from error
            seen[name] += 1
            are_numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            yield (name, seen[name]), tuple(values) if are_numbers else None
