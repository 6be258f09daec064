"""The threshold above which exactly so many scores lie, found by counting; only a small sample is ever sorted.

The threshold is bracketed between two integer keys (see `ordering.keys`). One pass over the scores counts how many lie
at or above each of a few marks. The next lifts out the scores of a narrow window in which the threshold is expected;
where it does lie there and the window holds few enough, it is found among those without touching the rest. A sample
gives the first marks, interpolation the window, so that two passes are the rule; where they were not enough, both
follow again. Some of the marks halve the bracket at the least, whatever the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune import counting, meshes, ordering, partition, tree
from jaxprune.partition import Numbers, Parts

Keys: TypeAlias = Int[Array, "group mark"]

_SAMPLE = 2**13  # scores sampled over all groups
_SAMPLE_EACH = 2**9  # and at least so many in each
_OFFSETS = np.array([-4, -2, -0.7, 0.7, 2, 4], np.float32)  # in deviations; as many as `_spaced_marks`
_LIFTED = 8  # so many parts are lifted from at most, which takes several times longer to compile
_NEXT = 2  # how many samples are passed over behind a gap
_FEW = 32  # scores in a bracket, the spread of which says little
_EVEN = np.arange(8, dtype=np.float32) / 8


class Problem(NamedTuple):
    """What to find a threshold in.

    Attributes:
      parts: Of the leaves, or of keys lifted out of them.
      sizes: For each leaf, how many scores it has.
      group: For each leaf, the group that it belongs to. A group has one threshold.
      keep: For each group, how many of its scores are to stay.
      dtype: Of the scores.
    """

    parts: list[Parts]
    sizes: Numbers
    group: Numbers
    keep: Int[Array, " group"]
    dtype: Any


class Bracket(NamedTuple):
    """For each group: count(key >= low) = above_low >= keep and count(key >= high) = above_high <= keep."""

    low: Int[Array, " group"]
    high: Int[Array, " group"]
    above_low: Int[Array, " group"]
    above_high: Int[Array, " group"]


class Marks(NamedTuple):
    """Where a pass counts.

    Attributes:
      keys: For each group, counted at or above.
      floor: For each group, the key at or above which the least is looked for. Above what very many scores share, there
        may be nothing for long; interpolation must not look there.
    """

    keys: Keys
    floor: Int[Array, " group"]


def find(problem: Problem) -> Bracket:
    """The threshold of each group.

    Returns:
      Brackets that are closed: either end holds exactly `keep` keys at or above it, or the ends are neighbours and the
      keys equal to the lower one are ties.
    """
    start = _everything(problem)
    if any(meshes.is_spread(array) for parts in problem.parts for array in parts.arrays):
        # What is sampled or lifted out would travel between devices.
        return _searched(start, problem, _spaced_marks(start, problem), _spaced_marks)
    marks = _sampled_marks(problem, start)
    return _searched(start, problem, marks, _spaced_marks, lift=len(problem.parts) <= _LIFTED)


def _everything(problem: Problem) -> Bracket:
    groups = problem.keep.shape[0]
    integer = jnp.int64 if problem.dtype.itemsize == 8 else jnp.int32
    low, high = jnp.iinfo(integer).min + 1, jnp.iinfo(integer).max  # below `low` is only what fills parts up
    return Bracket(
        jnp.full(groups, low, integer),
        jnp.full(groups, high, integer),
        jnp.asarray(_totals(problem), jnp.int32),
        jnp.zeros(groups, jnp.int32),
    )


def _totals(problem: Problem) -> Numbers:
    return np.bincount(problem.group, problem.sizes, problem.keep.shape[0]).astype(np.int64)


def _is_open(bracket: Bracket, keep: Int[Array, " group"]) -> Bool[Array, " group"]:
    exact = (bracket.above_low == keep) | (bracket.above_high == keep)
    return ~exact & (bracket.low + 1 < bracket.high)


def _lifted(bracket: Bracket, problem: Problem) -> Bracket:
    """The bracket after one pass that lifts out a window: closed among what was lifted, or cut at the window's ends."""
    keep, groups = problem.keep, problem.keep.shape[0]
    window = _window(bracket, problem)
    wanted = _is_open(bracket, keep) & (window[:, 0] < window[:, 1])
    found = [parts.visit(counting.lift, wanted, window) for parts in problem.parts]
    above = partition.by_group(problem.parts, [lift.above for lift in found], groups, jax.ops.segment_sum)
    crowded = partition.by_group(problem.parts, [lift.crowded for lift in found], groups, jax.ops.segment_max)
    narrowed = _between(bracket, window, above, keep)
    complete = wanted & ~crowded & (narrowed.low >= window[:, 0]) & (narrowed.high <= window[:, 1])
    # Above the window there are `beyond` scores more than among the candidates.
    beyond = jnp.where(complete, above[:, 1], 0)
    inner = Bracket(
        narrowed.low,
        narrowed.high,
        jnp.where(complete, narrowed.above_low - beyond, 0),
        jnp.where(complete, narrowed.above_high - beyond, 0),
    )
    candidates = [
        partition.of_keys(keys, parts) for parts, lift in zip(problem.parts, found, strict=True) for keys in lift.lifted
    ]
    among = problem._replace(parts=candidates, keep=jnp.where(complete, keep - beyond, 0))
    closed = _searched(inner, among, _even_marks(inner, among), _even_marks)
    closed = closed._replace(above_low=closed.above_low + beyond, above_high=closed.above_high + beyond)
    return _where(wanted, _where(complete, closed, narrowed), bracket)


