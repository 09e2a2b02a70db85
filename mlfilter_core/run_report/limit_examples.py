"""Documents just above and just below each limit of a filter, which show whether the limit is where it should be.

The nearest of a sample, so that a report of a large corpus takes no longer: the first documents of some files.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlfilter_core.config.filtering import FILTERED_DIR
from mlfilter_core.corpus.documents import Document, parse_document
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES, Line
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.embedding_store.layout import DOCUMENT_ID, SOURCE_LINE
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import MlfilterError
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.files.numpy_archives import DAMAGED
from mlfilter_core.filtering.scored_files import scored_files
from mlfilter_core.filtering.survey import SUFFIX, SURVEY_FOLDER
from mlfilter_core.run_report.facts import FilterFacts, LimitExample
from mlfilter_core.verification.output_kinds import Output
from mlfilter_core.verification.source_account import schema_of

# Arbitrary: 100,000 documents, of which the nearest to a limit are very near. Only their files are read, up to the
# last of them.
MAX_FILES, MAX_ROWS = 50, 2000
N_EXAMPLES, MAX_GROUPS, MAX_SCORES = 2, 3, 6
N_CHARACTERS = 400


@dataclass(frozen=True)
class _Near:
    """A document near a limit: its file, its row in the file, and what `LimitExample` says of it."""

    stem: str
    row: int
    score: str
    group: str
    value: float
    reaches: bool


def files_with_examples(outputs: Sequence[Output]) -> list[str]:
    """Returns the names of some evenly spaced filtered files, sorted."""
    step = max(1, len(outputs) // MAX_FILES)
    return sorted(output.name for output in outputs[::step][:MAX_FILES])


def limit_examples(
    output_dir: Path, filtered: FilterFacts, stems: Sequence[str], embeddings: Mapping[str, str], group: str
) -> list[LimitExample]:
    """Returns the nearest documents on both sides of each limit, by score and group, the lowest score first.

    Args:
        output_dir: Output folder of the filter.
        filtered: Its limits.
        stems: Names of the filtered files to look into, as `files_with_examples` returns them.
        embeddings: Files of embeddings, relative to the output folder, by the names of filtered files.
        group: Name of the HDF5 group.
    """
    candidates: defaultdict[tuple[str, str, bool], list[_Near]] = defaultdict(list)
    surveyed: dict[str, Mapping[str, Any]] = {}
    for stem in stems:
        try:
            with np.load(output_dir / FILTERED_DIR / SURVEY_FOLDER / f"{stem}{SUFFIX}") as survey:
                surveyed[stem] = orjson.loads(survey["facts"].tobytes())
                scores, codes = survey["scores"][:MAX_ROWS].astype(np.float64), survey["group"][:MAX_ROWS]
        except (OSError, *DAMAGED):  # without a survey, there are no examples of this file
            continue
        for near in _nearest(stem, surveyed[stem], scores, codes, filtered):
            nearest = candidates[near.score, near.group, near.reaches]
            nearest.append(near)
            nearest.sort(key=lambda near: near.value, reverse=not near.reaches)
            del nearest[N_EXAMPLES:]
    chosen = [near for nearest in candidates.values() for near in nearest]
    rows: defaultdict[str, set[int]] = defaultdict(set)
    for near in chosen:
        rows[near.stem].add(near.row)
    texts = {
        stem: _texts(output_dir, stem, sorted(own), embeddings.get(stem), group, surveyed[stem])
        for stem, own in rows.items()
    }
    examples = [
        LimitExample(near.score, near.group, near.value, near.reaches, near.stem, *texts[near.stem][near.row])
        for near in chosen
        if near.row in texts[near.stem]
    ]
    order = {name: i for i, name in enumerate(filtered.by_group)}
    return sorted(examples, key=lambda each: (each.score, order.get(each.group, 0), each.value))


def _nearest(
    stem: str,
    facts: Mapping[str, Any],
    scores: NDArray[np.float64],
    codes: NDArray[np.integer],
    filtered: FilterFacts,
) -> Iterator[_Near]:
    """Yields the documents of a file that are nearest to the limits, given what its survey contains."""
    shown = list(filtered.by_group)[:MAX_GROUPS] if filtered.per else [""]
    for column, name in enumerate(facts["scores"][:MAX_SCORES]):
        for group in shown:
            limit = filtered.limits.get(name, {}).get(group)
            if limit is None or group not in facts["groups"]:
                continue
            values = np.where(codes == facts["groups"].index(group), scores[:, column], np.nan)
            for reaches in (True, False):
                side = np.flatnonzero(values >= limit if reaches else values < limit)
                for row in side[np.argsort(np.abs(values[side] - limit), kind="stable")[:N_EXAMPLES]].tolist():
                    yield _Near(stem, row, name, group, float(values[row]), reaches)


def _texts(
    output_dir: Path,
    stem: str,
    rows: Sequence[int],
    embeddings: str | None,
    group: str,
    surveyed: Mapping[str, Any],
) -> dict[int, tuple[str, str]]:
    """Returns id and beginning of the text of some documents of a file, by row."""
    texts = _from_annotations(output_dir, stem, rows, surveyed["annotated"])
    if embeddings is not None:
        with suppress(MlfilterError, OSError, KeyError):  # the source moved; `ml_filter verify` says so
            texts |= _from_source(output_dir / embeddings, rows, group, surveyed["documents"])
    return texts


def _from_source(embeddings: Path, rows: Sequence[int], group: str, n_rows: int) -> dict[int, tuple[str, str]]:
    with EmbeddingFile(embeddings, group) as file:
        if file.provenance is None or file.n_rows != n_rows:  # deduplicated lines are not the rows of the embeddings
            return {}
        source, request = file.provenance.source, file.provenance.request
        lines = file.array(SOURCE_LINE, slice(0, rows[-1] + 1))
        row_of = {int(lines[row]): row for row in rows}
    found: dict[int, tuple[str, str]] = {}
    schema = schema_of(request)
    with open_source(Path(source["folder"], source["path"]), schema.keys, source["path"]) as reader:
        for line in islice(reader.lines(DEFAULT_MAX_LINE_BYTES), max(row_of)):
            if line.number in row_of and isinstance(line, Line):
                document = parse_document(line, schema, source["path"])
                if isinstance(document, Document):
                    found[row_of[line.number]] = (document.id, _shortened(document.text))
    return found


def _from_annotations(
    output_dir: Path, stem: str, rows: Sequence[int], surveyed: Mapping[str, Any]
) -> dict[int, tuple[str, str]]:
    paths = scored_files(output_dir, stem)
    path = next((path for path in paths if is_same_file(path, surveyed, read_content=False) is not False), None)
    if path is None:
        return {}
    found: dict[int, tuple[str, str]] = {}
    try:
        with open_source(path, None) as reader:
            for row, line in enumerate(islice(reader.lines(DEFAULT_MAX_LINE_BYTES), rows[-1] + 1)):
                if row in rows and isinstance(line, Line):
                    record = orjson.loads(line.content)
                    found[row] = (
                        str(record.get(DOCUMENT_ID, f"line {line.number}")),
                        _shortened(line.content.decode()),
                    )
    except (MlfilterError, OSError, ValueError, AttributeError):  # `ml_filter verify` names it
        return found
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= N_CHARACTERS else f"{text[:N_CHARACTERS]}…"
