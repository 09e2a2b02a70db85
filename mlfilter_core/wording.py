"""Values as a person reads them: counts, sizes, durations, rates, shares, digests.

Estimates have separate functions, `rough_...`, which round to the precision of an estimate.
"""

import math
import re
from typing import Any

SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
MAGNITUDES = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
SHA256 = re.compile(r"[0-9a-f]{64}")
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
DIGEST_CHARACTERS = 12  # enough to distinguish the files that a person compares
MAX_SHOWN_CHARACTERS = 200  # arbitrary: prompts are rarely longer
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


def count(n: float) -> str:
    """Returns a whole number: `1,234`."""
    return f"{n:,.0f}"


def plural(n: int, noun: str) -> str:
    """Returns a count of things: `1 file`, `1,234 files`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def natural_order(name: str) -> tuple[bool, bool, int, str]:
    """Returns the place of a name among others, for `sorted`: none, whole numbers by value (`2`, `10`), other names."""
    is_number = WHOLE_NUMBER.fullmatch(name) is not None
    return name != "", not is_number, int(name) if is_number else 0, name


def number(value: float | None) -> str:
    """Returns a measured value with three digits, `0.123`, or whole from a thousand on, `1,234`; else `-`."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else count(value)


def end_of_path(path: str, n_characters: int) -> str:
    """Returns a path, or the part of its end that fits, as files of a folder differ there: `…/part-00012.jsonl`."""
    if len(path) <= n_characters:
        return path
    end = path[-max(1, n_characters - 1) :]
    _, slash, names = end.partition("/")  # whole names, where one fits
    return f"…{slash}{names}" if names else f"…{end}"


def shortened(text: str, n_characters: int) -> str:
    """Returns a text in one line, cut to a number of characters: `beginning of a te…`."""
    text = " ".join(text.split())
    return text if len(text) <= n_characters else f"{text[: n_characters - 1]}…"


def rough_number(n: float) -> str:
    """Returns an estimated count: `12,345`, or `1.23 million` from a million on."""
    for magnitude, name in MAGNITUDES:
        if n >= 0.9995 * magnitude:  # rounds up to it
            return f"{n / magnitude:.3g} {name}"
    return count(n)


def rate(n: float) -> str:
    """Returns a number per second: `2.4`, or `1,200` from a hundred on."""
    return f"{n:.1f}" if n < 100 else rough_number(n)


def size(n_bytes: float, n_digits: int = 3) -> str:
    """Returns a size in decimal units: `3.42 MB`."""
    for unit in SIZE_UNITS:
        if n_bytes < 999.5 or unit == SIZE_UNITS[-1]:
            return f"{count(n_bytes)} {unit}" if unit == "B" or n_bytes >= 1000 else f"{n_bytes:.{n_digits}g} {unit}"
        n_bytes /= 1000
    raise AssertionError


def sizes_apart(one_bytes: float, other_bytes: float) -> tuple[str, str]:
    """Returns two sizes with as many digits as show which is larger: `1.0004 GB`, `1 GB`."""
    for n_digits in range(3, 16):
        one, other = size(one_bytes, n_digits), size(other_bytes, n_digits)
        if one != other:
            break
    return one, other


def duration(seconds: float) -> str:
    """Returns a measured time: `45.3 s`, `12 min 3 s`, `3 h 12 min`, `2 days 4 h`."""
    if seconds < MINUTE_S - 0.05:  # does not round up to it
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S} s"
    if whole < 2 * DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} days {whole % DAY_S // HOUR_S} h"


def rough_duration(seconds: float) -> str:
    """Returns an estimated time: `42 s`, `12 minutes`, `3.5 hours`, `12.0 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * HOUR_S:
        return f"{seconds / MINUTE_S:.0f} minutes"
    return f"{seconds / HOUR_S:,.1f} hours" if seconds < 3 * DAY_S else f"{seconds / DAY_S:,.1f} days"


def share(part: float, whole: float) -> str:
    """Returns a counted part in per cent: `33.3 %`; `< 0.1 %` for few of many, `-` where there is no whole."""
    if not whole:
        return "-"
    return "< 0.1 %" if 0 < part / whole < 0.0005 else f"{100 * part / whole:.1f} %"


def rough_share(part: float, whole: float) -> str:
    """Returns an estimated part in per cent, with two digits: `33 %`, `0.3 %`."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"


def shown(value: Any) -> str:
    """Returns a value for a message, as Python writes it: a digest by its first characters, long ones shortened."""
    if isinstance(value, str) and SHA256.fullmatch(value):
        return value[:DIGEST_CHARACTERS]
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 3]}..."
