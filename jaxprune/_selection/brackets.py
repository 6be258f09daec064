"""Where the threshold of each group of scores may lie, and how far a search has narrowed that down."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune._arrays import wide
from jaxprune._arrays.wide import Wide
from jaxprune._selection.partition import Numbers, Parts


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


def everything(problem: Problem) -> Bracket:
    """The brackets before anything is counted."""
    sizes = totals(problem)
    integer = jnp.int64 if problem.dtype.itemsize == 8 else jnp.int32
    low, high = jnp.iinfo(integer).min + 1, jnp.iinfo(integer).max  # below `low` is only what fills parts up
    if isinstance(problem.keep, Wide):
        over, under = wide.clipped(wide.minus(wide.of(sizes), problem.keep)), wide.clipped(problem.keep)
    else:
        over, under = jnp.asarray(sizes, jnp.int32) - problem.keep, problem.keep
    return Bracket(jnp.full(len(sizes), low, integer), jnp.full(len(sizes), high, integer), over, under)


def totals(problem: Problem) -> Numbers:
    """How many scores each group has."""
    return np.bincount(problem.group, problem.sizes).astype(np.int64)


def is_open(bracket: Bracket) -> Bool[Array, " group"]:
    """Whether the threshold is not known yet."""
    return (bracket.over > 0) & (bracket.under > 0) & (bracket.low + 1 < bracket.high)


def are_tied(bracket: Bracket) -> Bool[Array, " group"]:
    """Whether some, but not all, of the keys equal to the lower end of a closed bracket are to stay."""
    return (bracket.over > 0) & (bracket.under > 0) & (bracket.low + 1 >= bracket.high)


def is_unfinished(bracket: Bracket) -> Bool[Array, " group"]:
    """Whether the bracket is open, or its ties are yet to be counted."""
    return (bracket.over > 0) & (bracket.under > 0) & (bracket.low < bracket.high)


def where(condition: Bool[Array, " group"], first: Bracket, second: Bracket) -> Bracket:
    """The first bracket for groups that meet the condition, the second for others."""
    return Bracket(*(jnp.where(condition, a, b) for a, b in zip(first, second, strict=True)))


def between(
    bracket: Bracket,
    marks: Int[Array, "group mark"],
    excess: Int[Array, "group mark"],
    wanted: Bool[Array, " group"],
) -> Bracket:
    """The bracket between the two neighbouring marks that hold the threshold; as it was where not wanted.

    Args:
      bracket: Before the marks were counted.
      marks: Keys.
      excess: How many more scores lie at or above each mark than are to stay.
      wanted: The groups to look at.
    """
    lowest, highest = bracket.low[:, None], bracket.high[:, None]
    inside = (marks > lowest) & (marks < highest) & wanted[:, None]
    raises, lowers = inside & (excess >= 0), inside & (excess < 0)
    limits, most = jnp.iinfo(marks.dtype), jnp.int32(jnp.iinfo(jnp.int32).max)
    # All in one reduction: each is compiled for itself.
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
