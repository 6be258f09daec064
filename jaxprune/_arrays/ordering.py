"""Integers in the order of floating-point numbers, so that comparing and bisecting are exact.

Comparing floats would not do: a processor may flush denormals to zero, and NaN has no place in the order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune._arrays import meshes, xla

_COMPARED = 64  # up to here comparing all pairs of a group takes less than sorting it
_INTEGER = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}


def keys(values: Float[Any, "..."] | Int[Array, "..."], absolute: bool = False) -> Int[Any, "..."]:
    """Signed integers that order as the values do: -0 equals 0, NaN comes below -infinity.

    Args:
      values: Any real floating dtype of two, four or eight bytes. Integers, being keys already, are returned.
      absolute: Order by absolute value.

    Returns:
      int32, or int64 for float64, of the same shape. Consecutive floats get consecutive integers, and no
      float the lowest integer.
    """
    if jnp.issubdtype(values.dtype, jnp.integer):
        return values
    integer = _INTEGER[values.dtype.itemsize]
    # NumPy's stay NumPy's, for which nothing is compiled.
    xp: Any = np if isinstance(values, np.ndarray) else jnp
    bits = values.view(integer) if xp is np else lax.bitcast_convert_type(values, integer)
    infinity = int(np.array(np.inf, values.dtype).view(integer))
    if integer is jnp.int16:
        bits = bits.astype(jnp.int32)
    magnitude = bits & xp.array(jnp.iinfo(integer).max, bits.dtype)
    ordered = magnitude if absolute else xp.where(bits < 0, -magnitude, magnitude)
    is_nan = magnitude > infinity
    if xp is np and not is_nan.any():
        return ordered
    return xp.where(is_nan, xp.array(jnp.iinfo(bits.dtype).min + 1, bits.dtype), ordered)


def best_of_each(values: Int[np.ndarray, "..."], axis: int, n: int, m: int) -> Bool[np.ndarray, "..."]:
    """Which are among the `n` highest of their `m`, ties to the lowest index: by comparing each with the others.

    Args:
      values: NumPy's, for which nothing is compiled.
      axis: What groups run along, from 0 on; `m` divides it.
      n: How many stay.
      m: The size of a group.
    """
    groups = values.reshape(*values.shape[:axis], values.shape[axis] // m, m, *values.shape[axis + 1 :])
    if m > _COMPARED:
        order = np.argsort(~groups, axis=axis + 1, kind="stable")
        kept = np.zeros(groups.shape, bool)
        np.put_along_axis(kept, np.take(order, range(n), axis=axis + 1), True, axis=axis + 1)
        return kept.reshape(values.shape)
    places = [groups[(*[slice(None)] * (axis + 1), place)] for place in range(m)]
    before = np.zeros((m, *places[0].shape), np.uint8)  # how many come before each
    for i, first in enumerate(places):
        for j, second in enumerate(places[i + 1 :], i + 1):
            is_less = first < second
            before[i] += is_less
            before[j] += ~is_less
    return np.moveaxis(before < n, 0, axis + 1).reshape(values.shape)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def best_of_each_traced(scores: Float[Array, "..."], axis: int, n: int, m: int) -> Bool[Array, "..."]:
    """As `best_of_each`, traced once for all leaves of a shape.

    Each is compared with its neighbours where they lie, so that nothing is moved into groups.
    """
    values = keys(scores)
    place = jnp.arange(values.shape[axis], dtype=np.int32) % m
    place = place.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    rank = jnp.zeros(values.shape, np.int32)
    for distance in range(1, m):
        later, earlier = _shifted(values, axis, distance), _shifted(values, axis, -distance)
        rank = rank + ((later > values) & (place < m - distance)).astype(np.int32)
        rank = rank + ((earlier >= values) & (place >= distance)).astype(np.int32)
    return rank < n


def _shifted(values: Int[Array, "..."], axis: int, distance: int) -> Int[Array, "..."]:
    """At each place what stands so many places later; the lowest integer where nothing does."""
    lowest = np.array(np.iinfo(values.dtype).min, values.dtype)
    return lax.pad(values, lowest, [(-distance, distance, 0) if a == axis else (0, 0, 0) for a in range(values.ndim)])


@functools.partial(jax.jit, static_argnames="axes")
def highest(scores: Float[Array, "..."], keep: Int[Array, "..."], axes: tuple[int, ...]) -> Bool[Array, "..."]:
    """The highest scores of each of many lines, by bisection in one small loop.

    Args:
      scores: Any shape.
      keep: How many stay in each line, from 0 to its length: of size 1 along `axes`.
      axes: What a line runs along. Ties go to the lowest index along it, NaN last.

    Returns:
      `True` = among the highest.
    """
    if meshes.is_sharded(scores):
        return _highest(keys(scores), meshes.like(keep, scores), axes)
    order = (*axes, *(a for a in range(scores.ndim) if a not in axes))
    turned = scores.transpose(order)
    lines = turned.reshape(math.prod(scores.shape[a] for a in axes), -1)
    chosen = _highest(keys(lines), keep.transpose(order).reshape(1, -1), (0,))
    return chosen.reshape(turned.shape).transpose([order.index(a) for a in range(scores.ndim)])


def _highest(keys: Int[Array, "..."], keep: Int[Array, "..."], axes: tuple[int, ...]) -> Bool[Array, "..."]:
    """Only reduces, in the shape of `keys`: where these are spread over devices, a count for each line travels."""

    def count(chosen: Bool[Array, "..."]) -> Int[Array, "..."]:
        return meshes.like(jnp.sum(chosen, axis=axes, keepdims=True, dtype=jnp.int32), keys)

    def ties(low: Int[Array, "..."], last: Int[Array, "..."]) -> Bool[Array, "..."]:
        return (keys == low) & (-meshes.index_along(keys.shape, axes) >= last)

    length, limits = math.prod(keys.shape[a] for a in axes), jnp.iinfo(keys.dtype)
    ends = jnp.array(limits.min, keys.dtype), jnp.array(limits.max, keys.dtype)
    low, reached = _bisected(lambda middle: count(keys >= middle), keep, length, *ends)
    # Places count down from 0, so that the first ties are the highest. A line without surplus wants all of them.
    wanted = jnp.where(reached == keep, length, keep - count(keys > low))
    last, _ = _bisected(lambda place: count(ties(low, place)), wanted, length, jnp.int32(-length), jnp.int32(1))
    return (keys > low) | ties(low, last)


def _bisected(
    count: Callable[[Int[Array, "..."]], Int[Array, "..."]],
    keep: Int[Array, "..."],
    length: int,
    lowest: Int[Array, ""],
    highest: Int[Array, ""],
) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
    """For each line, a key with exactly `keep` keys at or above it; or the highest with more, where keys are equal.

    Args:
      count: How many keys of each line lie at or above the keys given.
      keep: From 0 to `length`.
      length: How many keys a line has.
      lowest: A key that all of them reach.
      highest: One that none of them does.

    Returns:
      The key, and how many lie at or above it.
    """

    def halve(state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, reached = state  # `reached` lie at or above low: `keep` at least; fewer at or above high
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        above = count(middle)
        enough = above >= keep
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle), jnp.where(enough, above, reached)

    def unfinished(state: tuple[Array, ...]) -> Bool[Array, ""]:
        low, high, reached = state
        left = jnp.sum((reached != keep) & (low + 1 < high), dtype=jnp.int32)
        return xla.any_on_all_cores(jnp.stack([left > 0, jnp.bool_(False)]))

    start = (
        jnp.full_like(keep, lowest, dtype=lowest.dtype),
        jnp.full_like(keep, highest, dtype=highest.dtype),
        jnp.full_like(keep, length),
    )
    low, _, reached = lax.while_loop(unfinished, halve, start)
    return low, reached
