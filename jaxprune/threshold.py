"""The threshold above which exactly so many scores lie, found by counting; only a small sample is ever sorted.

The threshold is bracketed between two integer keys (see `ordering.keys`). One pass over the scores counts how many lie
at or above each of a few marks. The next lifts out the scores of a narrow window in which the threshold is expected;
where it does lie there and the window holds few enough, it is found among those without touching the rest. A sample
gives the first marks, interpolation the window, so that two passes are the rule; where they were not enough, both
follow again. Some of the marks halve the bracket at the least, whatever the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune import counting, meshes, ordering, partition, tree, wide
from jaxprune.partition import Numbers, Parts
from jaxprune.wide import Wide

Keys: TypeAlias = Int[Array, "group mark"]
State = TypeVar("State")

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
      keep: For each group, how many of its scores are to stay; `Wide` if a group may have 2**31 of them.
      dtype: Of the scores.
    """

    parts: list[Parts]
    sizes: Numbers
    group: Numbers
    keep: Int[Array, " group"] | Wide
    dtype: Any


class Bracket(NamedTuple):
    """For each group two keys with the threshold between them.

    Attributes:
      low: At or above it lie `over` scores more than are to stay.
      high: At or above it lie `under` scores fewer.
      over: Not negative. Like `under` it is 2**31 - 1 at most: beyond that only the sign counts.
      under: Not negative.
    """

    low: Int[Array, " group"]
    high: Int[Array, " group"]
    over: Int[Array, " group"]
    under: Int[Array, " group"]


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
    if any(meshes.is_spread(parts.array) for parts in problem.parts):
        # What is sampled or lifted out would travel between devices.
        return _searched(start, problem, _spaced_marks(start, problem), _spaced_marks)
    marks = _sampled_marks(problem, start)
    return _searched(start, problem, marks, _spaced_marks, lift=len(problem.parts) <= _LIFTED)


def _everything(problem: Problem) -> Bracket:
    totals = _totals(problem)
    integer = jnp.int64 if problem.dtype.itemsize == 8 else jnp.int32
    low, high = jnp.iinfo(integer).min + 1, jnp.iinfo(integer).max  # below `low` is only what fills parts up
    if isinstance(problem.keep, Wide):
        over, under = wide.clipped(wide.minus(wide.of(totals), problem.keep)), wide.clipped(problem.keep)
    else:
        over, under = jnp.asarray(totals, jnp.int32) - problem.keep, problem.keep
    return Bracket(jnp.full(len(totals), low, integer), jnp.full(len(totals), high, integer), over, under)


def _totals(problem: Problem) -> Numbers:
    return np.bincount(problem.group, problem.sizes).astype(np.int64)


def _excess(problem: Problem, found: list[Int[Array, "_ mark"]]) -> Int[Array, "group mark"]:
    """How many more scores than are to stay were found in all parts of each group; clipped as those of `Bracket`."""
    if isinstance(problem.keep, Wide):
        return wide.clipped(wide.minus(_summed(problem, found), problem.keep.indexed(np.s_[:, None])))
    return partition.by_group(problem.parts, found, jax.ops.segment_sum) - problem.keep[:, None]


def looked_at_after(state: State, problem: Problem) -> tuple[State, Problem]:
    """The problem once more, such that XLA looks at it only when the state is known.

    Keys that it had computed before, or for two uses at once, would all be written to memory.
    """
    state, arrays = lax.optimization_barrier((state, [parts.array for parts in problem.parts]))
    parts = [replace(parts, array=own) for parts, own in zip(problem.parts, arrays, strict=True)]
    return state, problem._replace(parts=parts)


def missing(problem: Problem, bracket: Bracket) -> Wide:
    """How many scores fewer than are to stay lie at or above the bracket's high end, exactly."""
    if not isinstance(problem.keep, Wide):
        return wide.of(bracket.under)
    everywhere = jnp.ones(len(bracket.high), bool)
    marks = jnp.stack([bracket.low, bracket.high], axis=1)  # a single one would be written to memory for each score
    found = [parts.visit(counting.count, everywhere, marks, bracket.high).above for parts in problem.parts]
    return wide.minus(problem.keep, _summed(problem, found).indexed(np.s_[:, 1]))


def _summed(problem: Problem, found: list[Int[Array, "_ mark"]]) -> Wide:
    digits = zip(*(wide.of(own) for own in found), strict=True)
    return wide.carried(*(partition.by_group(problem.parts, list(own), jax.ops.segment_sum) for own in digits))


def _is_open(bracket: Bracket) -> Bool[Array, " group"]:
    return (bracket.over > 0) & (bracket.under > 0) & (bracket.low + 1 < bracket.high)


def _lifted(bracket: Bracket, problem: Problem) -> Bracket:
    """The bracket after one pass that lifts out a window: closed among what was lifted, or cut at the window's ends."""
    window = _window(bracket, problem)
    wanted = _is_open(bracket) & (window[:, 0] < window[:, 1])
    found = [parts.visit(counting.lift, wanted, window) for parts in problem.parts]
    excess = _excess(problem, [lift.above for lift in found])
    crowded = partition.by_group(problem.parts, [lift.crowded for lift in found], jax.ops.segment_max)
    narrowed = _between(bracket, window, excess)
    complete = wanted & ~crowded & (narrowed.low >= window[:, 0]) & (narrowed.high <= window[:, 1])
    closed_already = narrowed._replace(over=jnp.zeros_like(narrowed.over))
    candidates = [
        partition.of_keys(keys, parts) for parts, lift in zip(problem.parts, found, strict=True) for keys in lift.lifted
    ]
    # Of the candidates, as many are to stay as are missing above the window.
    among = problem._replace(parts=candidates, keep=jnp.where(complete, -excess[:, 1], 0))
    inner = _where(complete, narrowed, closed_already)
    closed = _searched(inner, among, _even_marks(inner, among), _even_marks)
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
        state, own = looked_at_after(state, problem)
        bracket = _counted(*state, own)
        bracket = _lifted(bracket, own) if lift else bracket
        return bracket, marks_of(bracket, own)

    return lax.while_loop(lambda state: jnp.any(_is_open(state[0])), narrow, (bracket, marks))[0]


