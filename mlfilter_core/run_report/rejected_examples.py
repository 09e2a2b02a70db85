"""A few rejected lines for each reason, from the rejects files."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from mlfilter_core.corpus.lines import OverlongLine, SourceReader
from mlfilter_core.errors import SourceError
from mlfilter_core.run_report.facts import RejectFacts

N_EXAMPLES = 3
N_CHARACTERS = 200  # of a line, and of what is wrong with it
# Bounds on what is read for a few examples; both are arbitrary. A rare reason may be left without.
MAX_LINES, MAX_LINE_BYTES = 2000, 1 << 20


def rejects_by_reason(
    output_dir: Path, by_reason: Mapping[str, int], files: Iterable[tuple[str, Mapping[str, int]]]
) -> list[RejectFacts]:
    """Returns the reasons, the most frequent first, with the first examples that are found.

    Args:
        output_dir: The files' folder.
        by_reason: Lines of all files.
        files: Rejects files relative to it, each with the lines that it has of each reason.
    """
    wanted = Counter({reason: min(n, N_EXAMPLES) for reason, n in by_reason.items()})
    examples: dict[str, list[dict[str, Any]]] = {reason: [] for reason in by_reason}
    n_lines = 0
    for relative, own in files:
        if not any(wanted[reason] for reason in own) or n_lines >= MAX_LINES:
            continue
        sought = {reason for reason in own if wanted[reason]}
        try:
            with SourceReader(output_dir / relative) as reader:
                for line in reader.lines(MAX_LINE_BYTES):
                    n_lines += 1
                    record = None if isinstance(line, OverlongLine) else orjson.loads(line.content)
                    reason = record["reason"] if record else ""
                    if record and reason in sought:
                        examples[reason].append(_example(relative, record))
                        wanted[reason] -= 1
                        sought = {reason for reason in sought if wanted[reason]}
                    if not sought or n_lines >= MAX_LINES:
                        break
        except (SourceError, OSError, ValueError, KeyError, TypeError, AttributeError):  # `ml_filter verify` says more
            continue
    return [
        RejectFacts(reason, n, tuple(examples[reason]))
        for reason, n in sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))
    ]


def _example(relative: str, record: Mapping[str, Any]) -> dict[str, Any]:
    raw = record.get("raw")
    text = f"{raw[:N_CHARACTERS]}{'...' if len(raw) > N_CHARACTERS else ''}" if raw is not None else "(no UTF-8)"
    return {
        "file": relative,
        "line": int(record["line"]),
        "detail": str(record.get("detail", ""))[:N_CHARACTERS],
        "text": text,
    }
