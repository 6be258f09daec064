"""The threshold above which exactly so many scores lie, found by counting; only a small sample is ever sorted.

The threshold is bracketed between two integer keys (see `ordering.keys`). A sample gives the first probes; one pass
over the scores counts how many lie at or above each, and a second pass looks through a narrow window where
interpolation puts the threshold: it counts at both ends and lifts out the few scores between them, among which the
threshold is then found without touching the rest. Where the window misses, or holds too many scores, further passes
halve the bracket at the least, whatever the data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune import ordering, tree
from jaxprune.typing import Score

Keys: TypeAlias = Int[Array, "..."]
Probes: TypeAlias = Int[Array, "group probe"]

ROW = 2**12  # what is reduced to one number at the end
_SAMPLE = 2**14  # scores sampled over all groups
_SAMPLE_EACH = 2**8  # and at least so many in each
_BITS = 10
_PACKED = 3
_LARGEST = 2**_BITS - 1


class Problem(NamedTuple):
    """What to find a threshold in.

    Attributes:
      pieces: Vectors of scores, or of keys, all of one dtype.
      group: For each piece, the group that it belongs to; a group has one threshold.
      keep: For each group, how many of its scores are to stay.
      dtype: Of the scores.
    """

    pieces: list[Any]
    group: list[int]
    keep: Int[Array, " group"]
    dtype: Any


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
    bracket = _narrowed(start, _sampled_probes(problem, start), problem)
    bracket = lax.cond(_unfinished(bracket, problem.keep), lambda b: _sifted(b, problem), lambda b: b, bracket)
    return _searched(bracket, problem)


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


def _unfinished(bracket: Bracket, keep: Int[Array, " group"]) -> Bool[Array, ""]:
    exact = (bracket.above_low == keep) | (bracket.above_high == keep)
    return jnp.any(~exact & (bracket.low + 1 < bracket.high))


def _searched(bracket: Bracket, problem: Problem) -> Bracket:
    return lax.while_loop(
        lambda b: _unfinished(b, problem.keep), lambda b: _narrowed(b, _probes(b, problem), problem), bracket
    )


def _narrowed(bracket: Bracket, probes: Probes, problem: Problem) -> Bracket:
    """The bracket between the two neighbouring probes that hold the threshold: one pass.

    Where the low end comes to lie at the last probe, it moves on to the lowest key there is: after pruning, nothing
    lies between 0 and the last threshold, and interpolation would be lost in that gap.
    """
    limit = jnp.iinfo(probes.dtype).max
    totals = [jnp.zeros(probes.shape[1], jnp.int32)] * probes.shape[0]
    lowest = [jnp.array(limit, probes.dtype)] * probes.shape[0]
    for piece, g in zip(problem.pieces, problem.group, strict=True):
        counts, least = _count(piece, probes[g])
        totals[g] = totals[g] + counts
        lowest[g] = jnp.minimum(lowest[g], least)
    narrowed = _between(bracket, probes, jnp.stack(totals), problem.keep)
    moves = narrowed.low == probes[:, -1]
    return narrowed._replace(low=jnp.where(moves, jnp.stack(lowest), narrowed.low))


def _count(piece: Any, probes: Int[Array, " probe"]) -> tuple[Int[Array, " probe"], Int[Array, ""]]:
    """How many keys lie at or above each probe, and the lowest of those at or above the last."""
    limit = jnp.array(jnp.iinfo(probes.dtype).max, probes.dtype)

    def add(state: tuple[Array, ...], keys: Keys) -> tuple[Array, ...]:
        keys = keys.astype(probes.dtype)
        hits = [keys >= probe for probe in probes]
        counters = tuple(s + hit for s, hit in zip(state[:-1], _packed(hits), strict=True))
        return (*counters, jnp.minimum(state[-1], jnp.where(hits[-1], keys, limit)))

    empty = (*(jnp.int32(0),) * -(-probes.shape[0] // _PACKED), limit)
    *counters, least = _by_lanes(piece, add, empty)
    return jnp.stack(_sums(_unpacked(counters, probes.shape[0]))), jnp.min(least, initial=limit)


def _between(bracket: Bracket, probes: Probes, above: Probes, keep: Int[Array, " group"]) -> Bracket:
    lowest, highest = bracket.low[:, None], bracket.high[:, None]
    inside = (probes > lowest) & (probes < highest)
    raises, lowers = inside & (above >= keep[:, None]), inside & (above < keep[:, None])
    return Bracket(
        jnp.max(jnp.where(raises, probes, lowest), axis=1),
        jnp.min(jnp.where(lowers, probes, highest), axis=1),
        jnp.min(jnp.where(raises, above, bracket.above_low[:, None]), axis=1),
        jnp.max(jnp.where(lowers, above, bracket.above_high[:, None]), axis=1),
    )


def _sampled_probes(problem: Problem, start: Bracket) -> Probes:
    """Four sample quantiles up to three deviations around the threshold, and the keys right above the lower two.

    A value that many scores share, such as the 0 of what is pruned already, is thereby told from what lies above it.
    """
    pieces, group, keep, _ = problem
    sizes = _sizes(problem)
    each = max(_SAMPLE // len(sizes), _SAMPLE_EACH)
    rng = np.random.default_rng(0)
    samples = [[jnp.zeros(0, start.low.dtype)] for _ in sizes]
    for piece, g in zip(pieces, group, strict=True):
        index = rng.integers(0, piece.size, min(piece.size, each * piece.size // max(1, int(sizes[g])) + 1))
        samples[g].append(ordering.keys(piece[jnp.asarray(index, jnp.int32)]).astype(start.low.dtype))
    flat = [jnp.concatenate(sample) for sample in samples]
    drawn = np.array([sample.size for sample in flat], np.float32)
    largest = jnp.iinfo(start.low.dtype).max
    length = max(1, *(sample.size for sample in flat))
    padded = [jnp.pad(sample, (0, length - sample.size), constant_values=largest) for sample in flat]
    ascending = jnp.sort(jnp.stack(padded), axis=1)
    share = keep.astype(jnp.float32) / jnp.asarray(np.maximum(sizes, 1), jnp.float32)
    deviation = jnp.sqrt(drawn * share * (1 - share)) + 1
    offsets = jnp.array([-3.0, -0.6, 0.6, 3.0], jnp.float32)
    position = (drawn * (1 - share))[:, None] + offsets[None, :] * deviation[:, None]
    index = jnp.clip(position, 0, np.maximum(drawn - 1, 0)[:, None]).astype(jnp.int32)
    quantiles = _pinned(jnp.minimum(jnp.take_along_axis(ascending, index, axis=1), largest - 1))
    return jnp.concatenate([quantiles, quantiles[:, 1::-1] + 1], axis=1)


def _interpolated(bracket: Bracket, problem: Problem, deviations: tuple[float, ...]) -> Probes:
    """Keys so many standard deviations from where linear interpolation puts the threshold, inside the bracket.

    Interpolates the values, not the keys, which crowd towards 0: above the zeros of what is pruned already, scores
    spread evenly over many powers of two. The deviation is that of an order statistic of evenly spread values.
    """
    inside = (bracket.above_low - bracket.above_high).astype(jnp.float32)
    share = (bracket.above_low - problem.keep).astype(jnp.float32) / jnp.maximum(inside, 1)
    deviation = (jnp.sqrt(inside * share * (1 - share)) + 1) / jnp.maximum(inside, 1)
    around = share[:, None] + jnp.array(deviations, jnp.float32)[None, :] * deviation[:, None]
    around = jnp.clip(around, 0, 1).astype(tree.promote(problem.dtype, jnp.float32))
    low, high = (
        ordering.values(end, problem.dtype).astype(around.dtype)[:, None] for end in (bracket.low, bracket.high)
    )
    guesses = ordering.keys((low * (1 - around) + high * around).astype(problem.dtype)).astype(bracket.low.dtype)
    lowest, highest = bracket.low[:, None] + 1, jnp.maximum(bracket.high - 1, bracket.low + 1)[:, None]
    return _pinned(jnp.clip(guesses, lowest, highest))


def _pinned(probes: Probes) -> Probes:
    """The probes, in ascending order as they are, computed once.

    XLA may compute cheap values again for each of their uses, and round floats differently each time; then the keys
    counted would not be those remembered. It never computes a sort twice.
    """
    return jnp.sort(probes, axis=1)


def _probes(bracket: Bracket, problem: Problem) -> Probes:
    """Four probes around the interpolated threshold, the middle key, and the key above `low`.

    The middle bounds the number of passes for any data; the last is for many scores that share the value `low`.
    """
    # Unsigned, the extent of the bracket is right even where the signed difference overflows and wraps.
    unsigned = jnp.uint64 if bracket.low.dtype == jnp.int64 else jnp.uint32
    width = (bracket.high - bracket.low).astype(unsigned)
    middle = bracket.low + (width // 2).astype(bracket.low.dtype)
    around = _interpolated(bracket, problem, (-3.0, -0.8, 0.8, 3.0))
    return jnp.concatenate([around, middle[:, None], bracket.low[:, None] + 1], axis=1)


def _sifted(bracket: Bracket, problem: Problem) -> Bracket:
    """One pass that looks for the threshold in a window of the bracket, and lifts the window's scores out.

    Each lane remembers the lowest and the highest key that it saw in the window. Where no lane saw a third one, these
    are all the keys in the window, and searching them finds the threshold exactly; else the window's ends still narrow
    the bracket.
    """
    pieces, group, keep, dtype = problem
    window = _interpolated(bracket, problem, (-4.0, 4.0))
    totals = [jnp.zeros(2, jnp.int32)] * keep.shape[0]
    most = [jnp.int32(0)] * keep.shape[0]
    candidates, candidate_group = [], []
    for piece, g in zip(pieces, group, strict=True):
        counts, crowd, lifted = _lift(piece, window[g])
        totals[g] = totals[g] + counts
        most[g] = jnp.maximum(most[g], crowd)
        candidates.extend(lifted)
        candidate_group.extend([g] * len(lifted))
    narrowed = _between(bracket, window, jnp.stack(totals), keep)
    outside = narrowed.above_high
    complete = (jnp.stack(most) <= 2) & (narrowed.low == window[:, 0]) & (narrowed.high == window[:, 1])
    inner_keep = jnp.where(complete, keep - outside, 0)
    inner = narrowed._replace(above_low=narrowed.above_low - outside, above_high=jnp.zeros_like(outside))
    found = _searched(inner, Problem(candidates, candidate_group, inner_keep, dtype))
    found = found._replace(above_low=found.above_low + outside, above_high=found.above_high + outside)
    return Bracket(*(jnp.where(complete, new, old) for new, old in zip(found, narrowed, strict=True)))


def _lift(piece: Score, window: Int[Array, " 2"]) -> tuple[Int[Array, " 2"], Int[Array, ""], list[Keys]]:
    """Counts at the window's ends, the largest number of its keys in one lane, and the lanes' lowest and highest."""
    limits = jnp.iinfo(window.dtype)

    def add(state: tuple[Array, ...], keys: Keys) -> tuple[Array, ...]:
        counters, lowest, highest = state
        keys = keys.astype(window.dtype)
        above_low, above_high = keys >= window[0], keys >= window[1]
        inside = above_low & ~above_high
        return (
            counters + _packed([above_low, above_high])[0],
            jnp.minimum(lowest, jnp.where(inside, keys, limits.max)),
            jnp.maximum(highest, jnp.where(inside, keys, limits.min)),
        )

    empty = (jnp.int32(0), jnp.array(limits.max, window.dtype), jnp.array(limits.min, window.dtype))
    counters, lowest, highest = _by_lanes(piece, add, empty)
    above_low, above_high = _unpacked([counters], 2)
    number = above_low - above_high
    lifted = [
        jnp.where(number >= 1, lowest, jnp.array(limits.min, window.dtype)),
        jnp.where(number >= 2, highest, jnp.array(limits.min, window.dtype)),
    ]
    counts = jnp.stack(_sums([above_low, above_high]))
    return counts, jnp.max(number, initial=0), lifted


def count_equal(piece: Score, key: Int[Array, ""], start: Int[Array, ""], size: int) -> Int[Array, ""]:
    """How many of `size` scores from `start` have this key."""

    def add(state: tuple[Array, ...], keys: Keys) -> tuple[Array, ...]:
        return (state[0] + (keys == key).astype(jnp.int32),)

    return _sums(list(_by_lanes(piece, add, (jnp.int32(0),), start, size)))[0]


def _by_lanes(
    piece: Any,
    add: Callable[..., tuple[Array, ...]],
    empty: tuple[Array, ...],
    start: Int[Array, ""] | int = 0,
    size: int | None = None,
) -> tuple[Array, ...]:
    """Folds the keys of a vector, or of `size` entries from `start`, into accumulators side by side.

    Returns:
      The accumulators, one vector for each entry of `empty`.
    """
    size = int(piece.size) if size is None else size
    lanes = _lanes(size)
    whole, rest = divmod(size, lanes)

    def keys(index: Any, length: int) -> Keys:
        return ordering.keys(lax.dynamic_slice(piece, (start + index * lanes,), (length,)))

    state = tuple(jnp.full(lanes, value, value.dtype) for value in empty)
    state = lax.fori_loop(0, whole, lambda i, s: add(s, keys(i, lanes)), state) if whole else state
    if not rest:
        return state
    head = add(tuple(s[:rest] for s in state), keys(whole, rest))
    return tuple(jnp.concatenate([h, s[rest:]]) for h, s in zip(head, state, strict=True))


def _lanes(size: int) -> int:
    """How many accumulators: what a core's cache holds, but so many that no packed counter overflows."""
    lanes = int(np.clip(2 ** int(np.log2(max(size, 1) / 32)), ROW, 2**15))
    while size // lanes + 1 > _LARGEST:
        lanes *= 2
    return lanes


