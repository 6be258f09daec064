"""The threshold above which exactly so many scores lie, found by counting; only a small sample is ever sorted.

The threshold is bracketed between two integer keys (see `ordering.keys`). One pass over the scores counts how many lie
at or above each of a few marks. The next lifts out the scores of a narrow window in which the threshold is expected;
where it does lie there and the window holds few enough, it is found among those without touching the rest. A sample
gives the first marks, interpolation the window, so that two passes are the rule; where they were not enough, both
follow again. Some of the marks halve the bracket at the least, whatever the data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune import counting, meshes, ordering, partition, tree, wide
from jaxprune.partition import Numbers, Parts
from jaxprune.wide import Wide

Keys: TypeAlias = Int[Array, "group mark"]
State = TypeVar("State")

_SAMPLE = 2**13  # scores sampled over all groups
_SAMPLE_EACH = 2**9  # and at least so many in each
_LIFTED = 8  # so many parts are lifted from at most, which takes several times longer to compile
_MOST_BENT = 0.1  # of a bracket
_NEXT = 2  # how many samples are passed over behind a gap
_FEW = 32  # scores in a bracket, the spread of which says little
_GOLDEN = 0x9E3779B9  # the fraction of the golden ratio, times 2**32
_EVEN = np.arange(8, dtype=np.float32) / 8


class Spacing(NamedTuple):
    """How far from where the threshold is expected a pass counts, in deviations.

    Attributes:
      sampled: In the first pass, where a sample tells the deviation.
      near: In others, which count at two more marks.
    """

    sampled: tuple[float, ...]
    near: tuple[float, ...]


_COARSE = Spacing((-4, -2, -0.7, 0.7, 2, 4), (-2.5, -0.7, 0.7, 2.5))  # enough where a window is lifted out next
_FINE = Spacing((-4, -2.2, -1.1, -0.35, 0.35, 1.1, 2.2, 4), (-3, -1.2, -0.4, 0.4, 1.2, 3))


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
      high: At or above it lie `under` scores fewer; above it, once it is the same as `low`.
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


class Search(NamedTuple):
    """How far a search is, and where it counts next.

    Attributes:
      bracket: Of each group.
      ties: For each bundle of parts, how many keys in the rows of each are equal to the low end, once the bracket is
        closed by ties and they are counted; zeros until then.
      marks: For each group.
    """

    bracket: Bracket
    ties: list[Int[Array, "_ _"]]
    marks: Marks


def find(problem: Problem) -> tuple[Bracket, list[Int[Array, "_ _"]]]:
    """The threshold of each group.

    Returns:
      Brackets that are closed: either end holds exactly `keep` keys at or above it, or they are the same and the keys
      equal to it are ties. And how many ties there are; see `Search`.
    """
    start = _everything(problem)
    if any(meshes.is_spread(parts.array) for parts in problem.parts):
        # What is sampled or lifted out would travel between devices.
        spaced_marks = functools.partial(_spaced_marks, near=_FINE.near)
        straight = jnp.zeros(len(start.low), jnp.float32)
        return _searched(start, problem, spaced_marks(start, straight, problem), spaced_marks)
    lift = len(problem.parts) <= _LIFTED
    spacing = _COARSE if lift else _FINE
    marks = _sampled_marks(problem, start, spacing.sampled)
    return _searched(start, problem, marks, functools.partial(_spaced_marks, near=spacing.near), lift=lift)


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
    """How many scores fewer than are to stay lie above the ties of a closed bracket, exactly."""
    if not isinstance(problem.keep, Wide):
        return wide.of(bracket.under)
    everywhere = jnp.ones(len(bracket.high), bool)
    # A single mark would be written to memory for each score.
    marks = Marks(jnp.stack([bracket.low, bracket.low + 1], axis=1), bracket.low)
    found = [count.above for count in _counts(problem, everywhere, marks, everywhere)]
    return wide.minus(problem.keep, _summed(problem, found).indexed(np.s_[:, 1]))


def _summed(problem: Problem, found: list[Int[Array, "_ mark"]]) -> Wide:
    digits = zip(*(wide.of(own) for own in found), strict=True)
    return wide.carried(*(partition.by_group(problem.parts, list(own), jax.ops.segment_sum) for own in digits))


def _is_open(bracket: Bracket) -> Bool[Array, " group"]:
    return (bracket.over > 0) & (bracket.under > 0) & (bracket.low + 1 < bracket.high)


def are_tied(bracket: Bracket) -> Bool[Array, " group"]:
    """Whether some, but not all, of the keys equal to the lower end of a closed bracket are to stay."""
    return (bracket.over > 0) & (bracket.under > 0) & (bracket.low + 1 >= bracket.high)


def _is_unfinished(bracket: Bracket) -> Bool[Array, " group"]:
    """Whether the bracket is open, or its ties are yet to be counted."""
    return (bracket.over > 0) & (bracket.under > 0) & (bracket.low < bracket.high)


def _lifted(
    bracket: Bracket, bend: Float[Array, " group"], problem: Problem
) -> tuple[Bracket, Float[Array, " group"]]:
    """The bracket after one pass that lifts out a window: closed among what was lifted, or cut at the window's ends."""
    window = _window(bracket, bend, problem)
    wanted = _is_open(bracket) & (window[:, 0] < window[:, 1])
    found = [parts.visit(counting.lift, wanted, window) for parts in problem.parts]
    excess = _excess(problem, [lift.above for lift in found])
    crowded = partition.by_group(problem.parts, [lift.crowded for lift in found], jax.ops.segment_max)
    narrowed = _between(bracket, window, excess, wanted)
    complete = wanted & ~crowded & (narrowed.low >= window[:, 0]) & (narrowed.high <= window[:, 1])
    closed_already = narrowed._replace(over=jnp.zeros_like(narrowed.over))
    candidates = [partition.of_keys(lift.lifted, parts) for parts, lift in zip(problem.parts, found, strict=True)]
    # Of the candidates, as many are to stay as are missing above the window.
    among = problem._replace(parts=candidates, keep=jnp.where(complete, -excess[:, 1], 0))
    inner = _where(complete, narrowed, closed_already)
    closed, _ = _searched(inner, among, _even_marks(inner, jnp.zeros_like(bend), among), _even_marks)
    # Ties are yet to be counted where they lie.
    closed = closed._replace(high=jnp.where(are_tied(closed), closed.low + 1, closed.high))
    return _where(wanted, _where(complete, closed, narrowed), bracket), jnp.where(wanted, 0, bend)


