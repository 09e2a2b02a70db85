"""The fields of annotated files that are scores, as several heads write them beside a document."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlfilter_core.corpus.documents import BadRecordError, as_string, find_value
from mlfilter_core.corpus.records import Record, id_key, read_records
from mlfilter_core.errors import AnnotationError, ConfigError
from mlfilter_core.evaluation.draws import MISSING

WILDCARDS = frozenset("*?[")
# Documents have few different sets of keys; arbitrary, as a bound for those whose metadata differ from line to line.
N_CACHED = 1024


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """One line of an annotated file.

    Attributes:
        line: Its number, from 1.
        record: The whole of it.
        key: Where in it the document's id is.
        scores: The value of each score field as it stands there; `MISSING` where there is none.
    """

    line: int
    record: Record
    key: str
    scores: dict[str, Any]

    @property
    def document_id(self) -> str:
        return as_string(self.record[self.key])


class ScoreFields:
    """Names of fields, or patterns for them: `score_*`, or `score_a,scores.score`."""

    def __init__(self, written: str) -> None:
        """Takes what follows `--score_keys`.

        Raises:
            ConfigError: It names no field.
        """
        self.written = written
        self._parts = tuple(part.strip() for part in written.split(",") if part.strip())
        if not self._parts:
            raise ConfigError(f'--score_keys "{written}" names no field; give a pattern such as "score_*", or names')
        self._matching = lru_cache(N_CACHED)(self._find)

    def read(self, path: Path) -> Iterator[ScoredRecord | tuple[int, BadRecordError]]:
        """Yields each line of an annotated file that is not blank; a broken one as its number and what is wrong.

        The first record tells the fields that all of them should have.

        Raises:
            AnnotationError: The first record, or every one, has no such field, or a later one has others.
            SourceError: The file is missing, not readable, or breaks off.
        """
        expected: tuple[str, ...] = ()
        first: ScoredRecord | None = None
        has_any = False
        for line, record in read_records(path):
            try:
                if isinstance(record, BadRecordError):
                    raise record
                key = id_key(record)
            except BadRecordError as error:
                yield line, error
                continue
            found = self._matching(tuple(record))
            expected = expected or found
            if not expected:
                raise self._absent(path, line, record)
            if not set(found).issubset(expected):
                raise AnnotationError(
                    f"{path}:{line}: the score fields are {', '.join(found)}, those of the lines before "
                    f"{', '.join(expected)}; name those that you mean with --score_keys"
                )
            row = ScoredRecord(line, record, key, {name: _value(record, name) for name in expected})
            first = first or row
            has_any = has_any or any(score is not MISSING for score in row.scores.values())
            yield row
        if first is not None and not has_any:
            raise self._absent(path, first.line, first.record)

    def _absent(self, path: Path, line: int, record: Record) -> AnnotationError:
        return AnnotationError(
            f'{path}: no field matches --score_keys "{self.written}"; line {line} has: {", ".join(record)}'
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
