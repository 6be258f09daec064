"""Exact selection of concrete scores in host memory, by NumPy's introselect: nothing is compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def highest(scores: Sequence[np.ndarray], keep: Sequence[int], *, jointly: bool, absolute: bool) -> list[np.ndarray]:
    """The masks of the highest scores: what `counting.highest` gives, bit by bit.

    Args:
      scores: One NumPy array a leaf.
      keep: How many stay, in all or of each leaf.
      jointly: Whether all leaves compete.
      absolute: Whether scores rank by absolute value.
    """
    values = [_comparable(score.reshape(-1), absolute) for score in scores]
    if jointly:
        kept = _highest(np.concatenate(values), keep[0]) if values else np.ones(0, bool)
        flat = np.split(kept, np.cumsum([value.size for value in values])[:-1])
    else:
        flat = [_highest(value, number) for value, number in zip(values, keep, strict=True)]
    return [mask.reshape(score.shape) for mask, score in zip(flat, scores, strict=True)]


def _comparable(values: np.ndarray, absolute: bool) -> np.ndarray:
    """The scores in a dtype that NumPy selects from quickly and that tells all of them apart."""
    wide = values if values.dtype.itemsize == 8 else values.astype(np.float32, copy=False)
    return np.abs(wide) if absolute else wide


def _highest(values: np.ndarray, keep: int) -> np.ndarray:
    """Which are the `keep` highest: ties to the lowest index, NaN last."""
    if keep in (0, values.size):
        return np.full(values.size, keep > 0)
    # NumPy sorts NaN above everything, and so apart from the numbers.
    numbers = values.size - int(np.isnan(values).sum())
    if keep > numbers:
        kept = ~np.isnan(values)
        kept[np.flatnonzero(~kept)[: keep - numbers]] = True
        return kept
    threshold = np.partition(values, numbers - keep)[numbers - keep]
    kept = values >= threshold
    extra = int(kept.sum()) - keep
    if extra:
        kept[np.flatnonzero(values == threshold)[-extra:]] = False
    return kept