def _where(condition: Bool[Array, " group"], first: Bracket, second: Bracket) -> Bracket:
    return Bracket(*(jnp.where(condition, a, b) for a, b in zip(first, second, strict=True)))


def _searched(
    bracket: Bracket,
    problem: Problem,
    marks: Marks,
    marks_of: Callable[[Bracket, Float[Array, " group"], Problem], Marks],
    *,
    lift: bool = False,
) -> tuple[Bracket, list[Int[Array, "_ _"]]]:
    """The closed bracket, by counting at marks, at first at these; and by lifting out, in turn, if so asked.

    Where it is closed, another pass counts the ties. As a pass like the others it is compiled with them.
    """

    def narrow(state: Search) -> Search:
        state, own = looked_at_after(state, problem)
        bracket, ties, bend = _counted(state, own)
        if lift:
            bracket, bend = _lifted(bracket, bend, own)
        return Search(bracket, ties, _at_ties(bracket, marks_of(bracket, bend, own)))

    everywhere = jnp.ones(len(bracket.low), bool)
    shapes = jax.eval_shape(lambda: [own.first for own in _counts(problem, everywhere, marks, everywhere)])
    start = Search(bracket, [jnp.zeros(own.shape, own.dtype) for own in shapes], marks)
    found = lax.while_loop(lambda state: jnp.any(_is_unfinished(state.bracket)), narrow, start)
    return found.bracket, found.ties


def _at_ties(bracket: Bracket, marks: Marks) -> Marks:
    """The marks, or where there are ties, such that the first two marks hold them."""
    at = bracket.low[:, None] + jnp.minimum(jnp.arange(marks.keys.shape[1], dtype=bracket.low.dtype), 1)[None]
    tied = are_tied(bracket)
    return Marks(jnp.where(tied[:, None], at, marks.keys), jnp.where(tied, at[:, 1], marks.floor))


