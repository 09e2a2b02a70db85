"""A few rejected lines for each reason, from the rejects files."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from mlfilter_core.corpus.lines import OverlongLine, SourceReader
from mlfilter_core.errors import SourceError
from mlfilter_core.run_report.facts import RejectFacts

N_EXAMPLES = 3
N_CHARACTERS = 200  # shown characters of a line, and of its error
# Limits of what is read for a few examples. Arbitrary; rare reasons may get no example.
MAX_LINES, MAX_LINE_BYTES = 2000, 1 << 20


def rejects_by_reason(
    output_dir: Path, by_reason: Mapping[str, int], files: Iterable[tuple[str, Mapping[str, int]]]
) -> list[RejectFacts]:
    """Returns the reasons, the most frequent first, each with the first examples found.

    Args:
        output_dir: Folder of the files.
        by_reason: Rejected lines of all files for each reason.
        files: Paths of rejects files, relative to the folder, and the lines of each file for each reason.
    """
    wanted = Counter({reason: min(n, N_EXAMPLES) for reason, n in by_reason.items()})
    examples: dict[str, list[dict[str, Any]]] = {reason: [] for reason in by_reason}
    n_left = MAX_LINES
    for relative, own in files:
        sought = Counter({reason: min(n, wanted[reason]) for reason, n in own.items()})
        if not sought.total() or not n_left:
            continue
        try:
            for record in _records(output_dir / relative):
                n_left -= 1
                reason = record["reason"] if record else ""
                if record and sought[reason]:
                    examples[reason].append(_example(relative, record))
                    wanted[reason] -= 1
                    sought[reason] -= 1
                if not sought.total() or not n_left:
                    break
        except (SourceError, OSError, ValueError, KeyError, TypeError, AttributeError):  # `ml_filter verify` names it
            continue
    ordered = sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))
    return [RejectFacts(reason, n, tuple(examples[reason])) for reason, n in ordered]


def _records(path: Path) -> Iterator[Any]:
    """Yields the records of a rejects file; None for one that is too long."""
    with SourceReader(path) as reader:
        for line in reader.lines(MAX_LINE_BYTES):
            yield None if isinstance(line, OverlongLine) else orjson.loads(line.content)


def _example(relative: str, record: Mapping[str, Any]) -> dict[str, Any]:
    raw = record.get("raw")
    text = f"{raw[:N_CHARACTERS]}{'...' if len(raw) > N_CHARACTERS else ''}" if raw is not None else "(no UTF-8)"
    return {
        "file": relative,
        "line": int(record["line"]),
        "detail": str(record.get("detail", ""))[:N_CHARACTERS],
        "text": text,
    }
