"""Exact selection of the highest scores by counting; only a small sample is ever sorted.

The threshold is bracketed between two integer keys (see `ordering.keys`). A sample gives the first probes; one pass
over the scores counts how many lie at or above each, and a second pass looks through a narrow window where
interpolation puts the threshold: it counts at both ends and lifts out the few scores between them, among which the
threshold is then found without touching the rest. Where the window misses, or holds too many scores, further passes
halve the bracket at the least, whatever the data. Ties at the threshold go to the lowest index, found by counting in
ever smaller parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune import ordering, patterns, tree
from jaxprune.typing import Counts, Mask, Masks, Score, Scores

Keys: TypeAlias = Int[Array, "..."]
Probes: TypeAlias = Int[Array, "group probe"]

_SAMPLE = 2**14  # scores sampled over all groups
_SAMPLE_EACH = 2**8  # and at least so many in each
_ROW = 2**12
_BLOCKS = 32


def select(scores: Scores, keep: Counts, *, pattern: Any = patterns.Unstructured()) -> Masks:
    """Keeps the highest scores, exactly as many as asked.

    Ties go to the lowest flat index. NaN is pruned first. The counts may be traced: changing them does not recompile.

    Args:
      scores: Floating arrays; `None` leaves stay dense.
      keep: For each leaf how many groups of the pattern to keep, from 0 to all of them; or one number for all leaves
        together, which then compete with each other. Ignored by a pattern that fixes its sparsity.
      pattern: What is removed together.

    Returns:
      Masks with the structure of `scores`.

    Raises:
      ValueError: A count is out of range, a leaf does not fit the pattern, or the structures differ.
      TypeError: Scores are not floating.

    Example:
      >>> scores = {"a": jnp.array([[3.0, 1.0], [2.0, 2.0]])}
      >>> print(select(scores, {"a": 2})["a"])
      [[ True False]
       [ True False]]
    """
    jointly = isinstance(keep, int | np.integer) or (tree.is_array(keep) and keep.ndim == 0)
    if jointly:
        rows, treedef = tree.flatten(scores)
        counts = [keep]
    else:
        rows, treedef = tree.flatten(scores, keep, names=("counts",))
        counts = [row[2] for row in rows]
    if not rows:
        return scores
    leaf_patterns = patterns.by_leaf(pattern, scores)
    if all(hasattr(leaf_pattern, "choose") for leaf_pattern in leaf_patterns):
        return treedef.unflatten([fitting(p.choose, *row[:2]) for p, row in zip(leaf_patterns, rows, strict=True)])
    pooled = tuple(fitting(p.pool, *row[:2]) for p, row in zip(leaf_patterns, rows, strict=True))
    names = ["all leaves"] if jointly else [f"'{row[0]}'" for row in rows]
    sizes = [sum(leaf.size for leaf in pooled)] if jointly else [leaf.size for leaf in pooled]
    checked = jnp.stack([_checked_count(*args) for args in zip(names, counts, sizes, strict=True)])
    kept = _select(pooled, checked, jointly=jointly)
    expanded = [p.expand(k, row[1].shape) for p, k, row in zip(leaf_patterns, kept, rows, strict=True)]
    return treedef.unflatten(expanded)


def counts_of_highest(scores: Scores, total: Any, *, pattern: Any = patterns.Unstructured()) -> Counts:
    """How many groups each leaf keeps when the `total` highest of all leaves stay.

    Args:
      scores: As for `select`.
      total: How many groups stay in all; may be traced.
      pattern: Defines the groups; its scores compete after pooling.

    Returns:
      int32 scalars with the structure of `scores`.
    """
    rows, treedef = tree.flatten(scores)
    pooled = tuple(fitting(p.pool, *row[:2]) for p, row in zip(patterns.by_leaf(pattern, scores), rows, strict=True))
    kept = _select(pooled, _checked_count("all leaves", total, sum(p.size for p in pooled))[None], jointly=True)
    return treedef.unflatten([jnp.sum(mask, dtype=jnp.int32) for mask in kept])


def fitting(method: Callable[[Any], Any], path: str, score: Any, *, abstract: bool = False) -> Any:
    """Applies a pattern's method to a leaf's scores, or only finds the result's shape.

    Raises:
      ValueError: The leaf does not fit the pattern; the message names the path.
      TypeError: The scores are not floating.
    """
    tree.check_floating(path, score)
    try:
        return jax.eval_shape(method, score) if abstract else method(score)
    except ValueError as error:
        raise ValueError(f"{error}; '{path}' has shape {score.shape}. Leave it out with `where=`.") from error


def _checked_count(name: str, count: Any, size: int) -> Int[Array, ""]:
    if size >= 2**31:
        raise ValueError(f"{name} has {size} groups; selection counts in 32 bits, up to {2**31 - 1}. Split the tree.")
    if isinstance(count, jax.Array):
        return jnp.clip(count.astype(jnp.int32), 0, size)
    if count is None or not 0 <= count <= size:
        raise ValueError(f"The keep-count of {name} must be an integer from 0 to {size}; got {count}.")
    return jnp.int32(count)


class _Bracket(NamedTuple):
    """For each group: count(key >= low) = above_low >= keep and count(key >= high) = above_high <= keep."""

    low: Int[Array, " group"]
    high: Int[Array, " group"]
    above_low: Int[Array, " group"]
    above_high: Int[Array, " group"]


@functools.partial(jax.jit, static_argnames="jointly")
def _select(scores: tuple[Score, ...], keep: Int[Array, " group"], *, jointly: bool) -> tuple[Mask, ...]:
    """Masks of the scores themselves; one group for all leaves or one for each."""
    group = [0 if jointly else i for i in range(len(scores))]
    pieces = [score.reshape(-1) for score in scores]
    bracket = _threshold(pieces, group, keep)
    masks = _masks(pieces, group, keep, bracket)
    return tuple(mask.reshape(score.shape) for mask, score in zip(masks, scores, strict=True))


def _threshold(pieces: list[Score], group: list[int], keep: Int[Array, " group"]) -> _Bracket:
    start = _everything(pieces, group, keep)
    bracket = _narrowed(start, _sampled_probes(pieces, group, start, keep), pieces, group, keep)
    bracket = lax.cond(_unfinished(bracket, keep), lambda b: _sifted(b, pieces, group, keep), lambda b: b, bracket)
    return _searched(bracket, pieces, group, keep)


def _everything(pieces: list[Any], group: list[int], keep: Int[Array, " group"]) -> _Bracket:
    groups = keep.shape[0]
    sizes = np.bincount(group, [piece.size for piece in pieces], groups).astype(np.int32)
    integer = jnp.int64 if any(piece.dtype.itemsize == 8 for piece in pieces) else jnp.int32
    low, high = jnp.iinfo(integer).min, jnp.iinfo(integer).max
    return _Bracket(
        jnp.full(groups, low, integer),
        jnp.full(groups, high, integer),
        jnp.asarray(sizes),
        jnp.zeros(groups, jnp.int32),
    )


def _unfinished(bracket: _Bracket, keep: Int[Array, " group"]) -> Bool[Array, ""]:
    exact = (bracket.above_low == keep) | (bracket.above_high == keep)
    return jnp.any(~exact & (bracket.low + 1 < bracket.high))


def _searched(bracket: _Bracket, pieces: list[Any], group: list[int], keep: Int[Array, " group"]) -> _Bracket:
    return lax.while_loop(
        lambda b: _unfinished(b, keep), lambda b: _narrowed(b, _probes(b, keep), pieces, group, keep), bracket
    )


def _narrowed(
    bracket: _Bracket, probes: Probes, pieces: list[Any], group: list[int], keep: Int[Array, " group"]
) -> _Bracket:
    """The bracket between the two neighbouring probes that hold the threshold: one pass."""
    totals = [jnp.zeros(probes.shape[1], jnp.int32)] * probes.shape[0]
    for piece, g in zip(pieces, group, strict=True):
        totals[g] = totals[g] + _count(piece, probes[g])
    return _between(bracket, probes, jnp.stack(totals), keep)


def _between(bracket: _Bracket, probes: Probes, above: Probes, keep: Int[Array, " group"]) -> _Bracket:
    lowest, highest = bracket.low[:, None], bracket.high[:, None]
    inside = (probes > lowest) & (probes < highest)
    raises, lowers = inside & (above >= keep[:, None]), inside & (above < keep[:, None])
    return _Bracket(
        jnp.max(jnp.where(raises, probes, lowest), axis=1),
        jnp.min(jnp.where(lowers, probes, highest), axis=1),
        jnp.min(jnp.where(raises, above, bracket.above_low[:, None]), axis=1),
        jnp.max(jnp.where(lowers, above, bracket.above_high[:, None]), axis=1),
    )


def _sampled_probes(pieces: list[Score], group: list[int], start: _Bracket, keep: Int[Array, " group"]) -> Probes:
    """Four sample quantiles up to three deviations around the threshold, and the keys right above two of them.

    A value that many scores share, such as the 0 of what is pruned already, is thereby told from its neighbours.
    """
    sizes = np.bincount(group, [piece.size for piece in pieces], keep.shape[0])
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
    quantiles = jnp.minimum(jnp.take_along_axis(ascending, index, axis=1), largest - 1)
    return jnp.concatenate([quantiles, quantiles[:, 1:3] + 1], axis=1)


def _interpolated(bracket: _Bracket, keep: Int[Array, " group"], deviations: tuple[float, ...]) -> Probes:
    """Keys so many standard deviations from where linear interpolation puts the threshold, inside the bracket.

    The deviation is that of an order statistic if the keys in the bracket were drawn uniformly.
    """
    inside = (bracket.above_low - bracket.above_high).astype(jnp.float32)
    share = (bracket.above_low - keep).astype(jnp.float32) / jnp.maximum(inside, 1)
    deviation = (jnp.sqrt(inside * share * (1 - share)) + 1) / jnp.maximum(inside, 1)
    around = share[:, None] + jnp.array(deviations, jnp.float32)[None, :] * deviation[:, None]
    width = _width(bracket)
    steps = (jnp.clip(around, 0, 0.999) * width.astype(jnp.float32)[:, None]).astype(width.dtype)
    steps = jnp.clip(steps, 1, jnp.maximum(width, 2)[:, None] - 1)
    return bracket.low[:, None] + steps.astype(bracket.low.dtype)


def _width(bracket: _Bracket) -> Array:
    """The extent of the bracket, unsigned: right even where the signed difference overflows and wraps."""
    unsigned = jnp.uint64 if bracket.low.dtype == jnp.int64 else jnp.uint32
    return (bracket.high - bracket.low).astype(unsigned)


def _probes(bracket: _Bracket, keep: Int[Array, " group"]) -> Probes:
    """Four probes around the interpolated threshold, the middle, and the key above `low`.

    The middle bounds the number of passes for any data; the last is for many scores that share the value `low`.
    """
    middle = bracket.low + (_width(bracket) // 2).astype(bracket.low.dtype)
    around = _interpolated(bracket, keep, (-3.0, -0.8, 0.8, 3.0))
    return jnp.concatenate([around, middle[:, None], bracket.low[:, None] + 1], axis=1)


def _sifted(bracket: _Bracket, pieces: list[Score], group: list[int], keep: Int[Array, " group"]) -> _Bracket:
    """One pass that looks for the threshold in a window of the bracket, and lifts the window's scores out.

    Each lane remembers the lowest and the highest key that it saw in the window. Where no lane saw a third one, these
    are all the keys in the window, and searching them finds the threshold exactly; else the window's ends still narrow
    the bracket.
    """
    window = _interpolated(bracket, keep, (-4.0, 4.0))
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
    found = _searched(inner, candidates, candidate_group, inner_keep)
    found = found._replace(above_low=found.above_low + outside, above_high=found.above_high + outside)
    return _Bracket(*(jnp.where(complete, new, old) for new, old in zip(found, narrowed, strict=True)))


def _lift(piece: Score, window: Int[Array, " 2"]) -> tuple[Int[Array, " 2"], Int[Array, ""], list[Keys]]:
    """Counts at the window's ends, the largest number of its keys in one lane, and the lanes' lowest and highest."""
    limits = jnp.iinfo(window.dtype)

    def add(state: tuple[Array, ...], keys: Keys) -> tuple[Array, ...]:
        above_low, above_high, lowest, highest = state
        keys = keys.astype(window.dtype)
        inside = (keys >= window[0]) & (keys < window[1])
        return (
            above_low + (keys >= window[0]).astype(jnp.int32),
            above_high + (keys >= window[1]).astype(jnp.int32),
            jnp.minimum(lowest, jnp.where(inside, keys, limits.max)),
            jnp.maximum(highest, jnp.where(inside, keys, limits.min)),
        )

    empty = (jnp.int32(0), jnp.int32(0), jnp.array(limits.max, window.dtype), jnp.array(limits.min, window.dtype))
    above_low, above_high, lowest, highest = _by_lanes(piece, add, empty)
    number = above_low - above_high
    lifted = [
        jnp.where(number >= 1, lowest, jnp.array(limits.min, window.dtype)),
        jnp.where(number >= 2, highest, jnp.array(limits.min, window.dtype)),
    ]
    counts = jnp.stack(_sums([above_low, above_high]))
    return counts, jnp.max(number, initial=0), lifted


def _count(piece: Any, probes: Int[Array, " probe"]) -> Int[Array, " probe"]:
    """How many keys lie at or above each probe: one pass."""

    def add(state: tuple[Array, ...], keys: Keys) -> tuple[Array, ...]:
        return tuple(s + (keys >= probe).astype(jnp.int32) for s, probe in zip(state, probes, strict=True))

    return jnp.stack(_sums(list(_by_lanes(piece, add, (jnp.int32(0),) * probes.shape[0]))))


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
    """How many accumulators: so many that threads share them where that pays, else what a core's cache holds."""
    if size >= 2**23:
        return 2**18
    return int(np.clip(2 ** int(np.log2(max(size, 1) / 64)), _ROW, 2**15))


