"""The pictures of a report, as SVG elements in the colours of their page.

Axes and letters have the colour of the surrounding text, areas the page's `--blue`, `--orange` and so on, so that one
picture fits light pages, dark pages and paper.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from mlfilter_core.run_report.facts import Rates, RunFacts
from mlfilter_core.tallies.histogram import Histogram
from mlfilter_core.tallies.score_statistics import ScoreStatistics

# Okabe and Ito's palette, safe for every kind of colour vision; on dark backgrounds the page has brighter shades of it.
PALETTE = {
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "vermilion": "#d55e00",
    "yellow": "#f0e442",
}
INK = "#010203"  # placeholder of the text's colour; used for nothing else
GREY = "#8b949e"  # readable on white and on black
WIDTH_INCHES, HEIGHT_INCHES = 5.2, 2.9
MAX_ENLARGEMENT = 1.5  # from points to pixels of the page
SMALL_INCHES = (3.4, 2.1)
MAX_BARS = 60
MAX_LIMITS = 8  # of groups such as languages, as lines in a histogram
MIN_TIME_BINS = 15  # with fewer, speed over time is one block of colour
MAX_NAME_CHARACTERS = 28  # for the name of a head or a worker beside an axis
MAX_NUMBERED_SCORES = 10  # up to this number, squares contain their correlations; beyond, the page has a list
STYLE = {
    "svg.fonttype": "none",  # letters can be searched and copied
    "svg.hashsalt": "mlfilter",  # the same facts give the same bytes
    "font.size": 9,
    "text.parse_math": False,  # names may contain dollar signs
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.6,
}


def draw_throughput(rates: Rates, unit: str) -> str:
    """Returns documents or tokens per second over time: by worker; for many workers, the sum and the quantiles.

    Args:
        rates: Rates of a run.
        unit: `documents` or `tokens`.
    """
    by_worker = rates.documents if unit == "documents" else rates.tokens
    values = np.array(list(by_worker.values()))
    scale, time_unit = time_scale(rates.bin_s * values.shape[1])
    edges = np.arange(values.shape[1] + 1) * rates.bin_s / scale
    with _figure() as figure:
        if len(values) <= len(PALETTE):
            axes = figure.subplots()
            tops = np.cumsum(values, axis=0)
            for name, own, top, color in zip(by_worker, values, tops, PALETTE.values(), strict=False):
                label = _short(name.removeprefix("worker-"))
                axes.stairs(top, edges, baseline=top - own, fill=True, color=color, label=label)
            if len(values) > 1:
                axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2, borderaxespad=0)
            axes.set_ylabel(f"{unit}/s")
        else:
            above, axes = figure.subplots(2, sharex=True)
            above.stairs(values.sum(axis=0), edges, fill=True, color=PALETTE["blue"])
            above.set_ylabel(f"{unit}/s,\nall workers")
            low, middle, high = quantiles_of_present(values)
            axes.stairs(high, edges, baseline=low, fill=True, color=PALETTE["sky"], label="10 to 90 % of workers")
            axes.stairs(middle, edges, baseline=None, color=PALETTE["vermilion"], linewidth=1.4, label="median")
            axes.set_ylabel(f"{unit}/s,\none worker")
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.4), ncols=2, borderaxespad=0)
        for each in figure.axes:
            each.set_xlim(0, edges[-1])
            each.yaxis.set_major_formatter(FuncFormatter(_short_number))
            _finish(each)
        axes.set_xlabel(f"{time_unit} since the first file")
        return _svg(figure, f"{unit} per second over the time of the run, {len(values)} workers")


def is_worth_drawing(rates: Rates) -> bool:
    """Returns whether speed over time shows more than the average."""
    return len(next(iter(rates.documents.values()))) >= MIN_TIME_BINS


def quantiles_of_present(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the 10, 50 and 90 % quantiles of each bin, (3, n_bins), over the workers between first and last file."""
    is_busy = rates > 0
    has_begun = np.maximum.accumulate(is_busy, axis=1)
    has_not_ended = np.maximum.accumulate(is_busy[:, ::-1], axis=1)[:, ::-1]
    is_present = has_begun & has_not_ended
    is_present |= ~is_present.any(axis=0)  # without any worker, all are at 0
    return np.nanquantile(np.where(is_present, rates, np.nan), [0.1, 0.5, 0.9], axis=0)