def _counts(
    problem: Problem, wanted: Bool[Array, " group"], marks: Marks, are_last: Bool[Array, " group"]
) -> list[counting.Count]:
    """What one pass counts in each bundle of parts; for a group that is not wanted, anything."""
    # In one array, of which each part has a row.
    asked = jnp.concatenate([marks.keys, marks.floor[:, None]], axis=1)

    def found(bundle: Sequence[Parts]) -> counting.Count:
        first, group = bundle[0], np.concatenate([own.group for own in bundle])

        def told(count: Callable[..., Any]) -> Callable[..., Any]:
            return lambda piece, own, absolute: count(piece, own[:-1], own[-1], absolute)

        if partition.can_be_in_turn(first):
            here, own = partition.picked(wanted, group), partition.picked(asked, group)
            count = counting.added(partition.in_turn(bundle, told(counting.count_rows), here, own))
        else:
            count = first.visit(told(counting.count), wanted, asked)
        return count._replace(first=jnp.where(partition.picked(are_last, group)[:, None], count.first, 0))

    return [found(bundle) for bundle in partition.bundled(problem.parts)]


def _counted(
    search: Search, problem: Problem
) -> tuple[Bracket, list[Int[Array, "_ _"]], Float[Array, " group"]]:
    """The bracket, its ties and its bend after one pass that only counts, over the groups that are not finished."""
    bracket, ties, marks = search
    is_open, are_last = _is_open(bracket), _is_unfinished(bracket) & ~_is_open(bracket)
    found = _counts(problem, is_open | are_last, marks, are_last)
    ties = [own + count.first for own, count in zip(ties, found, strict=True)]
    least = partition.by_group(problem.parts, [count.least for count in found], jax.ops.segment_min)
    excess = _excess(problem, [count.above for count in found])
    narrowed = _between(bracket, marks.keys, excess, is_open)
    beyond_gap = jnp.maximum(narrowed.low, jnp.minimum(least, narrowed.high - 1))
    low = jnp.where(is_open & (narrowed.low >= marks.floor), beyond_gap, narrowed.low)
    narrowed = narrowed._replace(low=low, high=jnp.where(are_last, low, narrowed.high))
    return narrowed, ties, _bend(narrowed, marks.keys, excess, problem.dtype)


def _bend(bracket: Bracket, marks: Keys, excess: Int[Array, "group mark"], dtype: Any) -> Float[Array, " group"]:
    """How far above linear interpolation the threshold is expected, as a share of the bracket.

    It is where the cubic through both ends and a mark on either side of them has it; the parabola, if there is only one
    such mark.
    """
    keys, counts = jnp.iinfo(marks.dtype), jnp.iinfo(jnp.int32)
    below, above = marks < bracket.low[:, None], marks > bracket.high[:, None]
    start = [jnp.array(end, marks.dtype) for end in (keys.min, keys.max)]
    start += [jnp.int32(end) for end in (counts.max, counts.min)]
    sides = (below, above, below, above)
    # The marks that are nearest to the bracket, and their excess.
    found = lax.reduce(
        tuple(jnp.where(side, own, end) for side, own, end in zip(sides, (marks, marks, excess, excess), start, strict=True)),
        tuple(start),
        lambda x, y: (jnp.maximum(x[0], y[0]), jnp.minimum(x[1], y[1]), jnp.minimum(x[2], y[2]), jnp.maximum(x[3], y[3])),
        (1,),
    )
    lower, low, high, higher = (
        ordering.values(own, dtype).astype(jnp.float32) for own in (found[0], bracket.low, bracket.high, found[1])
    )
    more, over, under, fewer = (own.astype(jnp.float32) for own in (found[2], bracket.over, bracket.under, -found[3]))
    slope = (high - low) / (over + under)  # values per score
    downwards = (slope - (low - lower) / (more - over)) / (more + under)
    upwards = ((higher - high) / (fewer - under) - slope) / (over + fewer)
    has_lower = jnp.any(below, axis=1) & (more > over)
    has_higher = jnp.any(above, axis=1) & (fewer > under)
    weight = jnp.where(has_lower & has_higher, fewer / (more + fewer), jnp.where(has_lower, 1, 0))
    curvature = jnp.where(has_lower, weight * downwards, 0) + jnp.where(has_higher, (1 - weight) * upwards, 0)
    bend = -over * under * curvature / (high - low)
    return jnp.where(jnp.isfinite(bend), jnp.clip(bend, -_MOST_BENT, _MOST_BENT), 0)