def _sums(vectors: list[Int[Array, " lane"]]) -> list[Int[Array, ""]]:
    """The sum of each vector.

    All in one reduction to a row first: a CPU adds vectors, but reduces integers to one number only slowly.
    """
    rows = tuple(vector.reshape(-1, _ROW) for vector in vectors)
    zeros = (jnp.int32(0),) * len(rows)
    row = lax.reduce(rows, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), (0,))
    return [jnp.sum(r, dtype=jnp.int32) for r in row]


def _masks(pieces: list[Score], group: list[int], keep: Int[Array, " group"], bracket: _Bracket) -> list[Mask]:
    """Everything at or above the bracket's high end, and of the ties at its low end the first ones still missing."""
    all_ties = bracket.above_low == keep
    high = jnp.where(all_ties, bracket.low, bracket.high)
    missing = jnp.where(all_ties, 0, keep - bracket.above_high)

    def first() -> list[Int[Array, ""]]:
        left, cuts = missing, list[Array]()
        for piece, g in zip(pieces, group, strict=True):
            cut, taken = _cut(piece, bracket.low[g], left[g])
            left = left.at[g].add(-taken)
            cuts.append(cut)
        return cuts

    cuts = lax.cond(jnp.any(missing > 0), first, lambda: [jnp.int32(0)] * len(pieces))
    masks = list[Mask]()
    for piece, g, cut in zip(pieces, group, cuts, strict=True):
        keys = ordering.keys(piece)
        early = lax.iota(jnp.int32, piece.size) < cut
        masks.append((keys >= high[g]) | ((keys == bracket.low[g]) & early))
    return masks


