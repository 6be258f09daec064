"""The threshold above which exactly so many scores lie, found by counting; only a small sample is ever sorted.

The threshold is bracketed between two integer keys (see `ordering.keys`). A pass over the scores counts how many lie at
or above each of a few marks, and lifts out the scores of a narrow window in which it is expected; where it does lie
there and the window holds few enough, it is found among those without touching the rest. A sample gives the marks of
the first pass, interpolation those of the next, so that two passes are the rule. One mark halves the bracket at the
least, whatever the data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune import counting, meshes, ordering, tree

Marks: TypeAlias = Int[Array, "group mark"]

_SAMPLE = 2**13  # scores sampled over all groups
_SAMPLE_EACH = 2**8  # and at least so many in each
_OFFSETS = np.array([-4, -2, -0.7, 0.7, 2, 4], np.float32)  # in standard deviations
_EVEN = np.arange(16, dtype=np.float32) / 16


class Problem(NamedTuple):
    """What to find a threshold in.

    Attributes:
      pieces: Arrays of scores, or of keys, all of one dtype, none of them empty.
      group: For each piece, the group that it belongs to; a group has one threshold.
      keep: For each group, how many of its scores are to stay.
      dtype: Of the scores.
      absolute: Whether scores rank by absolute value, which is then taken whenever they are looked at: writing it to
        memory for the passes that follow would cost as much as one more of them.
    """

    pieces: list[Any]
    group: list[int]
    keep: Int[Array, " group"]
    dtype: Any
    absolute: bool = False


class Bracket(NamedTuple):
    """For each group: count(key >= low) = above_low >= keep and count(key >= high) = above_high <= keep."""

    low: Int[Array, " group"]
    high: Int[Array, " group"]
    above_low: Int[Array, " group"]
    above_high: Int[Array, " group"]


def find(problem: Problem) -> Bracket:
    """The threshold of each group.

    Returns:
      Brackets that are closed: either end holds exactly `keep` keys at or above it, or the ends are neighbours and the
      keys equal to the lower one are ties.
    """
    start = _everything(problem)
    if any(meshes.is_spread(piece) for piece in problem.pieces):
        return _searched(start, problem, _marks)  # what is sampled or lifted out would travel between devices
    bracket = _counted(start, _sampled_marks(problem, start), problem)

    def narrow(bracket: Bracket) -> Bracket:
        # The barrier keeps XLA from computing the keys before the loop, which would write them all to memory.
        bracket, pieces = lax.optimization_barrier((bracket, problem.pieces))
        return _narrowed(bracket, problem._replace(pieces=pieces))

    return lax.while_loop(lambda bracket: jnp.any(_is_open(bracket, problem.keep)), narrow, bracket)


def _everything(problem: Problem) -> Bracket:
    groups = problem.keep.shape[0]
    integer = jnp.int64 if problem.dtype.itemsize == 8 else jnp.int32
    low, high = jnp.iinfo(integer).min, jnp.iinfo(integer).max
    return Bracket(
        jnp.full(groups, low, integer),
        jnp.full(groups, high, integer),
        jnp.asarray(_sizes(problem), jnp.int32),
        jnp.zeros(groups, jnp.int32),
    )


def _sizes(problem: Problem) -> np.ndarray:
    return np.bincount(problem.group, [piece.size for piece in problem.pieces], problem.keep.shape[0])


def _is_open(bracket: Bracket, keep: Int[Array, " group"]) -> Bool[Array, " group"]:
    exact = (bracket.above_low == keep) | (bracket.above_high == keep)
    return ~exact & (bracket.low + 1 < bracket.high)


def _narrowed(bracket: Bracket, problem: Problem) -> Bracket:
    """The bracket after one pass: between the two marks around the threshold, or closed among what was lifted."""
    pieces, group, keep, dtype, absolute = problem
    marks = _marks(bracket, problem)
    above = [jnp.zeros(marks.shape[1], jnp.int32)] * keep.shape[0]
    least = [jnp.array(jnp.iinfo(marks.dtype).max, marks.dtype)] * keep.shape[0]
    crowd = [jnp.int32(0)] * keep.shape[0]
    candidates, candidate_group = list[Any](), list[int]()
    is_open, tally_of = _is_open(bracket, keep), functools.partial(counting.tally, absolute=absolute)
    for piece, g in zip(pieces, group, strict=True):
        tally = lax.cond(is_open[g], tally_of, counting.no_tally, piece, marks[g])
        above[g] = above[g] + tally.above
        least[g] = jnp.minimum(least[g], tally.least)
        crowd[g] = jnp.maximum(crowd[g], tally.crowd)
        candidates.extend(tally.lifted)
        candidate_group.extend([g] * len(tally.lifted))
    counts = jnp.stack(above)
    narrowed = _between(bracket, marks, counts, keep)
    # Nothing lies between the old low end and the least key above it: interpolation must not look there.
    beyond_gap = jnp.maximum(narrowed.low, jnp.minimum(jnp.stack(least), narrowed.high - 1))
    narrowed = narrowed._replace(low=jnp.where(narrowed.low > bracket.low, beyond_gap, narrowed.low))
    complete = (jnp.stack(crowd) <= 2) & (narrowed.low >= marks[:, 0]) & (narrowed.high <= marks[:, 1])
    # Above the window there are `beyond` scores more than among the candidates.
    beyond = jnp.where(complete, counts[:, 1], 0)
    inner = Bracket(
        narrowed.low,
        narrowed.high,
        jnp.where(complete, narrowed.above_low - beyond, 0),
        jnp.where(complete, narrowed.above_high - beyond, 0),
    )
    inner_keep = jnp.where(complete, keep - beyond, 0)
    found = _searched(inner, Problem(candidates, candidate_group, inner_keep, dtype), _even_marks)
    found = found._replace(above_low=found.above_low + beyond, above_high=found.above_high + beyond)
    return _where(is_open, _where(complete, found, narrowed), bracket)


def _where(condition: Bool[Array, " group"], first: Bracket, second: Bracket) -> Bracket:
    return Bracket(*(jnp.where(condition, a, b) for a, b in zip(first, second, strict=True)))


def _searched(
    bracket: Bracket, problem: Problem, marks_of: Callable[[Bracket, Problem], Int[Array, "group mark"]]
) -> Bracket:
    """The closed bracket, by counting alone."""

    def narrow(bracket: Bracket) -> Bracket:
        return _counted(bracket, marks_of(bracket, problem), problem)

    return lax.while_loop(lambda bracket: jnp.any(_is_open(bracket, problem.keep)), narrow, bracket)


def _counted(bracket: Bracket, marks: Marks, problem: Problem) -> Bracket:
    """The bracket after one pass that only counts, over the groups that are open."""
    is_open = _is_open(bracket, problem.keep)
    none = jnp.zeros(marks.shape[1], jnp.int32)
    count = functools.partial(counting.count, absolute=problem.absolute)
    counts = [none] * marks.shape[0]
    for piece, g in zip(problem.pieces, problem.group, strict=True):
        counts[g] = counts[g] + lax.cond(is_open[g], count, lambda *_: none, piece, marks[g])
    return _where(is_open, _between(bracket, marks, jnp.stack(counts), problem.keep), bracket)


def _between(bracket: Bracket, marks: Marks, above: Marks, keep: Int[Array, " group"]) -> Bracket:
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
    """Sample quantiles up to three deviations around the threshold.

    A value that several of them share, such as the 0 of what is pruned already, is told from what lies above it: first
    a gap, then the next score.
    """
    ascending, drawn = _sample(problem, start.low.dtype)
    sizes = np.maximum(_sizes(problem), 1)
    share = problem.keep.astype(jnp.float32) / jnp.asarray(sizes, jnp.float32)
    deviation = jnp.sqrt(drawn * share * (1 - share)) + 1
    position = (jnp.asarray(drawn) * (1 - share))[:, None] + jnp.array(_OFFSETS)[None, :] * deviation[:, None]

    def at(position: Int[Array, "group mark"]) -> Marks:
        index = jnp.clip(position, 0, np.maximum(drawn.astype(np.int32) - 1, 0)[:, None])
        return jnp.minimum(jnp.take_along_axis(ascending, index, axis=1), jnp.iinfo(ascending.dtype).max - 1)

    quantiles = at(position.astype(jnp.int32))
    following = at(_number(ascending[:, None, :] <= quantiles[:, :, None]))
    before = np.arange(len(_OFFSETS), dtype=np.int32)[None, :] - _number(quantiles[:, None, :] < quantiles[:, :, None])
    marks = jnp.where(before == 0, quantiles, jnp.where(before == 1, quantiles + 1, following))
    after_two = (before[:, 1:] == 0) & (before[:, :-1] == 1)
    return _pinned(jnp.concatenate([marks[:, :1], jnp.where(after_two, following[:, :-1], marks[:, 1:])], axis=1))


def _number(hits: Bool[Array, "group mark sample"]) -> Int[Array, "group mark"]:
    return jnp.sum(hits, axis=2, dtype=jnp.int32)


def _sample(problem: Problem, integer: Any) -> tuple[Int[Array, "group sample"], np.ndarray]:
    """Keys at random places of each group in ascending order, filled up at the end; and how many there are."""
    sizes = _sizes(problem)
    each = max(_SAMPLE // len(sizes), _SAMPLE_EACH)
    rng = np.random.default_rng(0)
    samples = [[jnp.zeros(0, integer)] for _ in sizes]
    for piece, g in zip(problem.pieces, problem.group, strict=True):
        index = rng.integers(0, piece.size, min(piece.size, each * piece.size // max(1, int(sizes[g])) + 1))
        drawn = piece.reshape(-1)[jnp.asarray(index, jnp.int32)]
        samples[g].append(ordering.keys(drawn, problem.absolute).astype(integer))
    flat = [jnp.concatenate(sample) for sample in samples]
    length = max(1, *(sample.size for sample in flat))
    largest = jnp.iinfo(integer).max
    padded = [jnp.pad(sample, (0, length - sample.size), constant_values=largest) for sample in flat]
    return jnp.sort(jnp.stack(padded), axis=1), np.array([sample.size for sample in flat], np.float32)


def _marks(bracket: Bracket, problem: Problem) -> Marks:
    """A window around where linear interpolation puts the threshold, or the whole bracket if it holds few; and others.

    Interpolates the values, not the keys, which crowd towards 0: above the zeros of what is pruned already, scores
    spread evenly over many powers of two. The deviation is that of an order statistic of evenly spread values. Of the
    other marks, the middle key bounds the number of passes for any data, and the key above `low` is for many scores
    that share the value `low`.
    """
    inside = (bracket.above_low - bracket.above_high).astype(jnp.float32)
    share = (bracket.above_low - problem.keep).astype(jnp.float32) / jnp.maximum(inside, 1)
    deviation = (jnp.sqrt(inside * share * (1 - share)) + 1) / jnp.maximum(inside, 1)
    around = share[:, None] + jnp.array([-4.0, 4.0, -16.0, 16.0], jnp.float32)[None, :] * deviation[:, None]
    guesses = _inside(bracket, around, problem.dtype)
    few = (inside <= jnp.asarray([counting.liftable(int(size)) for size in _sizes(problem)], jnp.float32))[:, None]
    ends = jnp.stack([bracket.low, bracket.high], axis=1)
    others = jnp.concatenate([guesses[:, 2:], _middle(bracket), bracket.low[:, None] + 1], axis=1)
    return jnp.concatenate([_pinned(jnp.where(few, ends, guesses[:, :2])), _pinned(others)], axis=1)


def _even_marks(bracket: Bracket, problem: Problem) -> Marks:
    """Values that cut the bracket into equal parts, the first just above `low`; and the middle key, as in `_marks`."""
    shares = jnp.broadcast_to(jnp.array(_EVEN), (bracket.low.shape[0], len(_EVEN)))
    return _pinned(jnp.concatenate([_inside(bracket, shares, problem.dtype), _middle(bracket)], axis=1))


def _middle(bracket: Bracket) -> Marks:
    # Unsigned, the extent of the bracket is right even where the signed difference overflows and wraps.
    unsigned = jnp.uint64 if bracket.low.dtype == jnp.int64 else jnp.uint32
    width = (bracket.high - bracket.low).astype(unsigned)
    return (bracket.low + (width // 2).astype(bracket.low.dtype))[:, None]


def _inside(bracket: Bracket, share: Array, dtype: Any) -> Marks:
    """The keys of values so far from the low to the high end of the bracket."""
    share = jnp.clip(share, 0, 1).astype(tree.promote(dtype, jnp.float32))
    low, high = (ordering.values(end, dtype).astype(share.dtype)[:, None] for end in (bracket.low, bracket.high))
    keys = ordering.keys((low * (1 - share) + high * share).astype(dtype)).astype(bracket.low.dtype)
    return jnp.clip(keys, bracket.low[:, None] + 1, jnp.maximum(bracket.high - 1, bracket.low + 1)[:, None])


def _pinned(marks: Marks) -> Marks:
    """The marks in ascending order, computed once.

    XLA may compute cheap values again for each of their uses, and round floats differently each time; then the keys
    counted would not be those remembered. It never computes a sort twice.
    """
    return jnp.sort(marks, axis=1)