def _where(condition: Bool[Array, " group"], first: Bracket, second: Bracket) -> Bracket:
    return Bracket(*(jnp.where(condition, a, b) for a, b in zip(first, second, strict=True)))


def _searched(
    bracket: Bracket,
    problem: Problem,
    marks: Marks,
    marks_of: Callable[[Bracket, Problem], Marks],
    *,
    lift: bool = False,
) -> Bracket:
    """The closed bracket, by counting at marks, at first at these; and by lifting out, in turn, if so asked."""

    def narrow(state: tuple[Bracket, Marks]) -> tuple[Bracket, Marks]:
        # The barrier keeps XLA from computing the keys before the loop, which would write them all to memory.
        state, arrays = lax.optimization_barrier((state, [parts.arrays for parts in problem.parts]))
        barred = [replace(parts, arrays=own) for parts, own in zip(problem.parts, arrays, strict=True)]
        own = problem._replace(parts=barred)
        bracket = _counted(*state, own)
        bracket = _lifted(bracket, own) if lift else bracket
        return bracket, marks_of(bracket, own)

    return lax.while_loop(lambda state: jnp.any(_is_open(state[0], problem.keep)), narrow, (bracket, marks))[0]


def _counted(bracket: Bracket, marks: Marks, problem: Problem) -> Bracket:
    """The bracket after one pass that only counts, over the groups that are open."""
    is_open, groups = _is_open(bracket, problem.keep), problem.keep.shape[0]
    found = [parts.visit(counting.count, is_open, marks.keys, marks.floor) for parts in problem.parts]
    above = partition.by_group(problem.parts, [count.above for count in found], groups, jax.ops.segment_sum)
    least = partition.by_group(problem.parts, [count.least for count in found], groups, jax.ops.segment_min)
    narrowed = _between(bracket, marks.keys, above, problem.keep)
    beyond_gap = jnp.maximum(narrowed.low, jnp.minimum(least, narrowed.high - 1))
    narrowed = narrowed._replace(low=jnp.where(narrowed.low >= marks.floor, beyond_gap, narrowed.low))
    return _where(is_open, narrowed, bracket)


def _between(bracket: Bracket, marks: Keys, above: Keys, keep: Int[Array, " group"]) -> Bracket:
    """The bracket between the two neighbouring marks that hold the threshold."""
    lowest, highest = bracket.low[:, None], bracket.high[:, None]
    inside = (marks > lowest) & (marks < highest)
    raises, lowers = inside & (above >= keep[:, None]), inside & (above < keep[:, None])
    return Bracket(
        jnp.max(jnp.where(raises, marks, lowest), axis=1),
        jnp.min(jnp.where(lowers, marks, highest), axis=1),
        jnp.min(jnp.where(raises, above, bracket.above_low[:, None]), axis=1),
        jnp.max(jnp.where(lowers, above, bracket.above_high[:, None]), axis=1),
    )


