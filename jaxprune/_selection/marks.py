"""Where a pass over scores counts: around where their threshold is expected.

At first a sample tells that, later interpolation between what was counted; some of the marks halve the bracket at the
least, whatever the data.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune._arrays import ordering, tree, wide
from jaxprune._selection import brackets, counting, partition, spread
from jaxprune._selection.brackets import Bracket, Problem
from jaxprune._selection.partition import Numbers

Keys: TypeAlias = Int[Array, "group mark"]

# How far from where the threshold is expected a pass counts, in deviations: the first, by a sample, and others.
_SAMPLED = (-3, -1.2, -0.4, 0.4, 1.2, 3)
_NEAR = (-1.6, -0.5, 0.5, 1.6)
_SAMPLE = 2**13  # scores sampled over all groups
_SAMPLE_EACH = 2**9  # and at least so many in each
_MOST_BENT = 0.1  # of a bracket
_NEXT = 2  # how many samples are passed over behind a gap
_FEW = 32  # scores in a bracket, the spread of which says little
_NEAREST = (jnp.maximum, jnp.minimum, jnp.minimum, jnp.maximum)
_GOLDEN = 0x9E3779B9  # the fraction of the golden ratio, times 2**32
_EVEN = np.arange(8, dtype=np.float32) / 8


class Marks(NamedTuple):
    """Where a pass counts.

    Attributes:
      keys: For each group, counted at or above.
      floor: For each group, the key at or above which the least is looked for. Above what very many scores share, there
        may be nothing for long; interpolation must not look there.
    """

    keys: Keys
    floor: Int[Array, " group"]


def sampled(problem: Problem, start: Bracket) -> Marks:
    """Sample quantiles up to three deviations around the threshold.

    A value that several of them share, such as the 0 of what is pruned already, is told from what lies above it: first
    a gap, then the next few scores.
    """
    ascending, drawn = _sample(problem, start.low.dtype)
    share = wide.floating(problem.keep) / jnp.asarray(brackets.totals(problem), jnp.float32)
    deviation = jnp.sqrt(drawn * share * (1 - share)) + 1
    expected = jnp.asarray(drawn) * (1 - share)
    position = expected[:, None] + jnp.array(_SAMPLED, jnp.float32)[None, :] * deviation[:, None]

    def at(position: Int[Array, "group mark"]) -> Keys:
        index = jnp.clip(position, 0, np.maximum(drawn.astype(np.int32) - 1, 0)[:, None])
        return jnp.minimum(jnp.take_along_axis(ascending, index, axis=1), jnp.iinfo(ascending.dtype).max - 1)

    quantiles = at(position.astype(jnp.int32))
    following = at(spread.how_many(ascending[:, None, :] <= quantiles[:, :, None], (2,)) + _NEXT)
    is_before = (quantiles[:, None, :] == quantiles[:, :, None]) & np.tri(len(_SAMPLED), k=-1, dtype=bool)[None]
    before = jnp.sum(is_before, axis=2, dtype=jnp.int32)  # how many quantiles before it are equal to each
    marks = jnp.where(before == 0, quantiles, jnp.where(before == 1, quantiles + 1, following))
    after_two = (before[:, 1:] == 0) & (before[:, :-1] == 1)
    marks = jnp.concatenate([marks[:, :1], jnp.where(after_two, following[:, :-1], marks[:, 1:])], axis=1)
    top = jnp.array(jnp.iinfo(marks.dtype).max, marks.dtype)
    above_shared = jnp.min(jnp.where(before == 1, quantiles + 1, top), axis=1)
    return Marks(_pinned(marks), jnp.where(above_shared < top, above_shared, marks[:, 0]))


def _sample(problem: Problem, integer: Any) -> tuple[Int[Array, "group sample"], np.ndarray]:
    """Keys at places all over each group in ascending order, filled up at the end; and how many there are."""
    groups = len(brackets.totals(problem))
    each = max(_SAMPLE // groups, _SAMPLE_EACH)
    counts = np.minimum(problem.sizes, each * problem.sizes // brackets.totals(problem)[problem.group] + 1)
    # As many as are looked up of ties, unless those are very many: what looks up so many is compiled once.
    length = int(max(counts.max(), *(own.row_widths.max() for own in problem.parts)))
    length = length if length <= partition.MANY else int(counts.max())
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


def window(bracket: Bracket, bend: Float[Array, " group"], problem: Problem) -> Keys:
    """Two marks around where the threshold is expected, or the whole bracket; the same twice if they hold too many."""
    share, deviation, inside = _expected(bracket, bend)
    liftable = jnp.asarray([[counting.liftable(int(size))] for size in brackets.totals(problem)], jnp.float32)
    # Wide, where that is free: scores may not be spread as evenly as interpolation takes them to be.
    reach = jnp.maximum(4 * deviation, 0.35 * liftable / jnp.maximum(inside, 1))
    guesses = _inside(bracket, jnp.concatenate([share - reach, share + reach], axis=1), problem.dtype)
    ends = jnp.stack([bracket.low, bracket.high], axis=1)
    guesses = jnp.where(2 * reach * inside <= liftable, guesses, bracket.high[:, None])
    return _pinned(jnp.where(inside <= liftable, ends, guesses))


def spaced(bracket: Bracket, bend: Float[Array, " group"], problem: Problem) -> Marks:
    """Keys that cut a wide bracket into equal parts; in another one, marks around where the threshold is expected.

    Interpolation says nothing where scores lie over many powers of two. A few more marks bound the number of passes.
    """
    share, deviation, inside = _expected(bracket, bend)
    even = np.arange(1, len(_NEAR) + 1, dtype=np.float32)[None, :] / (len(_NEAR) + 1)
    expected = share + jnp.array(_NEAR, jnp.float32)[None, :] * deviation
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


def even(bracket: Bracket, problem: Problem) -> Marks:
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


def at_ties(bracket: Bracket, marks: Marks) -> Marks:
    """The marks, or where there are ties, such that the first two marks hold them."""
    at = bracket.low[:, None] + np.minimum(np.arange(marks.keys.shape[1]), 1).astype(bracket.low.dtype)[None]
    tied = brackets.are_tied(bracket)
    return Marks(jnp.where(tied[:, None], at, marks.keys), jnp.where(tied, at[:, 1], marks.floor))


def bend(bracket: Bracket, marks: Keys, excess: Int[Array, "group mark"], dtype: Any) -> Float[Array, " group"]:
    """How far above linear interpolation the threshold is expected, as a share of the bracket.

    That is where the cubic through both ends and a mark on either side of them has it; or the parabola, if there is a
    mark on one side only.

    Args:
      bracket: Between two of the marks.
      marks: Keys.
      excess: How many more scores lie at or above each mark than are to stay.
      dtype: Of the scores.
    """
    keys, counts = jnp.iinfo(marks.dtype), jnp.iinfo(jnp.int32)
    below, above = marks < bracket.low[:, None], marks > bracket.high[:, None]
    bottom, top = jnp.array(keys.min, marks.dtype), jnp.array(keys.max, marks.dtype)
    most, least = jnp.int32(counts.max), jnp.int32(counts.min)
    # The marks that are nearest to the bracket, and their excess.
    lower, more, higher, fewer = lax.reduce(
        (
            jnp.where(below, marks, bottom),
            jnp.where(below, excess, most),
            jnp.where(above, marks, top),
            jnp.where(above, excess, least),
        ),
        (bottom, most, top, least),
        lambda x, y: tuple(pick(*own) for pick, own in zip(_NEAREST, zip(x, y, strict=True), strict=True)),
        (1,),
    )
    keys_at = lower, bracket.low, bracket.high, higher
    lower, low, high, higher = (ordering.values(own, dtype).astype(jnp.float32) for own in keys_at)
    more, over, under, fewer = (own.astype(jnp.float32) for own in (more, bracket.over, bracket.under, -fewer))
    # In values per score, and that per score once more.
    slope = (high - low) / (over + under)
    from_below = (slope - (low - lower) / (more - over)) / (more + under)
    from_above = ((higher - high) / (fewer - under) - slope) / (over + fewer)
    is_below, is_above = jnp.any(below, axis=1) & (more > over), jnp.any(above, axis=1) & (fewer > under)
    share = jnp.where(is_below & is_above, fewer / (more + fewer), jnp.where(is_below, 1, 0))
    curvature = jnp.where(is_below, share * from_below, 0) + jnp.where(is_above, (1 - share) * from_above, 0)
    found = -over * under * curvature / (high - low)
    return jnp.where(jnp.isfinite(found), jnp.clip(found, -_MOST_BENT, _MOST_BENT), 0)
