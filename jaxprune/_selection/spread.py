"""Counts over arrays that are spread over a mesh: reductions in the array's own shape, so that only counts travel.

Whatever the partitioner makes of a reduction, it is local counts and their sum. Reshaping the array to a vector, taking
a sample by index or summing prefixes, as `jaxprune.counting` does on one device, would bring the scores themselves to
every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune._arrays import meshes, ordering

_WAYS = 8  # marks per pass in the search for an index


def count(
    scores: Any, marks: Int[Array, " mark"], floor: Int[Array, ""], absolute: bool
) -> tuple[Int[Array, " mark"], Int[Array, ""]]:
    """How many scores, or keys, lie at or above each mark, and the least from the floor on: only these travel.

    Args:
      scores: Of any shape.
      marks: Keys of `jaxprune.ordering`.
      floor: Another.
      absolute: Whether scores rank by absolute value.
    """
    *above, least = counted(scores, marks, floor, absolute, tuple(range(scores.ndim)))
    return jnp.stack(above), least


def first_equal(scores: Any, key: Int[Array, ""], wanted: Int[Array, ""], absolute: bool) -> Int[Array, ""]:
    """Where to cut the flat indices so that `wanted` scores with this key lie before.

    The index is searched for by counting, nine ways at once: a prefix sum would bring the array to one device.
    """
    ties, index = ordering.keys(scores, absolute) == key, meshes.flat_index(scores.shape)

    def narrow(bracket: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bracket
        step = jnp.maximum((high - low) // (_WAYS + 1), 1)
        marks = jnp.minimum(low + step * jnp.arange(1, _WAYS + 1, dtype=jnp.int32), high)
        before = _number([ties & (index < mark) for mark in marks])
        low = jnp.max(jnp.where(before < wanted, marks, low))
        return low, jnp.min(jnp.where(before >= wanted, marks, high))

    # Before `low` there are fewer than `wanted`, before `high` there are as many.
    start = jnp.int32(-1), jnp.int32(scores.size)
    _, cut = lax.while_loop(lambda bracket: bracket[0] + 1 < bracket[1], narrow, start)
    return cut


def counted(
    scores: Any, marks: Int[Array, " mark"], floor: Int[Array, ""], absolute: bool, axes: tuple[int, ...]
) -> Sequence[Int[Array, "..."]]:
    """For each mark the number of keys at or above it, and the least from the floor on: one reduction over these axes.

    The least is the highest integer where there is none.
    """
    keys = ordering.keys(scores, absolute).astype(marks.dtype)
    least = jnp.where(keys >= floor, keys, jnp.array(jnp.iinfo(marks.dtype).max, marks.dtype))
    return summed((*((keys >= mark).astype(jnp.int32) for mark in marks), least), axes)


def summed(counts: Sequence[Int[Array, "..."]], axes: tuple[int, ...]) -> Sequence[Int[Array, "..."]]:
    """The sums of all arrays but the last, and the least of that: one reduction over these axes."""
    top = jnp.array(jnp.iinfo(counts[-1].dtype).max, counts[-1].dtype)
    start = (*(jnp.int32(0),) * (len(counts) - 1), top)
    return lax.reduce(counts, start, lambda x, y: (*plus(x[:-1], y[:-1]), jnp.minimum(x[-1], y[-1])), axes)


def how_many(found: Bool[Array, "..."], axes: tuple[int, ...]) -> Int[Array, "..."]:
    """How many are true along these axes.

    Those that are not are counted too, as XLA makes three programs of a long sum, but one of two sums side by side.
    """
    summands = found.astype(jnp.int32), (~found).astype(jnp.int32)
    number, others = lax.reduce(summands, (jnp.int32(0), jnp.int32(0)), plus, axes)
    return jnp.minimum(number, math.prod(found.shape[axis] for axis in axes) - others)


def totals(counts: Sequence[Int[Array, "..."]]) -> Int[Array, " total"]:
    """The sum of each array, all in one reduction: a CPU sums a single comparison many times slower."""
    return jnp.stack(lax.reduce(tuple(counts), (jnp.int32(0),) * len(counts), plus, tuple(range(counts[0].ndim))))


def plus(x: tuple[Array, ...], y: tuple[Array, ...]) -> tuple[Array, ...]:
    """Sums side by side, as `lax.reduce` wants them."""
    return tuple(a + b for a, b in zip(x, y, strict=True))


def _number(hits: Sequence[Bool[Array, "..."]]) -> Int[Array, " hit"]:
    return totals([hit.astype(jnp.int32) for hit in hits])
