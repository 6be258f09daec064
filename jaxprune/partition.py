"""The leaves that selection looks at, divided into parts.

A large leaf is looked at as it lies: it is one part. Small leaves are copied together into rows, which are visited at
once: a program for each would take longer to compile than to run. A visitor gets a part's scores or keys, and results
come back stacked by part. What fills a row up has the lowest integer as its key, which no score has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt

from jaxprune import meshes, ordering

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

_LARGE = 2**18  # scores in a leaf that is not copied
_ROW = 2**10  # places in a row, at least
_ROWS = 2**14  # into which large leaves are divided, about


@dataclass(frozen=True)
class Parts:
    """Some leaves, or what was lifted out of them.

    Attributes:
      arrays: What the parts lie in.
      leaf: For each part the number of the leaf that it belongs to.
      group: For each part the number of its group.
      start: For each part the place in its leaf at which it starts.
      absolute: Whether scores rank by absolute value.
    """

    arrays: list[Any]
    leaf: Numbers
    group: Numbers
    start: Numbers
    absolute: bool

    def visit(self, visitor: Callable[..., Any], wanted: Bool[Array, " group"], *args: Array) -> Any:
        """What a function finds in each part.

        Args:
          visitor: Takes a part, for its group the entry of each of `args`, and whether scores rank by `absolute` value.
          wanted: The groups to visit; for parts of others the results may be zeros.
          args: Arrays with an entry for each group.

        Returns:
          The results, stacked by part.
        """
        raise NotImplementedError

    def look(self, visitor: Callable[..., Any], number: Int[Array, " group"], *args: Array) -> Any:
        """What a function finds in one part of each group.

        Args:
          visitor: As for `visit`.
          number: The part to look into, for each group; zeros come back for those out of range.
          args: As for `visit`.

        Returns:
          The results, stacked by group.
        """
        raise NotImplementedError

    def keys_at(self, leaves: Numbers, places: Numbers) -> Int[Array, "leaf place"]:
        """The keys at places of each of these leaves, which are given by number."""
        raise NotImplementedError

    def _told(self, visitor: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(visitor, absolute=self.absolute)


@dataclass(frozen=True)
class Whole(Parts):
    """One leaf as it lies: a single part.

    Attributes:
      own_group: The number of its group once more, such that XLA does not know it. With constants in them the kernels
        of all leaves would differ; like this, leaves of one size share theirs, which are compiled once.
    """

    own_group: UInt[Array, ""]

    def visit(self, visitor: Callable[..., Any], wanted: Bool[Array, " group"], *args: Array) -> Any:
        """See `Parts`; if it is not wanted, the leaf is not read."""
        here, *own = (lax.dynamic_index_in_dim(arg, self.own_group, keepdims=False) for arg in (wanted, *args))
        return jax.tree.map(lambda x: x[None], _if(here, self._told(visitor), self.arrays[0], *own))

    def look(self, visitor: Callable[..., Any], number: Int[Array, " group"], *args: Array) -> Any:
        """See `Parts`."""
        found = self.visit(visitor, number == 0, *args)[0]
        return lax.dynamic_update_index_in_dim(jnp.zeros(number.shape, found.dtype), found, self.own_group, 0)

    def keys_at(self, leaves: Numbers, places: Numbers) -> Int[Array, "leaf place"]:
        """See `Parts`."""
        del leaves
        return ordering.keys(self.arrays[0].reshape(-1)[jnp.asarray(places, jnp.int32)], self.absolute)


@dataclass(frozen=True)
class Rows(Parts):
    """Flat arrays of scores or keys in rows, each row a part.

    Attributes:
      width: How many places a row has. The last of an array may be shorter.
    """

    width: int

    def visit(self, visitor: Callable[..., Any], wanted: Bool[Array, " group"], *args: Array) -> Any:
        """See `Parts`; all rows are visited."""
        del wanted
        found, first = list[Any](), 0
        for rows in [rows for array in self.arrays for rows in self._cut(array)]:
            group = self.group[first : first + len(rows)]
            found.append(jax.vmap(self._told(visitor))(rows, *(arg[group] for arg in args)))
            first += len(rows)
        return jax.tree.map(lambda *results: jnp.concatenate(results), *found)

    def look(self, visitor: Callable[..., Any], number: Int[Array, " group"], *args: Array) -> Any:
        """See `Parts`."""
        counts = [-(-array.size // self.width) for array in self.arrays]
        array = jnp.asarray(np.repeat(np.arange(len(counts)), counts), jnp.int32)
        row = jnp.asarray(np.concatenate([np.arange(count) for count in counts]), jnp.int32)
        reads, told = [functools.partial(self._read, flat) for flat in self.arrays], self._told(visitor)

        def turn(own: tuple[Array, ...]) -> Any:
            part, *rest = own
            here = (part >= 0) & (part < len(self.leaf))
            return _if(here, lambda part, *rest: told(lax.switch(array[part], reads, row[part]), *rest), part, *rest)

        return lax.map(turn, (number, *args))

    def keys_at(self, leaves: Numbers, places: Numbers) -> Int[Array, "leaf place"]:
        """See `Parts`."""
        (keys,) = self.arrays
        first = np.searchsorted(self.leaf, leaves) * self.width
        return keys[jnp.asarray(first[:, None] + places, jnp.int32)]

    def _cut(self, flat: Any) -> list[Any]:
        whole = flat.size // self.width * self.width
        rows = [flat[:whole].reshape(-1, self.width)]
        if whole == flat.size:
            return rows
        return [*rows, _filled(ordering.keys(flat[whole:], self.absolute), self.width)[None]]

    def _read(self, flat: Any, row: Int[Array, ""]) -> Int[Array, " place"]:
        # A shorter last row starts early, so as not to end beyond the array.
        start = jnp.minimum(row * self.width, flat.size - self.width)
        keys = ordering.keys(lax.dynamic_slice(flat, (start,), (self.width,)), self.absolute)
        own = jnp.arange(self.width, dtype=jnp.int32) >= row * self.width - start
        return jnp.where(own, keys, jnp.iinfo(keys.dtype).min)


def of(leaves: Sequence[Any], group: Numbers, absolute: bool) -> list[Parts]:
    """The parts of leaves, each of which belongs to a group.

    Args:
      leaves: Arrays of one floating dtype, none of them empty.
      group: For each leaf a number, in ascending order.
      absolute: Whether scores rank by absolute value.
    """
    # What is copied would travel between devices.
    large = [i for i, leaf in enumerate(leaves) if meshes.is_spread(leaf) or leaf.size >= _LARGE]
    small = [i for i in range(len(leaves)) if i not in large]
    groups = numbers([int(group[i]) for i in large], leaves)
    parts: list[Parts] = [
        Whole([leaves[i]], np.array([i]), group[i : i + 1], np.zeros(1, np.int64), absolute, own)
        for i, own in zip(large, groups, strict=True)
    ]
    return [*parts, _rows(small, leaves, group, absolute)] if small else parts


def of_keys(keys: Int[Array, "part place"], origin: Parts) -> Parts:
    """Parts of keys that were lifted out of others, a row out of each."""
    if isinstance(origin, Whole):
        return replace(origin, arrays=[keys[0]], absolute=False)
    nothing = np.zeros(len(keys), np.int64)
    return Rows([keys.reshape(-1)], nothing, origin.group, nothing, absolute=False, width=keys.shape[1])


def finer(parts: Sequence[Parts]) -> list[Parts]:
    """The same leaves in rows, large ones without copies; but what is spread over devices stays whole."""
    split = [isinstance(own, Whole) and not meshes.is_spread(own.arrays[0]) for own in parts]
    large = [own for own, is_split in zip(parts, split, strict=True) if is_split]
    others = [own for own, is_split in zip(parts, split, strict=True) if not is_split]
    if not large:
        return others
    sizes = [own.arrays[0].size for own in large]
    width = min(max(_ROW, 1 << (sum(sizes) // _ROWS).bit_length()), _LARGE)
    starts = [np.minimum(np.arange(0, size, width), size - width) for size in sizes]
    leaf, group = (
        np.repeat([getattr(own, of)[0] for own in large], [len(start) for start in starts]) for of in ("leaf", "group")
    )
    arrays = [own.arrays[0] for own in large]
    return [Rows(arrays, leaf, group, np.concatenate(starts), large[0].absolute, width), *others]


def _filled(keys: Int[Array, " place"], width: int) -> Int[Array, " filled"]:
    return jnp.pad(keys, (0, -keys.size % width), constant_values=jnp.iinfo(keys.dtype).min)


def numbers(values: Sequence[int], leaves: Sequence[Any]) -> Sequence[UInt[Array, ""]]:
    """Numbers such that XLA does not know them.

    With constants in them the kernels of all leaves would differ; like this, leaves of one size share theirs, which are
    compiled once.

    Args:
      values: The numbers.
      leaves: Arrays to be used with them, the first of them not empty.
    """
    if len(values) < 2 or any(meshes.is_spread(leaf) for leaf in leaves):
        return [jnp.uint32(value) for value in values]
    first = ordering.keys(leaves[0][(0,) * leaves[0].ndim])
    always = first > jnp.iinfo(first.dtype).min
    # Unsigned, since whatever indexes by a signed number looks first whether it is negative.
    return lax.cond(always, lambda: [jnp.uint32(value) for value in values], lambda: [jnp.uint32(0) for _ in values])


def by_group(parts: Sequence[Parts], found: Sequence[Any], groups: int, summary: Callable[..., Any]) -> Any:
    """What was found in each part, for each group in one.

    Args:
      parts: All that were visited.
      found: The results of each.
      groups: How many there are.
      summary: `jax.ops.segment_sum`, or its like.
    """
    group = np.concatenate([own.group for own in parts])
    return summary(jnp.concatenate(found), jnp.asarray(group, jnp.int32), groups)


def _rows(small: list[int], leaves: Sequence[Any], group: Numbers, absolute: bool) -> Rows:
    keys = [_filled(ordering.keys(leaves[i], absolute), _ROW) for i in small]
    start = [_ROW * np.arange(own.size // _ROW) for own in keys]
    leaf = np.repeat(small, [len(own) for own in start])
    return Rows([jnp.concatenate(keys)], leaf, group[leaf], np.concatenate(start), absolute, _ROW)


def _if(condition: Bool[Array, ""], function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, or zeros like it."""
    shapes = jax.eval_shape(function, *args)
    return lax.cond(condition, function, lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), *args)
