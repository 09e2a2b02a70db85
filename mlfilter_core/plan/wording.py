"""Numbers as a person reads them."""

from collections.abc import Callable
from typing import TypeAlias

from mlfilter_core.plan.estimates import Estimate

Wording: TypeAlias = Callable[[float], str]

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
MAGNITUDES = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"))


def in_bytes(n_bytes: float) -> str:
    """Returns `3.4 MB`."""
    for unit in UNITS:
        if n_bytes < 999.5 or unit == UNITS[-1]:
            return f"{n_bytes:,.0f} {unit}" if unit == "B" or n_bytes >= 1000 else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    raise AssertionError


def in_time(seconds: float) -> str:
    """Returns `42 s`, `12 minutes`, `3.5 hours` or `12.0 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:,.1f} hours" if seconds < 72 * 3600 else f"{seconds / 86400:,.1f} days"


def in_number(n: float) -> str:
    """Returns `12,345`, or `1.23 million` from a million on."""
    size, name = next(((size, name) for size, name in MAGNITUDES if n >= 0.9995 * size), (1, ""))
    return f"{n / size:.3g}{name}" if name else f"{n:,.0f}"


def in_rate(n: float) -> str:
    """Returns `2.4`, or `1,200` from a hundred on."""
    return f"{n:.1f}" if n < 100 else in_number(n)


def in_share(part: float, whole: float) -> str:
    """Returns `0.3 %`."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"


def estimated(estimate: Estimate, say: Wording = in_number) -> str:
    """Returns `1,200`, where it is known, else `about 1,200 (1,100 to 1,300)`."""
    if estimate.is_exact or say(estimate.low) == say(estimate.high):
        return say(estimate.value)
    return f"about {say(estimate.value)} ({say(estimate.low)} to {say(estimate.high)})"
