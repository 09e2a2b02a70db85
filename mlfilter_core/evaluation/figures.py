"""Pictures of a comparison: a confusion matrix, histograms of scores.

They are made without pyplot, whose state belongs to the whole process.
"""

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mlfilter_core.evaluation.comparison import Comparison
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.files.publishing import publish

# From light to dark; reads alike with and without colour vision, and in grey.
COLORS = "cividis_r"
TRUE_COLOR, PREDICTED_COLOR = mpl.colormaps[COLORS]([0.85, 0.25])
LETTERS_PER_INCH = 11  # of a title, with some room
DOTS_PER_INCH = 150
MAX_BINS = 60
MAX_TICKS = 12
MAX_WRITTEN_LABELS = 20  # a picture of more would be too large to be looked at


def draw_confusion(comparison: Comparison, path: Path) -> None:
    """Draws how many documents of each true label got which predicted one, the colour being their share."""
    confusion, names = comparison.confusion, comparison.scale.names
    true_counts = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(true_counts, 1)
    n_drawn = min(len(names), MAX_WRITTEN_LABELS)
    with _new_figure(path, width=2.5 + 0.75 * n_drawn, height=1.5 + 0.6 * n_drawn) as figure:
        axes = figure.add_subplot()
        # White where there is nothing, which is much of it: the rest stands out.
        image = axes.imshow(np.ma.masked_equal(shares, 0), cmap=COLORS, vmin=0, vmax=1, aspect="auto")
        _set_ticks(axes.set_xticks, ["invalid", *names])
        _set_ticks(axes.set_yticks, names)
        axes.set(xlabel="predicted label", ylabel="true label")
        _set_title(axes, comparison)
        for (row, column), share in np.ndenumerate(shares) if n_drawn == len(names) else ():
            shown = f"{confusion[row, column]:,}" + (f"\n{share:.0%}" if confusion[row, column] else "")
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, shown, ha="center", va="center", fontsize="small", color=color)
        figure.colorbar(image, label="share of the true label", format=PercentFormatter(1))


def draw_scores(comparison: Comparison, path: Path) -> None:
    """Draws the distributions of true and of predicted scores, of the same documents, one above the other."""
    with _new_figure(path, width=6, height=4.5) as figure:
        above, below = figure.subplots(2, sharex=True)
        scores = (
            (above, "true", comparison.truth, TRUE_COLOR),
            (below, "predicted", comparison.predicted, PREDICTED_COLOR),
        )
        for axes, name, values, color in scores:
            bins = _bins(comparison.scale, values)
            # What lies further out stands in the outermost bins.
            axes.hist(values.clip(bins[0], bins[-1]), bins=bins, color=color, edgecolor="black", linewidth=0.4)
            axes.set_ylabel(f"documents,\n{name} score")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("score")
        below.xaxis.set_major_locator(FixedLocator(comparison.scale.labels, nbins=MAX_TICKS))
        _set_title(above, comparison)


def draw_invalid(comparison: Comparison, path: Path) -> None:
    """Draws the true labels of the documents to which the annotator gave no valid score."""
    names = comparison.scale.names
    with _new_figure(path, width=2 + 0.7 * min(len(names), MAX_WRITTEN_LABELS), height=3.5) as figure:
        axes = figure.add_subplot()
        bars = axes.bar(range(len(names)), comparison.confusion[:, 0], color=TRUE_COLOR)
        axes.bar_label(bars)
        _set_ticks(axes.set_xticks, names)
        axes.set(xlabel="true label", ylabel="documents without\na valid predicted score")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.1)
        _set_title(axes, comparison)


@contextmanager
def _new_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Gives a figure of a size in inches, which is written to `path` at the end."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with publish(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in letters that the font lacks
        figure.savefig(temporary, format="png")
    figure.clear()


def _set_ticks(set_ticks: Callable[[range, Sequence[str]], object], names: Sequence[str]) -> None:
    """Names each place, or of too many every second, third and so on."""
    places = range(0, len(names), -(-len(names) // (1 + MAX_WRITTEN_LABELS)))
    set_ticks(places, [names[place] for place in places])


def _set_title(axes: Any, comparison: Comparison) -> None:
    title = f"{comparison.annotator}, {comparison.language or 'all languages'}"
    lines = textwrap.fill(title, int(axes.figure.get_figwidth() * LETTERS_PER_INCH))
    axes.set_title(lines, parse_math=False, fontsize="medium")


def _bins(scale: Scale, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns edges of bins with a label in the middle of one each; four times as many where scores lie between."""
    labels = np.array(scale.labels)
    step = float(np.diff(labels).min()) if len(labels) > 1 else 1.0
    low, high = labels[0] - step, labels[-1] + step
    width = step if np.isin(scores, labels).all() else step / 4
    if high - low > MAX_BINS * width:
        width = (high - low) / MAX_BINS
    return np.arange(low - width / 2, high + width, width)
