"""Exact search for thresholds by counting: one loop over all groups of scores at once.

A score's rank is decided by its key, an integer that orders as scores do, and among equal keys by its place. The loop
first searches, for each group, the highest key that at least `keep` scores reach; where more scores share that key than
may stay, it goes on to search, for each part, the last place at which one of them stays. Both are the same search: for
the last position that enough scores reach. A bracket holds it, `low` reached by enough and `high` by too few, and each
pass counts at a few marks inside all brackets and narrows them. The result is exact, since a bracket is left only when
exactly as many scores as wanted reach `low`, or no position lies between the ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune._arrays import wide, xla
from jaxprune._arrays.wide import Wide

Marks: TypeAlias = Int[Array, "part mark"]
Counts: TypeAlias = Int[Array, "part mark"]
Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

_DEVIATIONS = np.array([-1.4, 0, 1.4], np.float32)  # around where interpolation expects the position
_EVEN = np.array([0.2, 0.4, 0.6, 0.8], np.float32)
_OCTAVE = 2.0**23  # keys of float32 between two powers of two
_MOST_OCTAVES = 4  # over which a distribution is smooth enough to interpolate
_CURVATURE = 0.2  # how far interpolation over an octave may be off, in units of the variance of where it leads
_ENDS = jnp.maximum, jnp.minimum, jnp.minimum, jnp.maximum
_FEW = 16  # scores between which there is nothing to interpolate


class Parts(NamedTuple):
    """The arrays that scores lie in, in the order in which ties stay within a group.

    Attributes:
      size: For each part how many scores it has.
      group: For each part the number of its group.
      groups: How many groups there are.
      weight: For each part how much one of its scores counts.
    """

    size: Numbers
    group: Numbers
    groups: int
    weight: Numbers

    def totals(self, counts: Int[Array, "part *mark"]) -> Int[Array, "group *mark"] | Wide:
        """The weighted sums over the parts of each group; `Wide` where 32 bits might not hold them."""
        if np.bincount(self.group, self.size * self.weight).max() < 2**31:
            return self._sums(counts)
        return wide.carried(*map(self._sums, wide.of(counts)))

    def weighted(self, counts: Int[Array, "part *mark"]) -> Int[Array, "part *mark"]:
        """Each count times its part's weight."""
        if (self.weight == 1).all():
            return counts
        return counts * self.weight.astype(np.int32).reshape(-1, *(1,) * (counts.ndim - 1))

    def _sums(self, counts: Int[Array, "part *mark"]) -> Int[Array, "group *mark"]:
        counts = self.weighted(counts)
        if self.groups == len(self.group):
            return counts
        if self.groups == 1:
            return jnp.sum(counts, axis=0, keepdims=True, dtype=jnp.int32)
        is_member = (self.group == np.arange(self.groups)[:, None]).reshape(self.groups, -1, *(1,) * (counts.ndim - 1))
        return jnp.sum(jnp.where(is_member, counts[None], 0), axis=1, dtype=jnp.int32)

    def spread(self, values: Array) -> Array:
        """From one value for each group to one for each part."""
        if self.groups == len(self.group):
            return values
        return values[self.group] if self.groups > 1 else jnp.broadcast_to(values, (len(self.group), *values.shape[1:]))


class State(NamedTuple):
    """How far the search has come, for each part; the parts of a group agree while they search for its key.

    Attributes:
      low: A position that enough scores reach.
      high: A higher one that too few reach.
      at_low: How many of the part's scores reach `low`.
      at_high: How many reach `high`.
      key: The threshold's key once it is known that more scores have it than may stay; the highest integer before.
      wanted: How many of the scores with that key stay.
      passes: How often has been counted.
    """

    low: Int[Array, " part"]
    high: Int[Array, " part"]
    at_low: Int[Array, " part"]
    at_high: Int[Array, " part"]
    key: Int[Array, " part"]
    wanted: Int[Array, " part"]
    passes: Int[Array, ""]

    @property
    def tied(self) -> Bool[Array, " part"]:
        """Whether positions are places of scores with the threshold's key, no longer keys."""
        return is_tied(self.key)


