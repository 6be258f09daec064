"""What pruning did to each layer, small enough to draw."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune._arrays import tree
from jaxprune._evaluation import _metrics
from jaxprune._masks import masking, verbs
from jaxprune.typing import Masks, Params

_DRAWN = 12  # layers, the largest
_CELLS = 96
_BINS = 61


class Layer(NamedTuple):
    """A pruned leaf.

    Attributes:
      path: Its path.
      edges: Between which weights are counted.
      before: The shares of its weights between them, those that are 0 left out.
      after: Likewise, after pruning.
      kept: The share kept of each part of the kernel as a matrix, its last axis across, at most 96 by 96; `None` where
        no single weights are masked.
    """

    path: str
    edges: np.ndarray
    before: np.ndarray
    after: np.ndarray
    kept: np.ndarray | None


def drawn(before: Params, after: Params, masks: Masks | None, leaves: list[_metrics.LeafSummary]) -> list[Layer]:
    """The largest of these leaves, with their weights."""
    largest = {leaf.path for leaf in sorted(leaves, key=lambda leaf: -leaf.size)[:_DRAWN]}
    dense = dict(zip(tree.paths(before), jax.tree.leaves(before), strict=True))
    if masks is not None:
        rows = tree.flatten(masking.apply(after, masks), masks, names=("masks",))[0]
        pruned = {path: (leaf, mask) for path, leaf, mask in rows if path in largest}
    else:
        pruned = {path: (leaf, None) for path, leaf in tree.flatten(after)[0] if path in largest}
    return [_layer(leaf.path, dense[leaf.path], *pruned[leaf.path]) for leaf in leaves if leaf.path in pruned]


def _layer(path: str, before: Any, after: Any, mask: Any) -> Layer:
    first, last = (np.asarray(leaf).astype(np.float32).reshape(-1) for leaf in (before, after))
    reach = float(np.abs(first[np.isfinite(first)]).max(initial=0)) or 1.0
    edges = np.linspace(-reach, reach, _BINS + 1)
    shares, later = (np.histogram(w[w != 0], edges)[0] / max(first.size, 1) for w in (first, last))
    keeps = verbs.of_weights(path, after, mask)
    if keeps is None:
        return Layer(path, edges, shares, later, None)
    kept = np.broadcast_to(np.asarray(keeps), after.shape)
    matrix = kept.reshape(-1, kept.shape[-1]) if kept.ndim else kept.reshape(1, 1)
    return Layer(path, edges, shares, later, _shrunk(matrix))


def _shrunk(kept: np.ndarray) -> np.ndarray:
    """The shares of parts of about equal size."""
    for axis in (0, 1):
        size = kept.shape[axis]
        starts = np.unique(np.linspace(0, size, min(size, _CELLS), endpoint=False).astype(int))
        counts = np.diff([*starts, size])
        sums = np.add.reduceat(kept.astype(np.float32), starts, axis=axis)
        kept = sums / np.expand_dims(counts, 1 - axis)
    return kept
