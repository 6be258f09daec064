"""The threshold above which exactly so many scores lie, found by counting; only a small sample is ever sorted.

The threshold is bracketed between two integer keys (see `ordering.keys`). One pass over the scores counts how many lie
at or above each of a few marks. The next lifts out the scores of a narrow window in which the threshold is expected;
where it does lie there and the window holds few enough, it is found among those without touching the rest. A sample
gives the first marks, interpolation the window, so that two passes are the rule; where they were not enough, both
follow again. Some of the marks halve the bracket at the least, whatever the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune._arrays import wide
from jaxprune._arrays.wide import Wide
from jaxprune._selection import brackets, counting, marks, partition, spread
from jaxprune._selection.brackets import Bracket, Problem
from jaxprune._selection.marks import Marks
from jaxprune._selection.partition import Parts

State = TypeVar("State")

_LIFTED = 8  # so many parts are lifted from at most, which takes several times longer to compile


class Search(NamedTuple):
    """How far a search is, and where it counts next.

    Attributes:
      bracket: Of each group.
      by_row: For each bundle of parts, what was last counted in their rows: arrays `(part, number, row)`. Where ties
        close a bracket, that was at their key and the next one.
      marks: For each group.
    """

    bracket: Bracket
    by_row: list[Int[Array, "_ _ _"]]
    marks: Marks


def find(problem: Problem) -> tuple[Bracket, list[Int[Array, "_ _"]]]:
    """The threshold of each group.

    Returns:
      Brackets that are closed: either end holds exactly `keep` keys at or above it, or they are the same and the keys
      equal to it are ties. And for each bundle of parts, how many ties the rows of each hold, if its group has some.
    """
    start = brackets.everything(problem)
    # What is sampled or lifted out of leaves that are spread over devices would travel between them.
    is_spread = any(partition.is_spread(parts) for parts in problem.parts)
    lift = not is_spread and len(problem.parts) <= _LIFTED
    straight = jnp.zeros(len(start.low), jnp.float32)
    first = marks.spaced(start, straight, problem) if is_spread else marks.sampled(problem, start)
    return _searched(start, problem, first, marks.spaced, lift=lift)


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
    where = Marks(jnp.stack([bracket.low, bracket.low + 1], axis=1), bracket.low)
    found = [count.above for count, _ in _counts(problem, everywhere, where, _nothing(problem, where))]
    return wide.minus(problem.keep, _summed(problem, found).indexed(np.s_[:, 1]))


def _summed(problem: Problem, found: list[Int[Array, "_ mark"]]) -> Wide:
    digits = zip(*(wide.of(own) for own in found), strict=True)
    return wide.carried(*(partition.by_group(problem.parts, list(own), jax.ops.segment_sum) for own in digits))


def _lifted(bracket: Bracket, bend: Float[Array, " group"], problem: Problem) -> tuple[Bracket, Float[Array, " group"]]:
    """The bracket after one pass that lifts out a window: closed among what was lifted, or cut at the window's ends."""
    window = marks.window(bracket, bend, problem)
    wanted = brackets.is_open(bracket) & (window[:, 0] < window[:, 1])
    found = [parts.visit(counting.lift, wanted, window) for parts in problem.parts]
    excess = _excess(problem, [lift.above for lift in found])
    crowded = partition.by_group(problem.parts, [lift.crowded for lift in found], jax.ops.segment_max)
    narrowed = brackets.between(bracket, window, excess, wanted)
    complete = wanted & ~crowded & (narrowed.low >= window[:, 0]) & (narrowed.high <= window[:, 1])
    closed_already = narrowed._replace(over=jnp.zeros_like(narrowed.over))
    candidates = [partition.of_keys(lift.lifted, parts) for parts, lift in zip(problem.parts, found, strict=True)]
    # Of the candidates, as many are to stay as are missing above the window.
    among = problem._replace(parts=candidates, keep=jnp.where(complete, -excess[:, 1], 0))
    inner = brackets.where(complete, narrowed, closed_already)
    closed, _ = _searched(inner, among, marks.even(inner, among), lambda own, _, among: marks.even(own, among))
    # Ties are yet to be counted where they lie.
    closed = closed._replace(high=jnp.where(brackets.are_tied(closed), closed.low + 1, closed.high))
    found_out = brackets.where(wanted, brackets.where(complete, closed, narrowed), bracket)
    return found_out, jnp.where(wanted, 0, bend)