def _cut(piece: Score, key: Int[Array, ""], wanted: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The index before which the first `wanted` scores with this key lie, and how many there are, `wanted` at most.

    The ties are counted in each of some blocks; only the block in which the count passes `wanted` is looked into.
    """
    if piece.size <= _ROW:
        through = jnp.cumsum((ordering.keys(piece) == key).astype(jnp.int32))
        return jnp.sum(through <= wanted, dtype=jnp.int32), jnp.minimum(wanted, jnp.max(through, initial=0))
    size = piece.size // _BLOCKS

    def ties(block: Int[Array, ""]) -> Int[Array, ""]:
        def add(state: tuple[Array, ...], keys: Keys) -> tuple[Array, ...]:
            return (state[0] + (keys == key).astype(jnp.int32),)

        return _sums(list(_by_lanes(piece, add, (jnp.int32(0),), block * size, size)))[0]

    through = jnp.cumsum(lax.map(ties, jnp.arange(_BLOCKS, dtype=jnp.int32)))
    block = jnp.sum(through <= wanted, dtype=jnp.int32)
    before = jnp.where(block > 0, through[jnp.maximum(block - 1, 0)], 0)
    start = jnp.minimum(block, _BLOCKS - 1) * size
    inside, taken_inside = _cut(lax.dynamic_slice(piece, (start,), (size,)), key, wanted - before)
    rest, taken_rest = _cut(piece[_BLOCKS * size :], key, wanted - through[-1])
    return (
        jnp.where(block < _BLOCKS, start + inside, _BLOCKS * size + rest),
        jnp.where(block < _BLOCKS, before + taken_inside, through[-1] + taken_rest),
    )
