"""Exact selection of concrete scores in host memory, by NumPy's introselect: nothing is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def highest(
    scores: Sequence[np.ndarray],
    keep: Sequence[int],
    *,
    groups: Sequence[int],
    weights: Sequence[int],
    absolute: bool,
) -> list[np.ndarray]:
    """The masks of the highest scores: what `counting.highest` gives, bit by bit.

    Args:
      scores: One NumPy array a leaf.
      keep: How many stay of each group, by weight.
      groups: For each leaf the group whose scores it competes with, ascending from 0.
      weights: For each leaf how much one of its scores counts.
      absolute: Whether scores rank by absolute value.
    """
    masks = list[np.ndarray]()
    for group, number in enumerate(keep):
        members = [leaf for leaf, its_group in enumerate(groups) if its_group == group]
        values = [_repeated(_comparable(scores[leaf].reshape(-1), absolute), weights[leaf]) for leaf in members]
        kept = _highest(np.concatenate(values), number)
        for leaf, part in zip(members, np.split(kept, np.cumsum([value.size for value in values])[:-1]), strict=True):
            whole: Any = part if weights[leaf] == 1 else part.reshape(-1, weights[leaf]).all(axis=1)
            masks.append(whole.reshape(scores[leaf].shape))
    return masks


def _repeated(values: np.ndarray, weight: int) -> np.ndarray:
    """A score of weight two stands there twice, and stays if both may."""
    return values if weight == 1 else np.repeat(values, weight)


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