def _between(
    bracket: Bracket, marks: Keys, excess: Int[Array, "group mark"], wanted: Bool[Array, " group"]
) -> Bracket:
    """The bracket between the two neighbouring marks that hold the threshold; as it was where not wanted."""
    lowest, highest = bracket.low[:, None], bracket.high[:, None]
    inside = (marks > lowest) & (marks < highest) & wanted[:, None]
    raises, lowers = inside & (excess >= 0), inside & (excess < 0)
    # One reduction, as every other is compiled for itself.
    limits, most = jnp.iinfo(marks.dtype), jnp.int32(jnp.iinfo(jnp.int32).max)
    ends = lax.reduce(
        (
            jnp.where(raises, marks, lowest),
            jnp.where(lowers, marks, highest),
            jnp.where(raises, excess, bracket.over[:, None]),
            jnp.where(lowers, -excess, bracket.under[:, None]),
        ),
        (jnp.array(limits.min, marks.dtype), jnp.array(limits.max, marks.dtype), most, most),
        lambda x, y: (jnp.maximum(x[0], y[0]), *(jnp.minimum(a, b) for a, b in zip(x[1:], y[1:], strict=True))),
        (1,),
    )
    return Bracket(*ends)


def _sampled_marks(problem: Problem, start: Bracket, offsets: Sequence[float]) -> Marks:
    """Sample quantiles up to four deviations around the threshold.

    A value that several of them share, such as the 0 of what is pruned already, is told from what lies above it: first
    a gap, then the next few scores.
    """
    ascending, drawn = _sample(problem, start.low.dtype)
    share = wide.floating(problem.keep) / jnp.asarray(_totals(problem), jnp.float32)
    deviation = jnp.sqrt(drawn * share * (1 - share)) + 1
    position = (jnp.asarray(drawn) * (1 - share))[:, None] + jnp.array(offsets, jnp.float32)[None, :] * deviation[:, None]

    def at(position: Int[Array, "group mark"]) -> Keys:
        index = jnp.clip(position, 0, np.maximum(drawn.astype(np.int32) - 1, 0)[:, None])
        return jnp.minimum(jnp.take_along_axis(ascending, index, axis=1), jnp.iinfo(ascending.dtype).max - 1)

    quantiles = at(position.astype(jnp.int32))
    # Of equal quantiles the second stands for what lies above their value, and those after it for the gap's far end.
    following = at(jnp.sum(ascending[:, None, :] <= quantiles[:, :, None], axis=2, dtype=jnp.int32) + _NEXT)
    is_second, is_later = _is_second_or_later(quantiles)
    marks = jnp.where(is_second, quantiles + 1, jnp.where(is_later, following, quantiles))
    after_two = ~is_second[:, 1:] & ~is_later[:, 1:] & is_second[:, :-1]
    marks = jnp.concatenate([marks[:, :1], jnp.where(after_two, following[:, :-1], marks[:, 1:])], axis=1)
    top = jnp.array(jnp.iinfo(marks.dtype).max, marks.dtype)
    above_shared = jnp.min(jnp.where(is_second, quantiles + 1, top), axis=1)
    return Marks(_pinned(marks), jnp.where(above_shared < top, above_shared, marks[:, 0]))


def _is_second_or_later(ascending: Keys) -> tuple[Bool[Array, "group mark"], Bool[Array, "group mark"]]:
    """Whether a key is the second of those equal to it, and whether a later one."""
    equal = ascending[:, 1:] == ascending[:, :-1]
    to_one = jnp.pad(equal, ((0, 0), (1, 0)))
    to_two = jnp.pad(equal[:, 1:] & equal[:, :-1], ((0, 0), (2, 0)))
    return to_one & ~to_two, to_two