def is_tied(key: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a threshold's key is known; see `State`."""
    return key < jnp.iinfo(key.dtype).max


def search(
    count: Callable[[Marks, State], Counts], parts: Parts, keep: Int[Array, " group"] | Wide, first: Marks
) -> State:
    """Searches until all is known: `low` is the threshold's key or, where the part is `tied`, minus the last place.

    Args:
      count: How many scores of each part reach each mark: have a key at or above it or, in a part that is `tied`, have
        its key and a place at or before minus the mark.
      parts: What is counted in.
      keep: For each group how many scores stay, by weight. Where ties weigh more than is left, one weight less than
        that may be left over.
      first: Keys to count at in the first pass.
    """

    def narrow(state_and_marks: tuple[State, Marks]) -> tuple[State, Marks]:
        state, marks = state_and_marks
        marks = jnp.clip(marks, state.low[:, None] + 1, state.high[:, None] - 1)
        counts = count(marks, state)
        enough = _excess(counts, state, parts, keep) >= 0
        state = _with_ties(_narrowed(state, marks, counts, enough), parts, keep)
        return state, _next_marks(state, parts, keep)

    def is_open(state_and_marks: tuple[State, Marks]) -> Bool[Array, ""]:
        state, _ = state_and_marks
        over = _excess(state.at_low[:, None], state, parts, keep)[:, 0]
        return xla.any_on_all_cores((state.low + 1 < state.high) & (over != 0))

    return lax.while_loop(is_open, narrow, (_start(parts, keep, first.dtype), first))[0]


def _narrowed(state: State, marks: Marks, counts: Counts, enough: Bool[Array, "part mark"]) -> State:
    """The bracket between the highest mark that enough scores reach and the lowest that too few reach."""
    keys, numbers = jnp.iinfo(marks.dtype), jnp.iinfo(counts.dtype)
    # Fewer scores reach a higher mark, so the counts at the ends are extremes too.
    low, high, at_low, at_high = lax.reduce(
        (
            jnp.where(enough, marks, keys.min),
            jnp.where(enough, keys.max, marks),
            jnp.where(enough, counts, numbers.max),
            jnp.where(enough, numbers.min, counts),
        ),
        (marks.dtype.type(keys.min), marks.dtype.type(keys.max), np.int32(numbers.max), np.int32(numbers.min)),
        lambda x, y: tuple(take(a, b) for take, a, b in zip(_ENDS, x, y, strict=True)),
        (1,),
    )
    return state._replace(
        low=jnp.maximum(state.low, low),
        high=jnp.minimum(state.high, high),
        at_low=jnp.minimum(state.at_low, at_low),
        at_high=jnp.maximum(state.at_high, at_high),
        passes=state.passes + 1,
    )


def _start(parts: Parts, keep: Int[Array, " group"] | Wide, integer: Any) -> State:
    """Before anything is counted: all keys, or none where nothing is to stay."""
    nothing = parts.spread((keep.high | keep.low if isinstance(keep, Wide) else keep) == 0)
    limits, sizes = jnp.iinfo(integer), jnp.asarray(parts.size, jnp.int32)
    top, bottom = (jnp.full(sizes.shape, end, integer) for end in (limits.max, limits.min + 1))
    none = jnp.zeros_like(sizes)
    return State(
        low=jnp.where(nothing, top, bottom),
        high=top,
        at_low=jnp.where(nothing, none, sizes),
        at_high=none,
        key=top,
        wanted=none,
        passes=jnp.int32(0),
    )


def _excess(counts: Counts, state: State, parts: Parts, keep: Int[Array, " group"] | Wide) -> Counts:
    """By how much counts exceed what is wanted, in the group or, among ties, in the part; as far as 32 bits tell."""
    totals = parts.totals(counts)
    if isinstance(totals, Wide):
        over = wide.clipped(wide.minus(totals, Wide(*(digit[:, None] for digit in wide.of(keep)))))
    else:
        over = totals - (wide.clipped(keep) if isinstance(keep, Wide) else keep)[:, None]
    return jnp.where(state.tied[:, None], counts - state.wanted[:, None], parts.spread(over))


def _with_ties(state: State, parts: Parts, keep: Int[Array, " group"] | Wide) -> State:
    """Goes on to places where a key was found that more scores share than may stay."""
    over = _excess(state.at_low[:, None], state, parts, keep)[:, 0]
    becomes_tied = ~state.tied & (state.low + 1 >= state.high) & (over > 0)
    ties = state.at_low - state.at_high
    left = wide.minus(wide.of(keep), wide.of(parts.totals(state.at_high)))
    left = Wide(*map(parts.spread, left))
    if parts.groups < len(parts.group):
        before, first = wide.before(parts.weighted(ties)), np.searchsorted(parts.group, parts.group)
        left = wide.minus(left, wide.minus(before, before.indexed(first)))
    wanted = jnp.clip(wide.clipped(left) // parts.weight.astype(np.int32), 0, ties)
    sizes = jnp.asarray(parts.size, state.low.dtype)
    return state._replace(
        # Places count down from 0, so that fewer scores reach a higher position.
        low=jnp.where(becomes_tied, jnp.where(wanted > 0, -sizes, 1), state.low),
        high=jnp.where(becomes_tied, 1, state.high),
        at_low=jnp.where(becomes_tied, jnp.where(wanted > 0, ties, 0), state.at_low),
        at_high=jnp.where(becomes_tied, 0, state.at_high),
        key=jnp.where(becomes_tied, state.low, state.key),
        wanted=jnp.where(becomes_tied, wanted, state.wanted),
    )


def _next_marks(state: State, parts: Parts, keep: Int[Array, " group"] | Wide) -> Marks:
    """Marks around where interpolation expects the position, the middle of the bracket, and its first position.

    Where interpolation says nothing, marks are spread evenly. The first position tells a key that very many scores
    share apart from the next. The middle bounds the number of passes by that of a position's bits.
    """
    ends = _excess(jnp.stack([state.at_low, state.at_high], axis=1), state, parts, keep).astype(jnp.float32)
    above, inside = ends[:, 0], jnp.maximum(ends[:, 0] - ends[:, 1], 1)
    share = above / inside
    unsigned = jnp.dtype(f"uint{8 * state.low.dtype.itemsize}")  # the width may not fit the signed integer
    width = (state.high - state.low).astype(unsigned).astype(jnp.float32)
    octaves, variance = jnp.where(state.tied, 0, width / _OCTAVE), share * (1 - share)
    deviation = jnp.sqrt(variance / inside + jnp.square(_CURVATURE * octaves * variance))
    near = share[:, None] + _DEVIATIONS[None, :] * deviation[:, None]
    near = jnp.clip(jnp.concatenate([near, jnp.full_like(share[:, None], 0.5)], axis=1), 0, 1)
    uneven = (inside <= _FEW) | (octaves > _MOST_OCTAVES)
    fractions = jnp.where(uneven[:, None], _EVEN[None, :], near)
    offsets = jnp.concatenate([jnp.ones_like(width)[:, None], fractions * width[:, None]], axis=1)
    return state.low[:, None] + offsets.astype(unsigned).astype(state.low.dtype)
