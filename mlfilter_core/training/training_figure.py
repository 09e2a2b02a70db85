"""The figure of a head's training: its losses, and its outputs for held-out documents."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfilter_core.training.fit_head import FittedHead

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's palette, safe for colour-blind readers
MAX_POINTS = 1500  # in the scatter plot; arbitrary: more points make the file slow to open and show nothing new


def draw_training(
    path: Path, title: str, fitted: FittedHead, outputs: NDArray[np.float32], labels: NDArray[np.float32]
) -> None:
    """Writes an SVG file.

    Args:
        path: Path of the file.
        title: Title above both plots.
        fitted: The head with its losses.
        outputs: float32 (n,), outputs for the held-out documents.
        labels: float32 (n,), labels of the held-out documents.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    figure.suptitle(title)
    losses, scatter = figure.subplots(1, 2)
    epochs = np.arange(1, len(fitted.training_loss) + 1)
    losses.plot(epochs, fitted.training_loss, color=BLUE, label="documents trained on")
    losses.plot(epochs, fitted.validation_loss, color=ORANGE, linestyle="--", label="documents left out")
    losses.axvline(fitted.epochs, color=GREY, linewidth=1, label=f"the head: epoch {fitted.epochs}")
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend(frameon=False)
    shown = np.linspace(0, len(labels) - 1, min(len(labels), MAX_POINTS)).astype(int)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(shown))  # most labels are integers
    scatter.scatter(labels[shown] + jitter, outputs[shown], s=_area(len(shown)), alpha=0.5, color=BLUE, linewidths=0)
    scatter.set(xlabel="label of a held-out document", ylabel="output of the head")
    for axes in (losses, scatter):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _area(n: int) -> float:
    """Returns the area of each of n points: few points are to be seen, too."""
    return min(40.0, max(8.0, 2000 / max(1, n)))
