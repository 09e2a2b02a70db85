"""The scores of the same documents in two output folders."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.annotating.annotated_format import SUFFIXES
from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.corpus.lines import Line, SourceReader
from mlfilter_core.embedding_store.layout import DOCUMENT_ID
from mlfilter_core.errors import SourceError
from mlfilter_core.verification.embedding_files import without_suffix

# Documents that are compared one by one: 8 bytes of each score stay in memory, and a correlation of so many is exact to
# a thousandth. Arbitrary; further files are left out, and counted.
MAX_DOCUMENTS = 2_000_000
MAX_LINE_BYTES = 1 << 26  # a longer annotated line is skipped
ANNOTATED_SUFFIXES = tuple(SUFFIXES.values())

Key = tuple[str, int]


@dataclass(frozen=True)
class PairedScores:
    """Scores of documents that both folders have.

    Attributes:
        names: Of the scores.
        one: float32 (n, k), of the first folder.
        other: float32 (n, k), of the second; row i is the same document.
        n_files: That both folders have and that were read.
        n_left_out: Files that both have, and that were not read: `MAX_DOCUMENTS` were reached.
        n_without_partner: Documents of these files that the other folder lacks, or gives no number for.
    """

    names: tuple[str, ...]
    one: NDArray[np.float32]
    other: NDArray[np.float32]
    n_files: int
    n_left_out: int
    n_without_partner: int


def pair_scores(one: Path, other: Path, names: Sequence[str], max_documents: int = MAX_DOCUMENTS) -> PairedScores:
    """Joins the annotated files of the same name by the ids of their documents; those of one id in their order.

    Memory is that of two files' scores, and of the pairs.

    Args:
        one: An output folder.
        other: Another.
        names: Score columns that both have.
        max_documents: After so many, further files are left out.

    Raises:
        SourceError: A file is broken.
    """
    files = [_annotated_files(folder) for folder in (one, other)]
    shared = sorted(files[0].keys() & files[1].keys())
    pairs: list[NDArray[np.float32]] = []
    n_pairs, n_files, n_alone = 0, 0, 0
    for stem in shared if names else []:
        if n_pairs >= max_documents:
            break
        theirs = dict(_scores(files[1][stem], names))
        found = []
        n_own = 0
        for key, scores in _scores(files[0][stem], names):
            n_own += 1
            if (partner := theirs.get(key)) is not None and scores is not None:
                found.append((scores, partner))
        n_alone += n_own + len(theirs) - 2 * len(found)
        n_pairs += len(found)
        n_files += 1
        if found:
            pairs.append(np.array(found, np.float32))
    paired = np.concatenate(pairs) if pairs else np.empty((0, 2, len(names)), np.float32)
    return PairedScores(tuple(names), paired[:, 0], paired[:, 1], n_files, len(shared) - n_files, n_alone)


def _annotated_files(output_dir: Path) -> dict[str, Path]:
    folder = output_dir / ANNOTATED_DIR
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.name.endswith(ANNOTATED_SUFFIXES) and not any(part.startswith(".") for part in relative.parts):
            found[without_suffix(relative.as_posix(), ANNOTATED_SUFFIXES)] = path
    return found


def _scores(path: Path, names: Sequence[str]) -> Iterator[tuple[Key, tuple[float, ...] | None]]:
    """Yields each document, as its id and which of that id it is, and its scores; None where one is no number."""
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
                raise SourceError(
                    f"{path}:{line.number}: no annotated record ({error}); annotate the file again"
                ) from error
            seen[name] += 1
            is_whole = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            yield (name, seen[name]), tuple(values) if is_whole else None
