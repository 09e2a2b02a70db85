"""The first documents of some files, to check a job before it starts workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mlfilter_core.corpus.documents import BadRecordError, parse_record
from mlfilter_core.corpus.lines import Line
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.errors import SourceError
from mlfilter_core.files.task_files import TaskFile, evenly_spaced

# An error of all documents shows in the first ones, and a few files may be of another kind. 16 files take 0.1 s.
N_FILES, N_LINES = 16, 32
MAX_BYTES = 1 << 20  # decompressed, per file; arbitrary: a hundred times the size of most first documents


@dataclass(frozen=True)
class FirstDocuments:
    """Records of the first lines.

    Attributes:
        records: JSON objects.
        n_bytes: Bytes of their lines, decompressed.
    """

    records: Sequence[Mapping[str, Any]]
    n_bytes: int


def read_first_documents(files: Sequence[TaskFile], max_line_bytes: int) -> FirstDocuments:
    """Returns records from the first lines of evenly chosen files; skips unreadable files, whose tasks report them.

    Args:
        files: Files of a run.
        max_line_bytes: Most bytes of a line; longer lines are skipped.
    """
    records: list[Mapping[str, Any]] = []
    n_bytes = 0
    for file in evenly_spaced(files, N_FILES):
        own_bytes = 0
        try:
            with open_source(file.path, relative=file.relative) as reader:
                for line in islice(reader.lines(max_line_bytes), N_LINES):
                    if isinstance(line, Line) and (record := _record(line.content)) is not None:
                        records.append(record)
                        own_bytes += len(line.content) + 1
                    if own_bytes > MAX_BYTES:
                        break
        except (SourceError, OSError):
            pass
        n_bytes += own_bytes
    return FirstDocuments(records, n_bytes)


def _record(content: bytes) -> Mapping[str, Any] | None:
    try:
        return parse_record(content)
    except BadRecordError:
        return None