def draw_time(run: RunFacts) -> str:
    """Returns busy and waiting time of the workers, and of each stage."""
    rows = [("workers", run.busy_worker_s, max(0.0, run.held_worker_s - run.busy_worker_s))]
    rows += [(stage, busy, run.waited_s[stage]) for stage, busy in run.busy_s.items()]
    scale, unit = time_scale(max(busy + other for _, busy, other in rows))
    with _figure(height=0.6 + 0.32 * len(rows)) as figure:
        axes = figure.subplots()
        for row, (_, busy, other) in enumerate(rows):
            color = PALETTE["blue" if row else "green"]
            axes.barh(row, busy / scale, color=color, height=0.62)
            axes.barh(
                row, other / scale, left=busy / scale, color="none", edgecolor=color, hatch="////", height=0.62, lw=0.6
            )
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"{unit}, sum over the workers")
        axes.tick_params(axis="y", length=0)
        _finish(axes, grid="x")
        times = "; ".join(f"{name}: {busy / scale:.3g} busy, {other / scale:.3g} not" for name, busy, other in rows)
        return _svg(figure, f"where the time went, in {unit}: {times}")


def draw_lengths(document_tokens: Histogram, n_truncated: int, max_length: int | None) -> str:
    """Returns the histogram of the documents' lengths; truncated documents stand out."""
    bars = _readable_bins(document_tokens)
    edges = bars.edges()
    with _figure() as figure:
        axes = figure.subplots()
        axes.stairs(bars.counts, edges, fill=True, color=PALETTE["blue"], label="whole")
        if n_truncated and max_length is not None:
            place = min(max(0, int(max_length // bars.width) - bars.first), len(bars.counts) - 1)
            n_in_bin = min(n_truncated, int(bars.counts[place]))
            axes.stairs(
                [bars.counts[place]],
                edges[place : place + 2],
                baseline=bars.counts[place] - n_in_bin,
                fill=True,
                color=PALETTE["vermilion"],
                label=f"truncated at {max_length:,} tokens ({n_truncated / max(1, document_tokens.n):.1%})",
            )
            axes.legend(loc="upper center")
        axes.set(
            xlabel="tokens per document, after truncation",
            ylabel=f"documents (bins of {bars.width:,.0f})",
            xlim=(0, None),
        )
        _count_documents(axes)
        return _svg(
            figure, f"histogram of the tokens of {document_tokens.n:,} documents; {n_truncated:,} were truncated"
        )


def draw_score(statistics: ScoreStatistics, i: int, is_small: bool, limits: Sequence[float] = ()) -> str:
    """Returns the histogram of one score, with its mean and the lowest scores that a filter keeps."""
    name = statistics.names[i]
    values = _readable_bins(statistics.histograms[i])
    mean = float(statistics.means[i])
    with _figure(*(SMALL_INCHES if is_small else (WIDTH_INCHES, HEIGHT_INCHES))) as figure:
        axes = figure.subplots()
        if statistics.maxima[i] > statistics.minima[i]:
            axes.stairs(values.counts, values.edges(), fill=True, color=PALETTE["blue"])
        else:  # a bar of the bin's width would be invisible
            axes.bar([mean], [statistics.n], width=0.1 * max(1.0, abs(mean)), color=PALETTE["blue"])
            axes.set_xlim(mean - max(1.0, abs(mean)), mean + max(1.0, abs(mean)))
        axes.axvline(mean, color=PALETTE["vermilion"], linewidth=1.4, linestyle="--")
        for limit in sorted(limits)[:MAX_LIMITS]:
            axes.axvline(limit, color=PALETTE["green"], linewidth=1.4)
        axes.set(xlabel=_short(name), ylabel="documents")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        _count_documents(axes)
        at = f", limits {', '.join(f'{limit:.3g}' for limit in sorted(limits)[:MAX_LIMITS])}" if limits else ""
        return _svg(figure, f"histogram of {name}, mean {mean:.3g}{at}")


def draw_correlations(statistics: ScoreStatistics) -> str:
    """Returns the Pearson correlation of each pair of scores as a matrix of colours; `-` where there is none."""
    values = statistics.correlations()
    n = len(statistics.names)
    names = [_short(name) for name in statistics.names]
    side = 2.2 + min(n, 50) * (0.52 if n <= MAX_NUMBERED_SCORES else 0.16)
    with _figure(side, side - 0.6) as figure:
        axes = figure.subplots()
        # Brown for negative, blue-green for positive: safe for every kind of colour vision.
        mesh = axes.pcolormesh(values, cmap="BrBG", vmin=-1, vmax=1, edgecolors="none")
        axes.set_xticks(np.arange(n) + 0.5, names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(n) + 0.5, names)
        axes.tick_params(length=0, labelsize=9 if n <= MAX_NUMBERED_SCORES else 6)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        if n <= MAX_NUMBERED_SCORES:
            for (row, column), value in np.ndenumerate(values):
                shown, ink = ("-", INK) if math.isnan(value) else (f"{value:.2f}", _readable(value))
                axes.text(column + 0.5, row + 0.5, shown, ha="center", va="center", color=ink, fontsize=8)
        figure.colorbar(mesh, ax=axes, label="Pearson's r", shrink=0.8).outline.set_visible(False)
        return _svg(figure, f"correlations of {n} scores")


def draw_clusters(names: Sequence[str], documents: Sequence[int]) -> str:
    """Returns a bar for the documents of each cluster."""
    with _figure(height=0.6 + 0.2 * len(names)) as figure:
        axes = figure.subplots()
        axes.barh(range(len(names)), documents, color=PALETTE["blue"], height=0.66)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("documents")
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.tick_params(axis="y", length=0)
        _finish(axes, grid="x")
        return _svg(figure, f"documents of {len(names)} clusters, {max(documents):,} in the largest")


def standalone(svg: str) -> str:
    """Returns a picture that needs no page for its colours, readable on light and dark backgrounds."""
    for name, color in _colors(GREY).items():
        svg = svg.replace(f": {name}", f": {color}")
    view_box = re.search(r'viewBox="0 0 ([^ ]*) ([^"]*)"', svg)
    assert view_box is not None, "every picture has one"
    width, height = (float(side) * MAX_ENLARGEMENT for side in view_box.groups())
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" font-family="sans-serif"'
    return svg.replace("<svg ", f"<svg {size} ", 1)


def time_scale(seconds: float) -> tuple[float, str]:
    """Returns the most readable unit for a time: its seconds and its name."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


@contextmanager
def _figure(width: float = WIDTH_INCHES, height: float = HEIGHT_INCHES) -> Iterator[Figure]:
    """Gives a new figure; the style holds within the block, for `_svg` too."""
    with mpl.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _colors(ink: str) -> dict[str, str]:
    """Returns the colours of a picture by their names in CSS."""
    return {"currentColor": ink, **{f"var(--{name})": color for name, color in PALETTE.items()}}


def _count_documents(axes: Any) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(_short_number))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    _finish(axes)


def _short_number(value: float, _: int = 0) -> str:
    """Returns the label of a tick: `0.5`, `200`, `1.5k`, `20M`."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def _finish(axes: Any, grid: str = "y") -> None:
    axes.grid(axis=grid, color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["left" if grid == "y" else "bottom"]].set_visible(False)
    axes.tick_params(axis=grid, length=0)


def _readable_bins(values: Histogram) -> Histogram:
    """Returns about as many bins as Rice's rule gives: narrow bars of few values show no shape."""
    return values.coarser(min(MAX_BARS, max(8, math.ceil(4 * values.n ** (1 / 3)))))


def _readable(correlation: float) -> str:
    return "#ffffff" if abs(correlation) > 0.6 else "#000000"


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[: MAX_NAME_CHARACTERS - 1]}…"


def _svg(figure: Figure, label: str) -> str:
    """Returns a figure as an element, which takes the width of its place in the page."""
    FigureCanvasSVG(figure)
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # but in the browser's fonts
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type", "Format"))
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None, "matplotlib gives every figure one"
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids of groups would repeat in every picture of a page; ids of clips and marks depend on their content.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    # The page sets fonts and lines; a style element would apply to the whole page.
    svg = re.sub(r"<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for name, color in _colors(INK).items():
        svg = svg.replace(f": {color}", f": {name}")
    body = svg.partition(">")[2]
    about = escape(label, quote=True)
    # A small picture is not enlarged to the width of its place: its letters would be larger than the page's.
    width = float(view_box[1].split()[2]) * MAX_ENLARGEMENT
    attributes = f'viewBox="{view_box[1]}" style="max-width: {width:.0f}px" role="img" aria-label="{about}"'
    return f'<svg {attributes} xmlns:xlink="http://www.w3.org/1999/xlink">{body}'


def strongest_pairs(statistics: ScoreStatistics, n: int) -> Sequence[tuple[str, str, float]]:
    """Returns the pairs of scores with the largest absolute correlations, the strongest first."""
    values: NDArray[np.float64] = statistics.correlations()
    rows, columns = np.triu_indices(len(statistics.names), 1)
    found = values[rows, columns]
    order = np.argsort(-np.abs(np.nan_to_num(found)), kind="stable")[:n]
    return [
        (statistics.names[rows[place]], statistics.names[columns[place]], float(found[place]))
        for place in order
        if not math.isnan(found[place])
    ]
