"""Which of the scores at the threshold stay: those of the first leaves, and in a leaf those at the lowest indices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxprune import counting, partition
from jaxprune.threshold import Problem


def cuts(problem: Problem, keys: Int[Array, " group"], wanted: Int[Array, " group"]) -> Int[Array, " leaf"]:
    """For each leaf the flat index before which its ties are among the first of its group.

    The ties of each part are counted; only the part in which the count passes `wanted` is looked into.

    Args:
      problem: Leaves and their groups, which must ascend together.
      keys: What the ties of each group are equal to.
      wanted: How many of them stay.
    """
    finer = partition.finer(problem.parts)
    leaf, group, start = (np.concatenate([getattr(parts, of) for parts in finer]) for of in ("leaf", "group", "start"))
    order = np.lexsort((start, leaf))
    leaf, group = leaf[order], group[order]
    above = [
        parts.visit(
            functools.partial(counting.count, absolute=parts.absolute), wanted > 0, jnp.stack([keys, keys + 1], 1)
        )
        for parts in finer
    ]
    tied = (lambda counts: counts[:, 0] - counts[:, 1])(jnp.concatenate(above)[order])
    before = jnp.cumsum(tied) - tied
    left = wanted[group] - (before - before[np.searchsorted(group, group)])
    # In each group, the first part that does not keep all its ties.
    end, place = len(order), np.arange(len(order), dtype=np.int32)
    passing = jax.ops.segment_min(jnp.where(left < tied, place, end), jnp.asarray(group, jnp.int32), len(wanted))
    at = jnp.minimum(passing, end - 1)
    part = jnp.where(passing < end, jnp.asarray(order, jnp.int32)[at], -1)
    index, offset = jnp.asarray(start[order], jnp.int32)[at], 0
    for parts in finer:
        look = functools.partial(counting.first_equal, absolute=parts.absolute)
        index += parts.look(look, part - offset, keys, left[at])
        offset += len(parts.leaf)
    numbers = np.arange(len(problem.sizes))
    first, after = (np.searchsorted(leaf, numbers, side).astype(np.int32) for side in ("left", "right"))
    passing, index = passing[problem.group], index[problem.group]
    sizes = jnp.asarray(problem.sizes, jnp.int32)
    return jnp.where(passing >= after, sizes, jnp.where(passing < first, 0, index))
