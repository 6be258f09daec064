"""Exact selection where scores are traced, on an accelerator or on a mesh: by counting, in one loop.

For each group, all leaves together or one leaf, the loop of `search` finds the highest key that at least `keep` scores
reach. Where more scores share that key than may stay, the same loop finds the place before which enough of them lie.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxprune._arrays import meshes, ordering, tree, wide
from jaxprune._arrays.wide import Wide
from jaxprune._selection.brackets import Marks, Parts, search
from jaxprune._selection.pieces import of as pieces_of
from jaxprune.typing import Mask, Score

_SLAB = 2**31 - 1  # scores in an array whose places 32 bits tell apart
_TYPICAL = np.array([0, 2.0**-10, 2.0**-6, 2.0**-2, 4])  # scores to count at first, where none are sampled
_DEVIATIONS = np.array([-2.5, -0.8, 0, 0.8, 2.5], np.float32)  # of the quantiles of a sample


@functools.partial(jax.jit, static_argnames=("groups", "weights", "absolute"))
def highest(
    scores: tuple[Score, ...],
    keep: Int[Array, " group"] | Wide,
    *,
    groups: tuple[int, ...],
    weights: tuple[int, ...],
    absolute: bool,
) -> tuple[Mask, ...]:
    """The masks of the highest scores.

    Args:
      scores: One array a leaf.
      keep: How many stay of each group, by weight; see `search`.
      groups: For each leaf the group whose scores it competes with, ascending from 0.
      weights: For each leaf how much one of its scores counts.
      absolute: Whether scores rank by absolute value.
    """
    # Keys of different dtypes do not compare.
    dtype = functools.reduce(tree.promote, [score.dtype for score in scores])
    slabs = [_slabs(score) for score in scores]
    owner = np.repeat(np.arange(len(scores)), [len(pieces) for pieces in slabs])
    pieces = [slab.astype(dtype) for pieces in slabs for slab in pieces]
    if not pieces:
        return tuple(jnp.ones(score.shape, bool) for score in scores)
    filled, group = np.unique(np.array(groups)[owner], return_inverse=True)
    number = keep.indexed(filled) if isinstance(keep, Wide) else keep[filled]
    size = np.array([piece.size for piece in pieces])
    masks = _masks(pieces, Parts(size, group, len(filled), np.array(weights)[owner]), number, absolute)
    return tuple(
        _joined(score, pieces, [masks[piece] for piece in np.flatnonzero(owner == leaf).tolist()])
        for leaf, (score, pieces) in enumerate(zip(scores, slabs, strict=True))
    )


def _masks(arrays: list[Any], parts: Parts, keep: Int[Array, " group"] | Wide, absolute: bool) -> list[Mask]:
    """The masks of arrays, the parts."""
    pieces = pieces_of(arrays, absolute)
    first = _sampled_marks(pieces.samples(), parts, keep)
    if first is None:
        typical = ordering.keys(jnp.asarray(_TYPICAL, arrays[0].dtype))
        first = jnp.broadcast_to(typical, (len(arrays), len(typical)))
    found = search(pieces.count, parts, keep, first)
    least = jnp.where(found.tied, found.key, found.low)
    places = jnp.where(found.tied, (1 - found.low).astype(jnp.int32), jnp.asarray(parts.size, jnp.int32))
    return pieces.masks(least, places)


def _sampled_marks(samples: list[Any], parts: Parts, keep: Int[Array, " group"] | Wide) -> Marks | None:
    """Quantiles of samples around the threshold; of equal ones, those that follow are the next keys."""
    if not samples:
        return None
    rows = [jnp.concatenate(samples)] if parts.groups == 1 else samples
    drawn = np.array([row.size for row in rows], np.float32)[:, None]
    limits = jnp.iinfo(rows[0].dtype)
    filled = [jnp.pad(row, (0, int(drawn.max()) - row.size), constant_values=limits.max) for row in rows]
    totals = np.bincount(parts.group, parts.size * parts.weight).astype(np.float32)
    below = 1 - wide.floating(keep)[:, None] / totals[:, None]
    place = below * drawn + _DEVIATIONS[None, :] * (jnp.sqrt(drawn * below * (1 - below)) + 1)
    place = jnp.clip(place, 0, drawn - 1).astype(jnp.int32)
    quantiles = jnp.take_along_axis(jnp.sort(jnp.stack(filled), axis=1), place, axis=1)
    columns = [quantiles[:, 0]]
    for column in quantiles.T[1:]:
        columns.append(jnp.maximum(column, jnp.minimum(columns[-1], limits.max - 1) + 1))
    return parts.spread(jnp.stack(columns, axis=1))


def _slabs(score: Score) -> list[Score]:
    """The score itself, or slabs of fewer than 2**31 where it has more, which are copies; none if it is empty."""
    if score.size <= _SLAB:
        return [score] if score.size else []
    rows = _SLAB // (score.size // score.shape[0])
    if not rows:
        raise ValueError(
            f"Selection needs fewer than 2**31 groups in each slice along a leaf's first axis; got shape "
            f"{score.shape}. Give the leaf another axis in front."
        )
    whole = meshes.gather(score, 0)
    return [whole[start : start + rows] for start in range(0, score.shape[0], rows)]


def _joined(score: Score, slabs: list[Score], masks: list[Mask]) -> Mask:
    """One mask of those of all slabs."""
    shaped = [mask.reshape(slab.shape) for mask, slab in zip(masks, slabs, strict=True)]
    return jnp.concatenate(shaped) if len(shaped) > 1 else shaped[0] if shaped else jnp.ones(score.shape, bool)