def _sampled_marks(problem: Problem, start: Bracket) -> Marks:
    """Sample quantiles up to four deviations around the threshold.

    A value that several of them share, such as the 0 of what is pruned already, is told from what lies above it: first
    a gap, then the next few scores.
    """
    ascending, drawn = _sample(problem, start.low.dtype)
    share = problem.keep.astype(jnp.float32) / jnp.asarray(_totals(problem), jnp.float32)
    deviation = jnp.sqrt(drawn * share * (1 - share)) + 1
    position = (jnp.asarray(drawn) * (1 - share))[:, None] + jnp.array(_OFFSETS)[None, :] * deviation[:, None]

    def at(position: Int[Array, "group mark"]) -> Keys:
        index = jnp.clip(position, 0, np.maximum(drawn.astype(np.int32) - 1, 0)[:, None])
        return jnp.minimum(jnp.take_along_axis(ascending, index, axis=1), jnp.iinfo(ascending.dtype).max - 1)

    quantiles = at(position.astype(jnp.int32))
    following = at(_number(ascending[:, None, :] <= quantiles[:, :, None]) + _NEXT)
    before = np.arange(len(_OFFSETS), dtype=np.int32)[None, :] - _number(quantiles[:, None, :] < quantiles[:, :, None])
    marks = jnp.where(before == 0, quantiles, jnp.where(before == 1, quantiles + 1, following))
    after_two = (before[:, 1:] == 0) & (before[:, :-1] == 1)
    marks = jnp.concatenate([marks[:, :1], jnp.where(after_two, following[:, :-1], marks[:, 1:])], axis=1)
    shared = jnp.any(before == 1, axis=1)
    floor = jnp.where(shared, jnp.min(jnp.where(before == 1, quantiles + 1, marks[:, -1:]), axis=1), marks[:, 0])
    return Marks(_pinned(marks), floor)


def _number(hits: Bool[Array, "group mark sample"]) -> Int[Array, "group mark"]:
    return jnp.sum(hits, axis=2, dtype=jnp.int32)


