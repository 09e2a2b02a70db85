"""Compares a file of kept documents with the lines that they are copies of."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.corpus.lines import Line, OverlongLine
from mlfilter_core.corpus.source_text import UTF8_BOM
from mlfilter_core.corpus.sources import Source
from mlfilter_core.verification.annotated_lines import MAX_LINE_BYTES
from mlfilter_core.verification.discrepancies import Findings


def check_kept_lines(
    written: Source,
    name: str,
    lines: Iterator[Line | OverlongLine] | None,
    origin: Path | None,
    is_kept: NDArray[np.bool_],
    findings: Findings,
) -> None:
    """Checks that a file has the kept lines of another one, in order, and no others.

    Args:
        written: The file of kept documents, open.
        name: Its name for messages.
        lines: A line for each document; None to count the kept ones alone.
        origin: The file that these are from.
        is_kept: Which documents are kept, bool (n,).
        findings: Collects the problems.
    """
    wanted = iter(()) if lines is None else _kept(lines, origin, is_kept, findings)
    n = 0
    for line in written.lines(MAX_LINE_BYTES):
        n += 1
        expected = next(wanted, None)
        if expected is not None and not _is_same(line, expected):
            findings.add("lines", f"{name}, line {line.number} is not line {expected.number} of {origin}")
    for _ in wanted:  # counts the lines
        pass
    n_kept = int(is_kept.sum())
    if n != n_kept:
        findings.add("number", f"{name} has {n:,} documents, and {n_kept:,} are kept")


def not_blank(source: Source) -> Iterator[Line | OverlongLine]:
    """Yields the lines of an annotated file, one for each document."""
    for line in source.lines(MAX_LINE_BYTES):
        if isinstance(line, OverlongLine) or (line.content and not line.content.isspace()):
            yield line


def _kept(
    lines: Iterator[Line | OverlongLine], origin: Path | None, is_kept: NDArray[np.bool_], findings: Findings
) -> Iterator[Line | OverlongLine]:
    n = 0
    for line in lines:
        if n < len(is_kept) and is_kept[n]:
            yield line
        n += 1
    if n != len(is_kept):
        findings.add("origin", f"{origin} has {n:,} lines for {len(is_kept):,} documents")


def _is_same(line: Line | OverlongLine, expected: Line | OverlongLine) -> bool:
    if isinstance(line, OverlongLine) or isinstance(expected, OverlongLine):
        return False
    return line.content == expected.content or _text(line) == _text(expected)


def _text(line: Line) -> bytes:
    return line.content.removeprefix(UTF8_BOM).strip()