def _packed(hits: list[Bool[Array, "..."]]) -> list[Int[Array, "..."]]:
    """Ones for the hits, three counters of ten bits to the integer: adding to memory is what costs."""
    integers = list[Array]()
    for i in range(0, len(hits), _PACKED):
        ones = [
            jnp.where(hit, jnp.int32(1 << (_BITS * j)), jnp.int32(0)) for j, hit in enumerate(hits[i : i + _PACKED])
        ]
        integers.append(functools.reduce(jnp.add, ones))
    return integers


def _unpacked(counters: list[Int[Array, " lane"]], number: int) -> list[Int[Array, " lane"]]:
    """The counts in the order in which their hits were packed."""
    return [(counters[i // _PACKED] >> (_BITS * (i % _PACKED))) & _LARGEST for i in range(number)]


def _sums(vectors: list[Int[Array, " lane"]]) -> list[Int[Array, ""]]:
    """The sum of each vector.

    All in one reduction to a row first: a CPU adds vectors, but reduces integers to one number only slowly.
    """
    rows = tuple(vector.reshape(-1, ROW) for vector in vectors)
    zeros = (jnp.int32(0),) * len(rows)
    row = lax.reduce(rows, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), (0,))
    return [jnp.sum(r, dtype=jnp.int32) for r in row]
