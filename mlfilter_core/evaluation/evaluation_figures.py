"""Figures of an annotator's result: a confusion matrix and histograms of scores.

They do not use pyplot, whose state is global to the process.
"""

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mlfilter_core.evaluation.annotator_result import AnnotatorResult
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.files.publishing import publish

# From light to dark; readable with any colour vision, and in grey.
COLORS = "cividis_r"
TRUE_COLOR, PREDICTED_COLOR = mpl.colormaps[COLORS]([0.85, 0.25])
LETTERS_PER_INCH = 11  # letters of a title, with a margin
DOTS_PER_INCH = 150
MAX_BINS = 60
MAX_TICKS = 12
MAX_WRITTEN_LABELS = 20  # more labels would need a figure larger than a screen


def draw_confusion(result: AnnotatorResult, path: Path) -> None:
    """Draws the number of documents by true and predicted label; colours show the share of the true label."""
    confusion, names = result.confusion, result.scale.names
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    n_drawn = min(len(names), MAX_WRITTEN_LABELS)
    with _new_figure(path, result, width=2.5 + 0.75 * n_drawn, height=1.5 + 0.6 * n_drawn) as figure:
        axes = figure.add_subplot()
        # Most cells are empty: white makes the others stand out.
        image = axes.imshow(np.ma.masked_equal(shares, 0), cmap=COLORS, vmin=0, vmax=1, aspect="auto")
        _set_ticks(axes.set_xticks, ["invalid", *names])
        _set_ticks(axes.set_yticks, names)
        axes.set(xlabel="predicted label", ylabel="true label")
        for (row, column), share in np.ndenumerate(shares) if n_drawn == len(names) else ():
            shown = f"{confusion[row, column]:,}" + (f"\n{share:.0%}" if confusion[row, column] else "")
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, shown, ha="center", va="center", fontsize="small", color=color)
        figure.colorbar(image, label="share of the true label", format=PercentFormatter(1))


def draw_scores(result: AnnotatorResult, path: Path) -> None:
    """Draws the distributions of the true and the predicted scores of the same documents, one above the other."""
    with _new_figure(path, result, width=6, height=4.5) as figure:
        above, below = figure.subplots(2, sharex=True)
        scores = (
            (above, "true", result.truth, TRUE_COLOR),
            (below, "predicted", result.predicted, PREDICTED_COLOR),
        )
        for axes, name, values, color in scores:
            bins = _bins(result.scale, values)
            # The outermost bins contain the scores beyond them.
            axes.hist(values.clip(bins[0], bins[-1]), bins=bins, color=color, edgecolor="black", linewidth=0.4)
            axes.set_ylabel(f"documents,\n{name} score")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("score")
        below.xaxis.set_major_locator(FixedLocator(result.scale.labels, nbins=MAX_TICKS))


def draw_invalid(result: AnnotatorResult, path: Path) -> None:
    """Draws the true labels of the documents without a valid predicted score."""
    names = result.scale.names
    with _new_figure(path, result, width=2 + 0.7 * min(len(names), MAX_WRITTEN_LABELS), height=3.5) as figure:
        axes = figure.add_subplot()
        axes.bar_label(axes.bar(range(len(names)), result.confusion[:, 0], color=TRUE_COLOR))
        _set_ticks(axes.set_xticks, names)
        axes.set(xlabel="true label", ylabel="documents without\na valid predicted score")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.1)


@contextmanager
def _new_figure(path: Path, result: AnnotatorResult, width: float, height: float) -> Iterator[Figure]:
    """Yields a figure of a size in inches; it gets a title and is written to `path` at the end."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    title = f"{result.annotator}, {result.language or 'all languages'}"
    lines = textwrap.fill(title, int(width * LETTERS_PER_INCH))
    figure.axes[0].set_title(lines, parse_math=False, fontsize="medium")
    with publish(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in scripts that the font lacks
        figure.savefig(temporary, format="png")
    figure.clear()


def _set_ticks(set_ticks: Callable[[range, Sequence[str]], object], names: Sequence[str]) -> None:
    """Labels each place; of too many, every second one, every third one and so on."""
    places = range(0, len(names), -(-len(names) // (1 + MAX_WRITTEN_LABELS)))
    set_ticks(places, [names[place] for place in places])


def _bins(scale: Scale, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns bin edges with every label in the middle of a bin; bins are narrower if scores lie between labels."""
    labels = np.array(scale.labels)
    step = float(np.diff(labels).min()) if len(labels) > 1 else 1.0
    low, high = labels[0] - step, labels[-1] + step
    width = step if np.isin(scores, labels).all() else step / 4
    if high - low > MAX_BINS * width:
        width = (high - low) / MAX_BINS
    return np.arange(low - width / 2, high + width, width)
