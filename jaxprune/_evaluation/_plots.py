"""Pictures of a report, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune._evaluation._convergence import averaged


def draw(found: Any, path: Path) -> None:
    """Draws the quality before and after and the density of each leaf of a `Report`, and what else there is."""
    from matplotlib.figure import Figure

    panels = [_draw_quality, _draw_kept]
    panels += [_draw_corrupted] * bool(found.before.corrupted) + [_draw_losses] * (found.convergence is not None)
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(9, 3 * rows + 0.2 * len(found.leaves)), layout="constrained")
    places = figure.subplots(rows, 2, squeeze=False).flat
    for axes, function in zip(places, panels, strict=False):
        function(axes, found)
    for axes in list(places)[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(path)


def _draw_pairs(axes: Any, names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> None:
    """Draws bars of shares in per cent, in pairs of before and after."""
    for offset, label, shares in ((-0.2, "before", before), (0.2, "after", after)):
        bars = axes.bar(np.arange(len(names)) + offset, [100 * share for share in shares], 0.4, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize="small")
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize="small")
    axes.set_ylabel("per cent")
    axes.legend(loc="lower right")


def _draw_quality(axes: Any, found: Any) -> None:
    names = list(found.before.metrics)
    before, after = ([values.metrics[name] for name in names] for values in (found.before, found.after))
    if "accuracy" in names:
        _draw_pairs(axes, names, before, after)
        return
    # Metrics of different units share one picture as multiples of what they were before.
    axes.bar(range(len(names)), [a / b if b else 1.0 for b, a in zip(before, after, strict=True)])
    axes.set_xticks(range(len(names)), names, fontsize="small")
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set_ylabel("after, times before")


def _draw_corrupted(axes: Any, found: Any) -> None:
    names = list(found.before.corrupted)
    _draw_pairs(axes, names, *([values.corrupted[name] for name in names] for values in (found.before, found.after)))
    axes.set_ylabel("accuracy, per cent")


def _draw_kept(axes: Any, found: Any) -> None:
    axes.barh(range(len(found.leaves)), [100 * (1 - leaf.sparsity) for leaf in found.leaves])
    axes.set_yticks(range(len(found.leaves)), [leaf.path for leaf in found.leaves])
    axes.invert_yaxis()
    axes.set_xlabel("kept, per cent")


def _draw_losses(axes: Any, found: Any) -> None:
    assert found.convergence is not None
    window = found.convergence.window
    for label, losses in (("before", found.convergence.before), ("after", found.convergence.after)):
        axes.plot(np.arange(window, len(losses) + 1), averaged(losses, window), label=label)
    for level, *_ in found.convergence.steps():
        axes.axhline(level, color="black", linewidth=0.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(loc="upper right")
