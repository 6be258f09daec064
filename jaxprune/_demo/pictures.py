"""The demo's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


def draw_accuracy(curves: Mapping[str, Sequence[tuple[float, float]]], dense: float, path: Path) -> None:
    """Accuracy against sparsity, a line per strategy, each of another look.

    Args:
      curves: From the strategy to points (fraction of weights removed, accuracy), both in [0, 1].
      dense: The dense model's accuracy.
      path: The file to write.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(dense, color="black", linestyle="--", linewidth=1, label="dense")
    for (name, points), (colour, marker) in zip(curves.items(), looks(len(curves)), strict=True):
        ordered = sorted(points)
        axes.plot([p[0] for p in ordered], [p[1] for p in ordered], color=colour, marker=marker, label=name)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("sparsity: the fraction of weights removed")
    axes.set_ylabel("accuracy on held-out images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def looks(count: int) -> list[tuple[Any, str]]:
    """A colour and a marker for each of so many lines, no two alike: twenty colours, and markers of another period."""
    colours, markers = [colormaps["tab20"](i) for i in range(20)], "osD^v<>P*Xp"
    # The dark half of the colours first, since the light half is of the same hues.
    ordered = [*colours[::2], *colours[1::2]]
    return [(ordered[i % len(ordered)], markers[i % len(markers)]) for i in range(count)]


def draw_masks(layers: Mapping[str, np.ndarray], title: str, path: Path) -> None:
    """What each strategy keeps of one kernel.

    Args:
      layers: From a caption to a boolean matrix `(in, out)`, or to the pruned kernel itself where it has no zeros.
      title: Above the pictures.
      path: The file to write.
    """
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(3 * columns, 0.5 + 3 * rows), layout="constrained")
    figure.suptitle(title)
    for axes, (caption, layer) in zip(figure.subplots(rows, columns, squeeze=False).flat, layers.items(), strict=False):
        colours = "gray_r" if layer.dtype == bool else "RdBu"
        limit = 1.0 if layer.dtype == bool else float(np.abs(layer).max())
        axes.imshow(layer.T, aspect="auto", cmap=colours, vmin=0 if layer.dtype == bool else -limit, vmax=limit)
        axes.set_title(caption, fontsize="small")
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in figure.axes[len(layers) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=120)
