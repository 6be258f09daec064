"""Which of the scores at the threshold stay: those of the first leaves, and in a leaf those at the lowest indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jaxprune._arrays import wide
from jaxprune._arrays.wide import Wide
from jaxprune._selection import partition, spread
from jaxprune._selection.brackets import Problem


def cuts(
    problem: Problem, keys: Int[Array, " group"], wanted: Wide, rows: Sequence[Int[Array, "_ _"]]
) -> Int[Array, " leaf"]:
    """For each leaf the flat index before which its ties are among the first of its group.

    Only the row in which the number of ties passes what stays is looked into.

    Args:
      problem: Leaves and their groups, which must ascend together.
      keys: What the ties of each group are equal to.
      wanted: For each group, how many of them stay.
      rows: How many ties there are; see `threshold.Search`.
    """
    group, bundles = problem.group, partition.bundled(problem.parts)
    parts, own_key = [own for bundle in bundles for own in bundle], partition.picked(keys, group)
    order = np.argsort(np.concatenate([own.leaves for own in parts]))
    width = np.concatenate([own.row_widths for own in parts])[order].astype(np.int32)
    by_leaf = [own[0].by_leaf(found) for own, found in zip(bundles, rows, strict=True)]
    rows_most, places_most = max(found.shape[1] for found in by_leaf), int(width.max())
    if places_most <= partition.MANY:  # then what looks into rows and into the places of one is compiled once
        rows_most = places_most = max(rows_most, places_most)
    tied = partition.picked(jnp.concatenate([_filled(found, rows_most) for found in by_leaf]), order)
    if len(np.unique(group)) == len(group):  # then some are wanted of any leaf with ties, and others not
        stay, are_all = wide.clipped(wanted), False
        is_cut = stay > 0
    else:
        total = jnp.sum(tied, axis=1, dtype=jnp.int32)
        before = wide.before(total)
        before_in_group = wide.minus(before, before.indexed(np.searchsorted(group, group)))
        stay = jnp.clip(wide.clipped(wide.minus(wanted.indexed(group), before_in_group)), 0, total)
        are_all = stay == total
        is_cut = (stay > 0) & ~are_all
    found = [own.cut(own_key, stay, is_cut) for own in parts if partition.is_spread(own)]
    leaves = [own.leaves for own in parts if partition.is_spread(own)]
    if len(found) < len(parts):
        row, left = _passing(tied, stay)
        first = row * width
        # Counted from the row's start: the place after a leaf's last may not fit 32 bits.
        length = jnp.minimum(width, problem.sizes.astype(np.int32) - first)[:, None]
        place = jnp.arange(width.max(), dtype=jnp.int32)[None]
        own, looked_up = partition.look_up(problem.parts, first[:, None] + jnp.minimum(place, length - 1), is_cut)
        equal = (looked_up == partition.picked(own_key, own)[:, None]) & partition.picked(place < length, own)
        inner, _ = _passing(_filled(equal.astype(jnp.int32), places_most), partition.picked(left, own))
        found.append(partition.picked(first, own) + inner)
        leaves.append(own)
    cut = partition.picked(jnp.concatenate(found), np.argsort(np.concatenate(leaves)))
    return jnp.where(are_all, jnp.asarray(problem.sizes, jnp.int32), jnp.where(is_cut, cut, 0))


def _filled(rows: Int[Array, "leaf _"], length: int) -> Int[Array, "leaf {length}"]:
    """The rows with zeros at their end."""
    return jnp.pad(rows, ((0, 0), (0, length - rows.shape[1])))


def _passing(
    counts: Int[Array, "leaf place"], wanted: Int[Array, " leaf"]
) -> tuple[Int[Array, " leaf"], Int[Array, " leaf"]]:
    """The first place at which the sum of the counts passes what is wanted, and what is left of that before it.

    Looked for among blocks of places and then, by the same program, in one of as many: a prefix sum takes longer to
    compile.
    """
    size = math.isqrt(counts.shape[1] - 1) + 1
    blocks = _filled(counts, size**2).reshape(-1, size, size)
    is_before, is_through = (np.tri(size, k=last, dtype=bool)[None] for last in (-1, 0))

    def look(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        sums, left, found = state
        summands = jnp.where(is_before, sums[:, None], 0), jnp.where(is_through, sums[:, None], 0)
        before, through = lax.reduce(summands, (jnp.int32(0), jnp.int32(0)), spread.plus, (2,))
        place, most = lax.reduce(
            ((through <= left[:, None]).astype(jnp.int32), jnp.where(before <= left[:, None], before, 0)),
            (jnp.int32(0), jnp.int32(0)),
            lambda x, y: (x[0] + y[0], jnp.maximum(x[1], y[1])),
            (1,),
        )
        place = jnp.minimum(place, size - 1)
        inner = jnp.take_along_axis(blocks, place[:, None, None], axis=1, mode="promise_in_bounds")[:, 0]
        return inner, left - most, found * size + place

    start = jnp.sum(blocks, axis=2, dtype=jnp.int32), wanted, jnp.zeros_like(wanted)
    _, left, found = lax.fori_loop(0, 2, look, start)
    return found, left