def _sample(problem: Problem, integer: Any) -> tuple[Int[Array, "group sample"], np.ndarray]:
    """Keys at places all over each group in ascending order, filled up at the end; and how many there are."""
    groups = len(_totals(problem))
    each = max(_SAMPLE // groups, _SAMPLE_EACH)
    counts = np.minimum(problem.sizes, each * problem.sizes // _totals(problem)[problem.group] + 1)
    # As many as are looked up of ties, since what looks up so many is compiled once.
    length = int(max(counts.max(), *(own.row_widths.max() for own in problem.parts)))
    leaves, keys = partition.look_up(problem.parts, _places(problem.sizes, length))
    in_use = np.arange(length) < counts[leaves, None]
    owners = np.where(in_use, problem.group[leaves, None], groups).reshape(-1)
    place = np.argsort(owners, kind="stable")
    number = np.bincount(owners, minlength=groups + 1)[:groups]
    is_drawn = np.arange(number.max()) < number[:, None]
    table = np.zeros(is_drawn.shape, np.int64)
    table[is_drawn] = place[: number.sum()]
    drawn = jnp.where(is_drawn, partition.gathered(keys, table).astype(integer), jnp.iinfo(integer).max)
    return jnp.sort(drawn, axis=1), number.astype(np.float32)


def _places(sizes: Numbers, number: int) -> Int[Array, "leaf place"]:
    """Places that are spread over each leaf as the multiples of the golden ratio are over an interval.

    Computed, since a constant of that size takes long to compile.
    """
    fraction = lax.broadcasted_iota(jnp.uint32, (len(sizes), number), 1) * jnp.uint32(_GOLDEN)  # times 2**32
    size_high, size_low = (jnp.asarray(digit, jnp.uint32)[:, None] for digit in (sizes >> 16, sizes & 0xFFFF))
    high, low = fraction >> 16, fraction & jnp.uint32(0xFFFF)
    return (high * size_high + (high * size_low >> 16) + (low * size_high >> 16)).astype(jnp.int32)


def _window(bracket: Bracket, bend: Float[Array, " group"], problem: Problem) -> Keys:
    """Two marks around where the threshold is expected, or the whole bracket; the same twice if they hold too many."""
    share, deviation, inside = _expected(bracket, bend)
    liftable = jnp.asarray([[counting.liftable(int(size))] for size in _totals(problem)], jnp.float32)
    # Wide, where that is free: scores may not be spread as evenly as interpolation takes them to be.
    reach = jnp.maximum(4 * deviation, 0.35 * liftable / jnp.maximum(inside, 1))
    guesses = _inside(bracket, jnp.concatenate([share - reach, share + reach], axis=1), problem.dtype)
    ends = jnp.stack([bracket.low, bracket.high], axis=1)
    guesses = jnp.where(2 * reach * inside <= liftable, guesses, bracket.high[:, None])
    return _pinned(jnp.where(inside <= liftable, ends, guesses))


def _spaced_marks(
    bracket: Bracket, bend: Float[Array, " group"], problem: Problem, near: Sequence[float]
) -> Marks:
    """Keys that cut a wide bracket into equal parts; in another one, marks around where the threshold is expected.

    Interpolation says nothing where scores lie over many powers of two. A few more marks bound the number of passes.
    """
    share, deviation, inside = _expected(bracket, bend)
    even = np.arange(1, len(near) + 1, dtype=np.float32)[None, :] / (len(near) + 1)
    expected = share + jnp.array(near, jnp.float32)[None, :] * deviation
    shares = jnp.where(inside <= _FEW, even, expected)
    above_low = bracket.low[:, None] + 1
    mixed = jnp.concatenate([_inside(bracket, shares, problem.dtype), _even_keys(bracket, 2), above_low], axis=1)
    is_wide = _width(bracket) > 2 ** (jnp.finfo(problem.dtype).nmant - 1)
    keys = jnp.where(is_wide[:, None], _even_keys(bracket, 1 + mixed.shape[1]), mixed)
    return Marks(_pinned(keys), bracket.low + 1)


def _expected(bracket: Bracket, bend: Float[Array, " group"]) -> tuple[Array, Array, Array]:
    """How far from the low to the high end interpolation puts the threshold; the deviation; scores in between.

    Interpolates the values, not the keys, which crowd towards 0: above the zeros of what is pruned already, scores
    spread evenly over many powers of two. The deviation is that of an order statistic of evenly spread values.
    """
    over, under = (own.astype(jnp.float32)[:, None] for own in (bracket.over, bracket.under))
    inside = over + under
    share = over / jnp.maximum(inside, 1)
    return share + bend[:, None], (jnp.sqrt(inside * share * (1 - share)) + 1) / jnp.maximum(inside, 1), inside


def _even_marks(bracket: Bracket, bend: Float[Array, " group"], problem: Problem) -> Marks:
    """Values that cut the bracket into equal parts, the first just above `low`; and the middle key."""
    del bend
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
