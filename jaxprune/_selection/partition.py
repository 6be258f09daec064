"""The leaves that selection looks at, divided into parts.

A large leaf is looked at as it lies: it is one part. Small leaves are copied together into rows, each of them a part,
which are visited at once: a program for each leaf would take longer to compile than to run. For the same reason large
leaves are visited one after the other by one program, of which only what reads a leaf is its own. A visitor gets a
part's scores or keys, and results come back stacked by part. What fills a row up has the lowest integer as its key,
which no score has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped, UInt

from jaxprune._arrays import meshes, ordering
from jaxprune._selection import counting, spread

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

_LARGE = 2**18  # scores in a leaf that is not copied
_ROW = 2**10  # places in a row
_BRANCHES = 2**5  # of a switch

MANY = 2**12
"""More numbers than these are not made for every leaf only to have fewer programs to compile."""


@dataclass(frozen=True)
class Parts:
    """Some leaves, or what was lifted out of them.

    Attributes:
      array: What the parts lie in.
      leaf: For each part the number of the leaf that it belongs to, ascending.
      group: For each part the number of its group.
      absolute: Whether scores rank by absolute value.
    """

    array: Any
    leaf: Numbers
    group: Numbers
    absolute: bool

    @property
    def leaves(self) -> Numbers:
        """The numbers of the leaves."""
        return np.unique(self.leaf)

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

    def by_leaf(self, rows: Int[Array, "part row"]) -> Int[Array, "leaf _"]:
        """What was counted in rows of each part, in rows of each leaf; zeros where a leaf has fewer than another."""
        raise NotImplementedError

    @property
    def row_widths(self) -> Numbers:
        """For each leaf the length of these rows; its last row may be shorter."""
        raise NotImplementedError

    def masks(self, least: Int[Array, " all_leaves"], cut: Int[Array, " all_leaves"]) -> list[Bool[Array, "..."]]:
        """Which scores of each leaf have a key above the leaf's least, or that one and an index before the cut."""
        raise NotImplementedError

    def told(self, visitor: Callable[..., Any]) -> Callable[..., Any]:
        """The visitor, told whether scores rank by absolute value."""
        return functools.partial(visitor, absolute=self.absolute)


@dataclass(frozen=True)
class Whole(Parts):
    """One leaf as it lies: a single part.

    Attributes:
      own_leaf: The leaf's number once more, such that XLA does not know it; see `numbers`.
      own_group: That of its group.
    """

    own_leaf: UInt[Array, ""]
    own_group: UInt[Array, ""]

    def visit(self, visitor: Callable[..., Any], wanted: Bool[Array, " group"], *args: Array) -> Any:
        """See `Parts`; if it is not wanted, the leaf is not read."""
        here, *own = (lax.dynamic_index_in_dim(arg, self.own_group, keepdims=False) for arg in (wanted, *args))
        return jax.tree.map(lambda x: x[None], _if(here, self.told(visitor), self.array, *own))

    def by_leaf(self, rows: Int[Array, "part row"]) -> Int[Array, "leaf _"]:
        """See `Parts`. A leaf that is spread over devices is one row."""
        return rows

    @property
    def row_widths(self) -> Numbers:
        """See `Parts`."""
        return np.array([counting.row_width(self.array.size)])

    def cut(
        self, keys: Int[Array, " all_leaves"], wanted: Int[Array, " all_leaves"], here: Bool[Array, " all_leaves"]
    ) -> Int[Array, " leaf"]:
        """Where to cut the flat leaf, searched for in its own shape; see `spread.first_equal`. 0 where not `here`."""
        own = self.leaf[0]
        return _if(here[own], self.told(spread.first_equal), self.array, keys[own], wanted[own])[None]

    def masks(self, least: Int[Array, " all_leaves"], cut: Int[Array, " all_leaves"]) -> list[Bool[Array, "..."]]:
        """See `Parts`."""
        return [_mask(self.array, least, cut, self.own_leaf, absolute=self.absolute)]