def _searched(
    bracket: Bracket,
    problem: Problem,
    first: Marks,
    marks_of: Callable[[Bracket, Float[Array, " group"], Problem], Marks],
    *,
    lift: bool = False,
) -> tuple[Bracket, list[Int[Array, "_ _"]]]:
    """The closed bracket, by counting at marks, at first at these; and by lifting out, in turn, if so asked.

    Where it is closed, another pass counts the ties. As a pass like the others it is compiled with them.
    """

    def narrow(state: Search) -> Search:
        state, own = looked_at_after(state, problem)
        bracket, by_row, bend = _counted(state, own)
        if lift:
            bracket, bend = _lifted(bracket, bend, own)
        return Search(bracket, by_row, marks.at_ties(bracket, marks_of(bracket, bend, own)))

    def unfinished(state: Search) -> Bool[Array, ""]:
        return spread.how_many(brackets.is_unfinished(state.bracket), (0,)) > 0

    found = lax.while_loop(unfinished, narrow, Search(bracket, _nothing(problem, first), first))
    return found.bracket, [(own[:, 0] - own[:, 1]).astype(jnp.int32) for own in found.by_row]


def _nothing(problem: Problem, where: Marks) -> list[Int[Array, "_ _ _"]]:
    """What is counted in the rows of each bundle before anything is."""
    return [
        jnp.zeros((len(bundle), where.keys.shape[1] + 1, counting.ROWS), where.keys.dtype)
        if partition.can_be_in_turn(bundle[0])
        else jnp.zeros((len(bundle[0].group), 2, 1), jnp.int32)
        for bundle in partition.bundled(problem.parts)
    ]


def _counts(
    problem: Problem, wanted: Bool[Array, " group"], where: Marks, before: list[Int[Array, "_ _ _"]]
) -> list[tuple[counting.Count, Int[Array, "_ _ _"]]]:
    """What one pass counts in each bundle of parts, and in their rows; for a group that is not wanted, anything.

    In rows of a large leaf that is not wanted, or of one that is spread, that is what was counted before. Rows that are
    parts themselves hold what was counted at the first two marks.
    """
    # In one array, of which each part has a row.
    asked = jnp.concatenate([where.keys, where.floor[:, None]], axis=1)

    def told(count: Callable[..., Any]) -> Callable[..., Any]:
        return lambda piece, own, absolute: count(piece, own[:-1], own[-1], absolute=absolute)

    def found(bundle: Sequence[Parts], before: Int[Array, "part number row"]) -> tuple[counting.Count, Array]:
        first, group = bundle[0], np.concatenate([own.group for own in bundle])
        if partition.can_be_in_turn(first):
            here, own = partition.picked(wanted, group), partition.picked(asked, group)
            by_row = partition.in_turn(bundle, told(counting.count_rows), here, before, own)
            return counting.added(by_row), by_row
        count = first.visit(told(counting.count), wanted, asked)
        by_row = count.above[:, :2, None]
        if partition.is_spread(first):
            by_row = jnp.where(partition.picked(wanted, group)[:, None, None], by_row, before)
        return count, by_row

    return [found(*own) for own in zip(partition.bundled(problem.parts), before, strict=True)]


def _counted(search: Search, problem: Problem) -> tuple[Bracket, list[Int[Array, "_ _ _"]], Float[Array, " group"]]:
    """The bracket, its rows and its bend after one pass that only counts, over the groups that are not finished."""
    bracket, before, where = search
    wanted, is_open = brackets.is_unfinished(bracket), brackets.is_open(bracket)
    counts, by_row = zip(*_counts(problem, wanted, where, before), strict=True)
    least = partition.by_group(problem.parts, [count.least for count in counts], jax.ops.segment_min)
    excess = _excess(problem, [count.above for count in counts])
    narrowed = brackets.between(bracket, where.keys, excess, is_open)
    beyond_gap = jnp.maximum(narrowed.low, jnp.minimum(least, narrowed.high - 1))
    low = jnp.where(is_open & (narrowed.low >= where.floor), beyond_gap, narrowed.low)
    # Once ties are counted, the ends are the same.
    narrowed = narrowed._replace(low=low, high=jnp.where(wanted & ~is_open, low, narrowed.high))
    return narrowed, list(by_row), marks.bend(narrowed, where.keys, excess, problem.dtype)
