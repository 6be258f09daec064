"""The arrays that scores lie in, and what one pass counts in them.

A large array is read as it lies, never copied or reshaped, so that on a mesh only counts travel. Small arrays of
similar sizes lie side by side in a table, a row each, since a kernel for each would take longer to compile than to run.
Counting is one reduction with a sum for each mark: the form that XLA vectorises.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt

from jaxprune._arrays import meshes, ordering, xla
from jaxprune._selection.brackets import Counts, Marks, State, is_tied

Keys: TypeAlias = Int[Array, "..."]

_LARGE = 2**18  # scores in an array that is not copied
_ALIKE = 8  # how many times as long as the shortest array in it a table's row may be
_SAMPLED = 2**13  # scores in the sample of all arrays together
_SAMPLED_EACH = 2**9
_MOST_SAMPLED = 8  # arrays that are sampled: each takes a while to compile, and spares half of the passes


@dataclass(frozen=True)
class Pieces:
    """Arrays of one dtype, none of them empty.

    Attributes:
      arrays: All of them.
      large: The numbers of those that are read as they lie.
      tables: Keys of the others: the numbers of the arrays in the rows, and the rows, filled up with the lowest
        integer, which no score has for a key.
      index: The number of each array, opaque to XLA.
      absolute: Whether scores rank by absolute value.
    """

    arrays: Sequence[Any]
    large: Sequence[int]
    tables: Sequence[tuple[Sequence[int], Int[Array, "_ _"]]]
    index: Sequence[UInt[Array, ""]]
    absolute: bool

    def count(self, marks: Marks, state: State) -> Counts:
        """How many scores of each array reach each mark; see `search`."""
        of_part = jnp.concatenate([marks, state.key[:, None]], axis=1)
        counts, order = list[Array](), list[int]()
        for number in self.large:
            entries = _entry(of_part, self.index[number])
            counts += _count_large(self.arrays[number], state.passes, entries, self.absolute)
            order.append(number)
        found = [jnp.stack(counts).reshape(-1, marks.shape[1])] if counts else []
        for numbers, keys in self.tables:
            rows = of_part if len(numbers) == len(self.arrays) else of_part[np.array(numbers)]
            places = lax.broadcasted_iota(keys.dtype, keys.shape, 1)
            found.append(jnp.stack(_totals(_reached(keys, -places, rows.T[:, :, None]), (1,)), axis=1))
            order += numbers
        together = jnp.concatenate(found)
        return together if order == sorted(order) else together[np.argsort(order)]

    def samples(self) -> list[Int[Array, " place"]]:
        """Keys from all over each array, in proportion to its size; none where that would not pay, or on a mesh."""
        if self.tables or len(self.arrays) > _MOST_SAMPLED or any(map(meshes.is_sharded, self.arrays)):
            return []
        share = _SAMPLED / sum(array.size for array in self.arrays)
        thinned = [_thinned(array, max(array.size * share, _SAMPLED_EACH)) for array in self.arrays]
        return [ordering.keys(array, self.absolute).reshape(-1) for array in thinned]

    def masks(self, least: Int[Array, " array"], places: Int[Array, " array"]) -> list[Bool[Array, "..."]]:
        """Which scores have a key above the least of their array, or that key and one of its first places."""
        ends = [[_entry(end, index) for end in (least, places)] for index in self.index]
        return [_mask(array, *end, self.absolute) for array, end in zip(self.arrays, ends, strict=True)]


def of(arrays: Sequence[Any], absolute: bool) -> Pieces:
    """The pieces that arrays of one dtype make, none of them empty."""
    is_large = [meshes.is_sharded(array) or array.size >= _LARGE for array in arrays]
    small = sorted((i for i, large in enumerate(is_large) if not large), key=lambda i: -arrays[i].size)
    tables = list[tuple[Sequence[int], Any]]()
    while small:
        width = arrays[small[0]].size
        members = sorted(i for i in small if arrays[i].size * _ALIKE > width)
        small = [i for i in small if arrays[i].size * _ALIKE <= width]
        tables.append((members, _table([arrays[i] for i in members], width, absolute)))
    large = [i for i, large in enumerate(is_large) if large]
    if len(arrays) < 2 or any(map(meshes.is_sharded, arrays)):
        return Pieces(arrays, large, tables, xla.indices(len(arrays)), absolute)
    key = ordering.keys(arrays[0][(0,) * arrays[0].ndim])
    index = xla.opaque_indices(len(arrays), key > jnp.iinfo(key.dtype).min)  # no score has the lowest key
    return Pieces(arrays, large, tables, index, absolute)


def _entry(values: Array, index: UInt[Array, ""]) -> Array:
    return lax.dynamic_index_in_dim(values, index, keepdims=False)


def _reached(keys: Keys, back: Keys, of_part: Int[Array, "..."]) -> list[Bool[Array, "..."]]:
    """Which positions reach each mark: keys or, among ties, places counted back from 0."""
    *marks, key = of_part
    positions = jnp.where(is_tied(key), jnp.where(keys == key, back, jnp.iinfo(keys.dtype).min), keys)
    return [positions >= mark for mark in marks]


@functools.partial(jax.jit, static_argnames="absolute")
def _count_large(array: Any, passes: Int[Array, ""], of_part: Int[Array, "_"], absolute: bool) -> Sequence[Array]:
    """Traced once for all arrays of a shape."""
    array, zero = xla.kept_in_loop(passes, array, jnp.int32(0))
    keys = ordering.keys(array, absolute)
    back = (-meshes.flat_index(array.shape, zero)).astype(keys.dtype)
    return _totals(_reached(keys, back, of_part), tuple(range(array.ndim)))


@functools.partial(jax.jit, static_argnames="absolute")
def _mask(array: Any, least: Int[Array, ""], places: Int[Array, ""], absolute: bool) -> Bool[Array, "..."]:
    """Traced once for all arrays of a shape."""
    late = meshes.flat_index(array.shape) >= places
    return ordering.keys(array, absolute) >= least + late.astype(least.dtype)


def _totals(hits: Sequence[Bool[Array, "..."]], axes: tuple[int, ...]) -> Sequence[Int[Array, "..."]]:
    """How many are true in each array: all sums in one reduction."""
    return lax.reduce(
        tuple(hit.astype(jnp.int32) for hit in hits),
        (jnp.int32(0),) * len(hits),
        lambda x, y: tuple(a + b for a, b in zip(x, y, strict=True)),
        axes,
    )


def _table(arrays: Sequence[Any], width: int, absolute: bool) -> Int[Array, "row place"]:
    """The keys of flat arrays, a row each."""
    # Copies are all that is compiled for each array: keys are taken of the whole.
    filled = [piece for a in arrays for piece in (a.reshape(-1), np.zeros(width - a.size, a.dtype)) if piece.size]
    keys = ordering.keys(jnp.concatenate(filled).reshape(-1, width), absolute)
    sizes = np.array([array.size for array in arrays], np.int32)
    in_use = lax.broadcasted_iota(jnp.int32, keys.shape, 1) < sizes[:, None]
    return jnp.where(in_use, keys, jnp.iinfo(keys.dtype).min)


def _thinned(array: Any, most: float) -> Any:
    """About so many entries from all over an array. Strides in its own shape, as a flat one would be a copy."""
    number = list(array.shape)
    while np.prod(number) > most:
        axis = int(np.argmax(number))
        number[axis] = max(int(number[axis] * 0.8), 1)
    steps = [size // n for size, n in zip(array.shape, number, strict=True)]
    return array[tuple(slice(step // 2, None, step) for step in steps)]
