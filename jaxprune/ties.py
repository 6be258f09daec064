"""Which of the scores at the threshold stay: those of the first leaves, and in a leaf those at the lowest indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jaxprune import meshes, ordering, wide
from jaxprune.partition import Parts, Rows, Whole
from jaxprune.threshold import Problem
from jaxprune.wide import Wide


def cuts(problem: Problem, keys: Int[Array, " group"], wanted: Wide) -> Int[Array, " leaf"]:
    """For each leaf the flat index before which its ties are among the first of its group.

    The ties of each row are counted; only the row in which the count passes what stays is looked into.

    Args:
      problem: Leaves and their groups, which must ascend together.
      keys: What the ties of each group are equal to.
      wanted: For each group, how many of them stay.
    """
    group, own_key = problem.group, keys[problem.group]
    leaf = np.concatenate([parts.leaves for parts in problem.parts])
    tied = _stacked([parts.tied(keys, wide.clipped(wanted) > 0) for parts in problem.parts])[np.argsort(leaf)]
    total = jnp.sum(tied, axis=1, dtype=jnp.int32)
    left = wanted.indexed(group)
    if len(np.unique(group)) < len(group):
        before = wide.before(total)
        left = wide.plus(wide.minus(left, before), before.indexed(np.searchsorted(group, group)))
    stay = jnp.clip(wide.clipped(left), 0, total)
    searched = [parts for parts in problem.parts if _is_searched(parts)]
    in_rows = [parts for parts in problem.parts if not _is_searched(parts)]
    found = [parts.cut(own_key, stay, (stay > 0) & (stay < total)) for parts in searched]
    if in_rows:
        row, left = _passing(tied, stay)
        found.append(_in_rows(in_rows, row, left, own_key))
    order = np.argsort(np.concatenate([parts.leaves for parts in [*searched, *in_rows]]))
    return jnp.where(stay == total, jnp.asarray(problem.sizes, jnp.int32), jnp.concatenate(found)[order])


def _is_searched(parts: Parts) -> TypeGuard[Whole]:
    """Whether the parts are a leaf that is spread over devices: it has no rows to look into."""
    return isinstance(parts, Whole) and meshes.is_spread(parts.array)


def _in_rows(
    parts: Sequence[Parts], row: Int[Array, " all"], wanted: Int[Array, " all"], keys: Int[Array, " all"]
) -> Int[Array, " leaf"]:
    """The index in each leaf of these parts before which, in this row, as many places as wanted have this key."""
    leaves, width, taken = (
        np.concatenate([getattr(own, of) for own in parts]).astype(np.int32) for of in ("leaves", "row_widths", "taken")
    )
    first = row[leaves] * width
    start = jnp.minimum(first, taken - width)  # a shorter last row starts early, so as not to end beyond the leaf
    everywhere = jnp.zeros_like(row).at[leaves].set(start)
    raw = [[own.row(everywhere) for own in parts if isinstance(own, kind)] for kind in (Whole, Rows)]
    found = [ordering.keys(_stacked(rows), parts[0].absolute) for rows in raw if rows]
    place = (start - first)[:, None] + np.arange(width.max(), dtype=np.int32)[None]
    own = (place >= 0) & (place < width[:, None])
    equal = (_stacked(found) == keys[leaves][:, None]) & own
    return start + _passing(equal.astype(jnp.int32), wanted[leaves])[0]


def _passing(
    counts: Int[Array, "leaf place"], wanted: Int[Array, " leaf"]
) -> tuple[Int[Array, " leaf"], Int[Array, " leaf"]]:
    """The first place at which the sum of the counts passes what is wanted, and what is left of that before it."""
    through = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    is_before = through <= wanted[:, None]
    place = jnp.sum(is_before, axis=1, dtype=jnp.int32)
    return place, wanted - jnp.sum(jnp.where(is_before, counts, 0), axis=1, dtype=jnp.int32)


def _stacked(rows: Sequence[Array]) -> Array:
    """Rows of different lengths, filled up with zeros."""
    width = max(own.shape[1] for own in rows)
    zero = jnp.zeros((), rows[0].dtype)
    return jnp.concatenate([lax.pad(own, zero, [(0, 0, 0), (0, width - own.shape[1], 0)]) for own in rows])
