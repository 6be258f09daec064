"""Pruning a sparse model further: what earlier masks removed stays removed, and what they kept competes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import host, tree
from jaxprune._masks import masking, verbs
from jaxprune._masks.frequency import Spectral
from jaxprune._selection import requests
from jaxprune.typing import Mask, Masks, Params, Pattern, Score, Scores

_NOT_PICKED = object()


def pruned(params: Params, within: Masks) -> Params:
    """The parameters of the sparse model."""
    return params if within is None else masking.apply(params, within)


def restricted(scores: Scores, within: Masks, pattern: Pattern) -> Scores:
    """The scores, under which what `within` removes is chosen last."""
    filled = jax.tree.map(lambda score: _NOT_PICKED if score is None else score, scores, is_leaf=verbs.is_mask)
    rows, treedef = tree.flatten(filled, within, names=("within",))
    leaf_patterns = iter(requests.by_leaf(pattern, scores))

    def leaf(path: str, score: Any, mask: Any) -> Any:
        if score is _NOT_PICKED:
            return None
        mine = next(leaf_patterns)
        if mask is None:
            return score
        if isinstance(mask, Spectral):
            raise ValueError(f"`within` removes frequencies of '{path}', where this removes weights. Give it to `dft`.")
        # Where scores are averaged, NaN would empty the whole group.
        averaged = requests.fitting(mine.pool, path, score, abstract=True).shape != score.shape
        averaged = averaged or getattr(mine, "group", 1) > 1
        return _last(host.view(score), host.view(verbs.checked(path, score, _any(mask, score))), averaged)

    return treedef.unflatten([leaf(*row) for row in rows])


def _any(mask: Any, score: Score) -> Any:
    """The mask, at size 1 along the axes of which the scores do not tell the positions apart."""
    if not tree.is_array(mask) or mask.ndim != score.ndim:
        return mask
    axes = tuple(a for a in range(score.ndim) if score.shape[a] == 1 < mask.shape[a])
    return host.view(mask).any(axes, keepdims=True) if axes else mask


def _last(score: Score, mask: Mask, averaged: bool) -> Score:
    """The scores with those of what is removed as low as can be: NaN, or the lowest that are kept, at most 0."""
    xp: Any = np if isinstance(score, np.ndarray) and isinstance(mask, np.ndarray) else jnp
    if not averaged:
        return xp.where(mask, score, xp.full_like(score, xp.nan))
    zeros = xp.zeros_like(score)
    lowest = xp.min(xp.where(mask & (score < 0), score, zeros), initial=0)
    return xp.where(mask, score, xp.full_like(score, lowest))
