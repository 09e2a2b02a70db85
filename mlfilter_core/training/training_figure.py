"""The picture of a head's training: its losses, and what it gives for documents that it has not seen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's palette, which people with any kind of colour vision tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
MAX_POINTS = 5000  # of a scatter plot; arbitrary: more make the file slow to open, and show nothing more


def draw_training(
    path: Path,
    title: str,
    training_loss: Sequence[float],
    validation_loss: Sequence[float],
    epochs: int,
    outputs: NDArray[np.float32],
    labels: NDArray[np.float32],
) -> None:
    """Writes an SVG file.

    Args:
        path: Of the file.
        title: Above both plots.
        training_loss: Of each epoch.
        validation_loss: Of each epoch.
        epochs: The epoch that the head is taken from, counted from 1.
        outputs: float32 (n,), what it gives for held-out documents.
        labels: float32 (n,), theirs.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    figure.suptitle(title)
    losses, scatter = figure.subplots(1, 2)
    steps = np.arange(1, len(training_loss) + 1)
    losses.plot(steps, training_loss, color=BLUE, label="documents trained on")
    losses.plot(steps, validation_loss, color=ORANGE, linestyle="--", label="documents left out")
    losses.axvline(epochs, color=GREY, linewidth=1, label=f"the head: epoch {epochs}")
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend(frameon=False)
    shown = np.linspace(0, len(labels) - 1, min(len(labels), MAX_POINTS)).astype(int)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(shown))  # labels are whole numbers mostly
    scatter.scatter(labels[shown] + jitter, outputs[shown], s=8, alpha=0.5, color=BLUE, linewidths=0)
    scatter.set(xlabel="label of a held-out document", ylabel="what the head gives")
    for axes in (losses, scatter):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})