@dataclass(frozen=True)
class Rows(Parts):
    """Keys in rows, each row a part.

    Attributes:
      sizes: How many places each leaf takes of its rows.
      own_starts: Of each leaf the first place in all rows, such that XLA does not know it; see `numbers`.
    """

    array: Int[Array, "row place"]
    sizes: Sequence[int] = ()
    own_starts: Sequence[UInt[Array, ""]] = ()

    def visit(self, visitor: Callable[..., Any], wanted: Bool[Array, " group"], *args: Array) -> Any:
        """See `Parts`; all rows are visited."""
        del wanted
        own = (arg.at[self.group.astype(np.uint32)].get(mode="promise_in_bounds") for arg in args)
        return jax.vmap(self.told(visitor))(self.array, *own)

    def by_leaf(self, rows: Int[Array, "part row"]) -> Int[Array, "leaf _"]:
        """See `Parts`."""
        first, after = self._rows_of(self.leaves)
        row = first[:, None] + np.arange((after - first).max())
        return gathered(jnp.pad(rows[:, 0], (0, 1)), np.where(row < after[:, None], row, len(self.leaf)))

    @property
    def row_widths(self) -> Numbers:
        """See `Parts`."""
        return np.full(len(self.leaves), self.array.shape[1])

    def at(self, places: Int[Array, "leaf place"]) -> Int[Array, "leaf place"]:
        """The keys at places of each leaf; of a place beyond its rows, any."""
        first, width = self._rows_of(self.leaves)[0], self.array.shape[1]
        row = jnp.minimum(jnp.asarray(first, jnp.int32)[:, None] + places // width, len(self.leaf) - 1)
        return gathered(self.array, row * width + places % width)

    def masks(self, least: Int[Array, " all_leaves"], cut: Int[Array, " all_leaves"]) -> list[Bool[Array, "..."]]:
        """See `Parts`."""
        start = self.array.shape[1] * (np.arange(len(self.leaf)) - self._rows_of(self.leaf)[0]).astype(np.int32)
        late = lax.broadcasted_iota(jnp.int32, self.array.shape, 1) >= (cut[self.leaf] - start)[:, None]
        kept = self.array >= least[self.leaf][:, None] + late.astype(self.array.dtype)
        starts = zip(self.own_starts, self.sizes, strict=True)
        return [lax.dynamic_slice(kept.reshape(-1), (start,), (size,)) for start, size in starts]

    def _rows_of(self, leaves: Numbers) -> tuple[Numbers, Numbers]:
        """For each leaf its first row, and that after its last."""
        return np.searchsorted(self.leaf, leaves), np.searchsorted(self.leaf, leaves, "right")


def kind(leaf: Any) -> int:
    """0 for a large leaf on one device, 1 for one that is spread over devices, 2 for one that is copied."""
    if meshes.is_spread(leaf):  # what is copied would travel between devices
        return 1
    return 0 if leaf.size >= _LARGE else 2


def of(leaves: Sequence[Any], group: Numbers, absolute: bool) -> list[Parts]:
    """The parts of leaves, each of which belongs to a group.

    Args:
      leaves: Arrays of one floating dtype, none of them empty.
      group: For each leaf a number, in ascending order.
      absolute: Whether scores rank by absolute value.
    """
    rank = np.array([kind(leaf) for leaf in leaves])
    large = [*np.flatnonzero(rank == 0).tolist(), *np.flatnonzero(rank == 1).tolist()]
    small = np.flatnonzero(rank == 2).tolist()
    rows = np.array([-(-leaves[i].size // _ROW) for i in small], np.int64)
    starts = _ROW * (np.cumsum(rows) - rows)
    own_leaf, own_group, own_starts = numbers([large, group[large], starts], leaves)
    parts: list[Parts] = [
        Whole(leaves[i], np.array([i]), group[i : i + 1], absolute, *own)
        for i, *own in zip(large, own_leaf, own_group, strict=True)
    ]
    if small:
        leaf = np.repeat(small, rows)
        array = _rows([leaves[i] for i in small], absolute)
        parts.append(Rows(array, leaf, group[leaf], absolute, [leaves[i].size for i in small], own_starts))
    return parts


def of_keys(keys: Int[Array, "part place"], origin: Parts) -> Parts:
    """Parts of keys that were lifted out of others, a row out of each."""
    if isinstance(origin, Whole):
        return replace(origin, array=keys[0], absolute=False)
    return Rows(keys, origin.leaf, origin.group, absolute=False)


def numbers(values: Sequence[Sequence[int] | Numbers], leaves: Sequence[Any]) -> list[list[UInt[Array, ""]]]:
    """Numbers such that XLA does not know them.

    With constants in them the kernels of all leaves would differ; like this, leaves of one size share theirs, which are
    compiled once.

    Args:
      values: Lists of numbers.
      leaves: Arrays to be used with them, the first of them not empty.
    """

    def known() -> list[list[UInt[Array, ""]]]:
        return [[jnp.uint32(int(value)) for value in own] for own in values]

    if len(leaves) < 2 or any(meshes.is_spread(leaf) for leaf in leaves):
        return known()
    first = ordering.keys(leaves[0][(0,) * leaves[0].ndim])
    always = first > jnp.iinfo(first.dtype).min
    # Unsigned, since whatever indexes by a signed number looks first whether it is negative.
    return lax.cond(always, known, lambda: jax.tree.map(lambda _: jnp.uint32(0), list(map(list, values))))


def gathered(array: Any, places: Any) -> Any:
    """What lies at places of a flat array, which are in bounds. A program that checks them takes longer to compile."""
    return array.reshape(-1).at[places.astype(np.uint32)].get(mode="promise_in_bounds")


def can_be_in_turn(parts: Parts) -> TypeGuard[Whole]:
    """Whether the parts are a large leaf on one device; see `in_turn`."""
    return isinstance(parts, Whole) and not is_spread(parts)


def is_spread(parts: Parts) -> TypeGuard[Whole]:
    """Whether the parts are a leaf that is spread over devices."""
    return meshes.is_spread(parts.array)


def bundled(parts: Sequence[Parts]) -> list[Sequence[Parts]]:
    """The parts in bundles: what can be visited `in_turn`, and the others each by themselves, which come last."""
    together = [own for own in parts if can_be_in_turn(own)]
    return [*([together] if together else []), *([own] for own in parts if not can_be_in_turn(own))]


def in_turn(
    leaves: Sequence[Parts],
    function: Callable[..., Sequence[Array]],
    wanted: Bool[Array, " leaf"],
    before: Shaped[Array, "leaf number _"],
    *args: Array,
) -> Shaped[Array, "leaf number _"]:
    """What a function finds in each of several leaves, one after the other.

    Like this only what is particular to a leaf is compiled for it.

    Args:
      leaves: Such as `can_be_in_turn`.
      function: Takes the flat leaf, its entry of each of `args`, and whether scores rank by `absolute` value. Returns
        arrays of one shape, which is the same for all leaves.
      wanted: The leaves to visit. Others are not read.
      before: The results of leaves that are not visited.
      args: Arrays with an entry for each leaf.

    Returns:
      The results, stacked by leaf.
    """
    branches = [functools.partial(own.told(function), own.array) for own in leaves]
    numbers = np.arange(len(leaves), dtype=np.int32)

    def from_on(number: Int[Array, ""] | int) -> Int[Array, ""]:
        # By a sort, as XLA runs a loop that holds none on a single core, if it takes it for a small one.
        return jnp.sort(jnp.where(wanted & (numbers >= number), numbers, len(leaves)))[0]

    def visit(state: tuple[Array, Array]) -> tuple[Array, Array]:
        number, found = state
        entries = [lax.dynamic_index_in_dim(arg, number, keepdims=False) for arg in args]
        # Stacked here, as what each branch does by itself is compiled for each.
        own = jnp.stack(_switch(number, branches, *entries))
        return from_on(number + 1), lax.dynamic_update_index_in_dim(found, own, number, 0)

    return lax.while_loop(lambda state: state[0] < len(leaves), visit, (from_on(0), before))[1]


def picked(array: Any, numbers: Numbers) -> Any:
    """The entries with these numbers, of an array of as many or more. A slice is not compiled for itself."""
    first, after = int(numbers[0]), int(numbers[-1]) + 1
    if np.array_equal(numbers, np.arange(first, after)):
        return array[first:after]
    return array[numbers]


def look_up(
    parts: Sequence[Parts], places: Int[Array, "all_leaves place"], wanted: Bool[Array, " all_leaves"] | None = None
) -> tuple[Numbers, Int[Array, "leaf place"]]:
    """The keys at places of each leaf that is not spread over devices.

    Args:
      parts: Of all leaves.
      places: For each leaf as many. What looks at so many is compiled once.
      wanted: Which leaves to look at, or all; for others the keys are any.

    Returns:
      Numbers of leaves, and keys of each.
    """
    found = list[tuple[Numbers, Any]]()
    for bundle in bundled(parts):
        first, leaves = bundle[0], np.concatenate([own.leaves for own in bundle])
        if can_be_in_turn(first):
            here = jnp.ones(len(leaves), bool) if wanted is None else picked(wanted, leaves)
            nothing = jnp.zeros((len(leaves), 1, places.shape[1]), first.array.dtype)
            scores = in_turn(bundle, _at, here, nothing, picked(places, leaves))[:, 0]
            found.append((leaves, ordering.keys(scores, first.absolute)))
        elif isinstance(first, Rows):
            found.append((leaves, first.at(picked(places, leaves))))
    leaves, keys = zip(*found, strict=True)
    return np.concatenate(leaves), jnp.concatenate(keys)


def by_group(parts: Sequence[Parts], found: Sequence[Any], summary: Callable[..., Any]) -> Any:
    """What was found in each part, for each group in one.

    Args:
      parts: All that were visited.
      found: The results of each.
      summary: `jax.ops.segment_sum`, or its like.
    """
    group = np.concatenate([own.group for own in parts])
    return summary(jnp.concatenate(found), jnp.asarray(group, jnp.int32), int(group.max()) + 1)


@functools.partial(jax.jit, static_argnames="absolute")
def _at(piece: Any, places: Int[Array, " place"], absolute: bool) -> list[Any]:
    """What lies at places of a leaf, as `in_turn` wants it; traced once for all leaves of a size."""
    del absolute
    return [gathered(piece, places)]


@functools.partial(jax.jit, static_argnames="absolute")
def _mask(
    array: Any,
    least: Int[Array, " all_leaves"],
    cut: Int[Array, " all_leaves"],
    number: UInt[Array, ""],
    absolute: bool,
) -> Bool[Array, "..."]:
    """The mask of the leaf with this number; traced once for all leaves of a shape."""
    own, end = (lax.dynamic_index_in_dim(ends, number, keepdims=False) for ends in (least, cut))
    late = meshes.flat_index(array.shape) >= end
    return ordering.keys(array, absolute) >= own + late.astype(own.dtype)


def _switch(number: Int[Array, ""], branches: Sequence[Callable[..., Any]], *args: Array) -> Any:
    """What the branch with this number returns.

    Of very many, XLA compares the lifetimes of all results; so they are divided among switches.
    """
    groups = [branches[start : start + _BRANCHES] for start in range(0, len(branches), _BRANCHES)]
    if len(groups) == 1:
        return lax.switch(number, branches, *args)
    within = [functools.partial(lax.switch, number % _BRANCHES, group) for group in groups]
    return lax.switch(number // _BRANCHES, within, *args)


def _rows(leaves: Sequence[Any], absolute: bool) -> Int[Array, "row place"]:
    """The keys of flat leaves, each of which begins a row."""
    # Put together before anything is computed, so that a copy is all that is compiled for each leaf.
    # What rows are filled up with is a constant for the same reason, as zeros would not be.
    pieces, used, filler = list[Any](), list[int](), np.linspace(0, 1, _ROW).astype(leaves[0].dtype)
    for leaf in leaves:
        pieces += [leaf, filler[: -leaf.size % _ROW]]
        used += [min(_ROW, leaf.size - start) for start in range(0, leaf.size, _ROW)]
    keys = ordering.keys(jnp.concatenate(pieces).reshape(-1, _ROW), absolute)
    in_use = lax.broadcasted_iota(jnp.int32, keys.shape, 1) < np.array(used, np.int32)[:, None]
    return jnp.where(in_use, keys, jnp.iinfo(keys.dtype).min)


def _if(condition: Bool[Array, ""], function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, or zeros like it."""
    shapes = jax.eval_shape(function, *args)
    return lax.cond(condition, function, lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), *args)