def _counted(bracket: Bracket, marks: Marks, problem: Problem) -> Bracket:
    """The bracket after one pass that only counts, over the groups that are open."""
    is_open = _is_open(bracket)
    found = [parts.visit(counting.count, is_open, marks.keys, marks.floor) for parts in problem.parts]
    least = partition.by_group(problem.parts, [count.least for count in found], jax.ops.segment_min)
    narrowed = _between(bracket, marks.keys, _excess(problem, [count.above for count in found]))
    beyond_gap = jnp.maximum(narrowed.low, jnp.minimum(least, narrowed.high - 1))
    narrowed = narrowed._replace(low=jnp.where(narrowed.low >= marks.floor, beyond_gap, narrowed.low))
    return _where(is_open, narrowed, bracket)


def _between(bracket: Bracket, marks: Keys, excess: Int[Array, "group mark"]) -> Bracket:
    """The bracket between the two neighbouring marks that hold the threshold."""
    lowest, highest = bracket.low[:, None], bracket.high[:, None]
    inside = (marks > lowest) & (marks < highest)
    raises, lowers = inside & (excess >= 0), inside & (excess < 0)
    return Bracket(
        jnp.max(jnp.where(raises, marks, lowest), axis=1),
        jnp.min(jnp.where(lowers, marks, highest), axis=1),
        jnp.min(jnp.where(raises, excess, bracket.over[:, None]), axis=1),
        jnp.min(jnp.where(lowers, -excess, bracket.under[:, None]), axis=1),
    )


def _sampled_marks(problem: Problem, start: Bracket) -> Marks:
    """Sample quantiles up to four deviations around the threshold.

    A value that several of them share, such as the 0 of what is pruned already, is told from what lies above it: first
    a gap, then the next few scores.
    """
    ascending, drawn = _sample(problem, start.low.dtype)
    share = wide.floating(problem.keep) / jnp.asarray(_totals(problem), jnp.float32)
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
    groups, rng = len(_totals(problem)), np.random.default_rng(0)
    each = max(_SAMPLE // groups, _SAMPLE_EACH)
    counts = np.minimum(problem.sizes, each * problem.sizes // _totals(problem)[problem.group] + 1)
    drawn, owner = [jnp.full(1, jnp.iinfo(integer).max, integer)], [np.full(1, groups)]
    for parts in problem.parts:
        leaves = np.unique(parts.leaf)
        length = counts[leaves].max()
        places = rng.integers(0, problem.sizes[leaves, None], (len(leaves), length))
        drawn.append(parts.at(leaves, places).reshape(-1))
        in_use = np.arange(length) < counts[leaves, None]
        owner.append(np.where(in_use, problem.group[leaves, None], groups).reshape(-1))
    owners = np.concatenate(owner)
    place = np.argsort(owners, kind="stable")
    number = np.bincount(owners, minlength=groups + 1)[:groups]
    table = np.zeros((groups, number.max()), np.int64)  # the first key drawn fills up
    table[np.arange(number.max()) < number[:, None]] = place[: number.sum()]
    # Put together before keys are taken, which is compiled once then.
    alike = [jnp.concatenate(list(run)) for _, run in itertools.groupby(drawn, key=lambda own: own.dtype)]
    keys = [ordering.keys(run, problem.parts[0].absolute).astype(integer) for run in alike]
    return jnp.sort(partition.gathered(jnp.concatenate(keys), table), axis=1), number.astype(np.float32)


def _window(bracket: Bracket, problem: Problem) -> Keys:
    """Two marks around where the threshold is expected, or the whole bracket; the same twice if they hold too many."""
    share, deviation, inside = _expected(bracket)
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
    share, deviation, inside = _expected(bracket)
    near = share + jnp.array([[-2.5, -0.7, 0.7, 2.5]], jnp.float32) * deviation
    shares = jnp.where(inside <= _FEW, jnp.arange(1, 5, dtype=jnp.float32)[None, :] / 5, near)
    above_low = bracket.low[:, None] + 1
    mixed = jnp.concatenate([_inside(bracket, shares, problem.dtype), _even_keys(bracket, 2), above_low], axis=1)
    is_wide = _width(bracket) > 2 ** (jnp.finfo(problem.dtype).nmant - 3)
    keys = jnp.where(is_wide[:, None], _even_keys(bracket, 1 + mixed.shape[1]), mixed)
    return Marks(_pinned(keys), bracket.low + 1)


def _expected(bracket: Bracket) -> tuple[Array, Array, Array]:
    """How far from the low to the high end linear interpolation puts the threshold; the deviation; scores in between.

    Interpolates the values, not the keys, which crowd towards 0: above the zeros of what is pruned already, scores
    spread evenly over many powers of two. The deviation is that of an order statistic of evenly spread values.
    """
    over, under = (own.astype(jnp.float32)[:, None] for own in (bracket.over, bracket.under))
    inside = over + under
    share = over / jnp.maximum(inside, 1)
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
