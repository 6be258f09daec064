"""Which of the scores at the threshold stay: those of the first leaves, and in a leaf those at the lowest indices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxprune import counting, partition
from jaxprune.partition import Parts
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
    leaf, group, start = leaf[order], group[order], start[order]
    tied = _tied(finer, keys, wanted)[order]
    before = jnp.cumsum(tied) - tied
    left = wanted[group] - (before - before[np.searchsorted(group, group)])
    # In each group, the first part that does not keep all its ties.
    end, place = len(order), np.arange(len(order), dtype=np.int32)
    passing = jax.ops.segment_min(jnp.where(left < tied, place, end), jnp.asarray(group, jnp.int32), len(wanted))
    at = jnp.minimum(passing, end - 1)
    part = jnp.where(passing < end, jnp.asarray(order, jnp.int32)[at], -1)
    index = jnp.asarray(start, jnp.int32)[at] + _inside(finer, part, keys, left[at])
    numbers = np.arange(len(problem.sizes))
    first, after = (np.searchsorted(leaf, numbers, side).astype(np.int32) for side in ("left", "right"))
    passing, index = passing[problem.group], index[problem.group]
    sizes = jnp.asarray(problem.sizes, jnp.int32)
    return jnp.where(passing >= after, sizes, jnp.where(passing < first, 0, index))


def _tied(parts: list[Parts], keys: Int[Array, " group"], wanted: Int[Array, " group"]) -> Int[Array, " part"]:
    """How many ties each part holds."""
    marks = jnp.stack([keys, keys + 1], axis=1)
    above = [own.visit(counting.count, wanted > 0, marks, keys).above for own in parts]
    return jnp.concatenate([from_key - beyond for from_key, beyond in (found.T for found in above)])


def _inside(
    parts: list[Parts], part: Int[Array, " group"], keys: Int[Array, " group"], wanted: Int[Array, " group"]
) -> Int[Array, " group"]:
    """How far into a part of each group the cut lies."""
    index, first = jnp.zeros_like(wanted), 0
    for own in parts:
        index += own.look(counting.first_equal, part - first, keys, wanted)
        first += len(own.leaf)
    return index
