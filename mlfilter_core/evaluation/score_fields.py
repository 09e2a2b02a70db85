"""The fields of annotated files that contain scores, one for each head."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import BadRecordError, find_value, string_at
from mlfilter_core.corpus.records import Record, id_key, read_records
from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.draws import MISSING
from mlfilter_core.tallies.tally import Tally

WILDCARDS = frozenset("*?[")
# Arbitrary. Records usually have few different sets of keys; the limit is for metadata that differ from line to line.
N_CACHED = 1024


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """One record of an annotated file.

    Attributes:
        line: Line number, from 1.
        record: All fields.
        key: Name of the field with the document's id.
        scores: Values of the score fields, valid or not; `MISSING` where the record lacks one.
    """

    line: int
    record: Record
    key: str
    scores: dict[str, Any]

    @property
    def document_id(self) -> str:
        return string_at(self.record, self.key)


class ScoreFields:
    """Field names or patterns for them: `score_*`, or `score_a,scores.score`."""

    def __init__(self, written: str) -> None:
        """Takes the value of `--score-keys`.

        Raises:
            ConfigError: It names no field.
        """
        self.written = written
        self._parts = tuple(part.strip() for part in written.split(",") if part.strip())
        if not self._parts:
            raise ConfigError(f'--score-keys "{written}" names no field; give a pattern such as "score_*", or names')
        self._matching = lru_cache(N_CACHED)(self._find)

    def read(self, path: Path, bad_lines: Tally) -> Iterator[ScoredRecord | None]:
        """Yields the record of each line that is not blank; None for a line without a record or an id.

        The fields of the first record are expected in all others.

        Args:
            path: Annotated file.
            bad_lines: Receives the lines that yield None, by reason.

        Raises:
            AnnotationError: The first record, or every record, lacks score fields, or a later record has other ones.
            SourceError: The file is missing, unreadable or truncated.
        """
        expected: tuple[str, ...] = ()
        first: ScoredRecord | None = None
        has_scores = False
        for line, record in read_records(path):
            try:
                if isinstance(record, BadRecordError):
                    raise record
                key = id_key(record)
            except BadRecordError as error:
                bad_lines.add(error.reason, f"{path}:{line}: {error.detail}")
                yield None
                continue
            found = self._matching(tuple(record))
            expected = expected or found
            if not expected:
                raise self._no_match(path, line, record)
            if not set(found).issubset(expected):
                raise AnnotationError(
                    f"{path}:{line}: the score fields are {', '.join(found)}, but those of earlier lines are "
                    f"{', '.join(expected)}; name the fields to use with --score-keys"
                )
            row = ScoredRecord(line, record, key, {name: _value(record, name) for name in expected})
            first = first or row
            has_scores = has_scores or any(score is not MISSING for score in row.scores.values())
            yield row
        if first is not None and not has_scores:
            raise self._no_match(path, first.line, first.record)

    def _no_match(self, path: Path, line: int, record: Record) -> AnnotationError:
        return AnnotationError(
            f'{path}: no field matches --score-keys "{self.written}"; line {line} has: {", ".join(record)}'
        )

    def _find(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for part in self._parts:
            is_pattern = bool(WILDCARDS.intersection(part))
            found.update(dict.fromkeys([key for key in keys if fnmatchcase(key, part)] if is_pattern else [part]))
        return tuple(found)


def _value(record: Record, name: str) -> Any:
    try:
        return find_value(record, name)
    except KeyError:
        return MISSING