def _sample(problem: Problem, integer: Any) -> tuple[Int[Array, "group sample"], np.ndarray]:
    """Keys at random places of each group in ascending order, filled up at the end; and how many there are."""
    groups, rng = problem.keep.shape[0], np.random.default_rng(0)
    each = max(_SAMPLE // groups, _SAMPLE_EACH)
    counts = np.minimum(problem.sizes, each * problem.sizes // _totals(problem)[problem.group] + 1)
    drawn, owner = [jnp.full(1, jnp.iinfo(integer).max, integer)], [np.full(1, groups)]
    for parts in problem.parts:
        leaves = np.unique(parts.leaf)
        length = counts[leaves].max()
        places = rng.integers(0, problem.sizes[leaves, None], (len(leaves), length))
        drawn.append(parts.keys_at(leaves, places).reshape(-1).astype(integer))
        in_use = np.arange(length) < counts[leaves, None]
        owner.append(np.where(in_use, problem.group[leaves, None], groups).reshape(-1))
    owners = np.concatenate(owner)
    place = np.argsort(owners, kind="stable")
    number = np.bincount(owners, minlength=groups + 1)[:groups]
    table = np.zeros((groups, number.max()), np.int32)  # the first key drawn fills up
    table[np.arange(number.max()) < number[:, None]] = place[: number.sum()]
    return jnp.sort(jnp.concatenate(drawn)[table], axis=1), number.astype(np.float32)


def _window(bracket: Bracket, problem: Problem) -> Keys:
    """Two marks around where the threshold is expected, or the whole bracket; the same twice if they hold too many."""
    share, deviation, inside = _expected(bracket, problem)
    liftable = jnp.asarray([[counting.liftable(int(size))] for size in _totals(problem)], jnp.float32)
    # Wide, where that is free: scores may not be spread as evenly as interpolation takes them to be.
    reach = jnp.maximum(4 * deviation, 0.35 * liftable / jnp.maximum(inside, 1))
    guesses = _inside(bracket, jnp.concatenate([share - reach, share + reach], axis=1), problem.dtype)
    ends = jnp.stack([bracket.low, bracket.high], axis=1)
    guesses = jnp.where(2 * reach * inside <= liftable, guesses, bracket.high[:, None])
    return _pinned(jnp.where(inside <= liftable, ends, guesses))


def _spaced_marks(bracket: Bracket, problem: Problem) -> Marks:
    """Keys that cut a wide bracket into equal parts; in another one, marks around where the threshold is expected.

    Interpolation says nothing where scores lie over many powers of two. A few more marks bound the number of passes.
    """
    share, deviation, inside = _expected(bracket, problem)
    near = share + jnp.array([[-2.5, -0.7, 0.7, 2.5]], jnp.float32) * deviation
    shares = jnp.where(inside <= _FEW, jnp.arange(1, 5, dtype=jnp.float32)[None, :] / 5, near)
    above_low = bracket.low[:, None] + 1
    mixed = jnp.concatenate([_inside(bracket, shares, problem.dtype), _even_keys(bracket, 2), above_low], axis=1)
    is_wide = _width(bracket) > 2 ** (jnp.finfo(problem.dtype).nmant - 3)
    keys = jnp.where(is_wide[:, None], _even_keys(bracket, 1 + mixed.shape[1]), mixed)
    return Marks(_pinned(keys), bracket.low + 1)


def _expected(bracket: Bracket, problem: Problem) -> tuple[Array, Array, Array]:
    """How far from the low to the high end linear interpolation puts the threshold; the deviation; scores in between.

    Interpolates the values, not the keys, which crowd towards 0: above the zeros of what is pruned already, scores
    spread evenly over many powers of two. The deviation is that of an order statistic of evenly spread values.
    """
    inside = (bracket.above_low - bracket.above_high).astype(jnp.float32)[:, None]
    share = (bracket.above_low - problem.keep).astype(jnp.float32)[:, None] / jnp.maximum(inside, 1)
    return share, (jnp.sqrt(inside * share * (1 - share)) + 1) / jnp.maximum(inside, 1), inside


def _even_marks(bracket: Bracket, problem: Problem) -> Marks:
    """Values that cut the bracket into equal parts, the first just above `low`; and the middle key."""
    shares = jnp.broadcast_to(jnp.array(_EVEN), (bracket.low.shape[0], len(_EVEN)))
    keys = jnp.concatenate([_inside(bracket, shares, problem.dtype), _even_keys(bracket, 2)], axis=1)
    return Marks(_pinned(keys), bracket.low + 1)


def _even_keys(bracket: Bracket, parts: int) -> Keys:
    """Keys that cut the bracket into so many parts."""
    width = _width(bracket)
    steps = [(width // parts * i).astype(bracket.low.dtype) for i in range(1, parts)]
    return bracket.low[:, None] + jnp.stack(steps, axis=1)


def _width(bracket: Bracket) -> Array:
    # Unsigned, the extent of the bracket is right even where the signed difference overflows and wraps.
    unsigned = jnp.uint64 if bracket.low.dtype == jnp.int64 else jnp.uint32
    return (bracket.high - bracket.low).astype(unsigned)


def _inside(bracket: Bracket, share: Array, dtype: Any) -> Keys:
    """The keys of values so far from the low to the high end of the bracket."""
    share = jnp.clip(share, 0, 1).astype(tree.promote(dtype, jnp.float32))
    low, high = (ordering.values(end, dtype).astype(share.dtype)[:, None] for end in (bracket.low, bracket.high))
    keys = ordering.keys((low * (1 - share) + high * share).astype(dtype)).astype(bracket.low.dtype)
    return jnp.clip(keys, bracket.low[:, None] + 1, jnp.maximum(bracket.high - 1, bracket.low + 1)[:, None])


def _pinned(marks: Keys) -> Keys:
    """The marks in ascending order, computed once.

    XLA may compute cheap values again for each of their uses, and round floats differently each time; then the keys
    counted would not be those remembered. It never computes a sort twice.
    """
    return jnp.sort(marks, axis=1)
