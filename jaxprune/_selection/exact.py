"""Exact selection of the highest scores by counting.

The threshold is found by `jaxprune.threshold`. Ties at it go to the lowest index, found by `jaxprune.ties`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jaxprune import patterns
from jaxprune._arrays import meshes, ordering, tree, wide
from jaxprune._arrays.wide import Wide
from jaxprune._selection import brackets, partition, requests, spread, threshold, ties
from jaxprune._selection.brackets import Problem
from jaxprune.typing import Counts, Mask, Masks, Pattern, Score, Scores, SelectingPattern

_SLAB = 2**31 - 1  # scores in a leaf that is looked at as one
_FEW = 2**16  # scores that are bisected, which compiles four times as fast, and with so few takes no longer


def select(
    scores: Scores, keep: Counts, *, pattern: Pattern = patterns.Unstructured(), absolute: bool = False
) -> Masks:
    """Keeps the highest scores, exactly as many as asked.

    Ties go to the lowest flat index. NaN is pruned first. The counts may be traced: changing them does not recompile.

    Args:
      scores: Floating arrays; `None` leaves stay dense.
      keep: For each leaf how many groups of the pattern to keep, from 0 to all of them; or one number for all leaves
        together, which then compete with each other. Ignored by a pattern that fixes its sparsity. Where there are
        2**31 groups or more, a traced number is a `jaxprune.budgets.Wide`, as `budgets.keep_count` makes it.
      pattern: What is removed together.
      absolute: Keep the highest absolute values. That spares memory and a pass over it where the pattern is
        `Unstructured`, since absolute values need not be written down.

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
    if absolute and not isinstance(pattern, patterns.Unstructured):
        scores, absolute = magnitudes(scores), False
    jointly = isinstance(keep, int | np.integer | Wide) or (tree.is_array(keep) and keep.ndim == 0)
    if jointly:
        rows, treedef = tree.flatten(scores)
        counts = [keep]
    else:
        rows, treedef = tree.flatten(scores, keep, names=("counts",))
        counts = [row[2] for row in rows]
    if not rows:
        return scores
    leaf_patterns = requests.by_leaf(pattern, scores)
    selecting = [p for p in leaf_patterns if isinstance(p, SelectingPattern)]
    if len(selecting) == len(rows):
        return treedef.unflatten(_selected_by_patterns(rows, selecting, counts))
    pooled = tuple(requests.fitting(p.pool, *row[:2]) for p, row in zip(leaf_patterns, rows, strict=True))
    names = ["all leaves"] if jointly else [f"'{row[0]}'" for row in rows]
    sizes = [sum(leaf.size for leaf in pooled)] if jointly else [leaf.size for leaf in pooled]
    checked = [_checked_count(*args) for args in zip(names, counts, sizes, strict=True)]
    if any(isinstance(count, Wide) for count in checked):
        checked = [wide.of(count) for count in checked]
    # Leaves of a kind one after the other have numbers that are a slice. Ties go to the first of leaves that compete.
    order = range(len(pooled)) if jointly else sorted(range(len(pooled)), key=lambda i: partition.kind(pooled[i]))
    keep = jax.tree.map(lambda *own: jnp.stack(own), *(checked if jointly else [checked[i] for i in order]))
    chosen = _select(tuple(pooled[i] for i in order), keep, jointly=jointly, absolute=absolute)
    kept = [mask for _, mask in sorted(zip(order, chosen, strict=True), key=lambda own: own[0])]
    expanded = [p.expand(k, row[1].shape) for p, k, row in zip(leaf_patterns, kept, rows, strict=True)]
    return treedef.unflatten([meshes.like(mask, row[1]) for mask, row in zip(expanded, rows, strict=True)])


def _selected_by_patterns(
    rows: Sequence[tuple[Any, ...]], leaf_patterns: Sequence[SelectingPattern], counts: Sequence[Any]
) -> list[Mask]:
    """The masks of leaves whose patterns choose by themselves."""
    fixed = all(pattern.sparsity is not None for pattern in leaf_patterns)
    if fixed:
        counts = [0] * len(rows)
    elif len(counts) != len(rows):
        raise ValueError(f"`{leaf_patterns[0]}` chooses within each leaf; give each a count, not one number for all.")

    def mask(row: tuple[Any, ...], pattern: SelectingPattern, count: Any) -> Mask:
        path, score = row[:2]
        if tree.is_array(score) and score.size >= 2**31 and not fixed:
            raise ValueError(
                f"`{type(pattern).__name__}` compares in leaves of fewer than 2**31 scores; '{path}' has {score.size}. "
                f"Leave it out with `where=`, or use `Unstructured()`."
            )
        keep: Any = 0 if fixed else _checked_count(f"'{path}'", count, score.size)
        return requests.fitting(functools.partial(pattern.select, keep=keep), path, score)

    return [mask(*each) for each in zip(rows, leaf_patterns, counts, strict=True)]


def magnitudes(scores: Scores) -> Scores:
    """The absolute values. A leaf that is not floating raises a `TypeError` that names its path."""

    def magnitude(path: str, score: Any) -> Any:
        tree.check_floating(path, score)
        return jnp.abs(score)

    return tree.map_with_path(magnitude, scores)


def counts_of_highest(scores: Scores, total: Any, *, pattern: Pattern = patterns.Unstructured()) -> Counts:
    """How many groups each leaf keeps when the `total` highest of all leaves stay.

    Args:
      scores: As for `select`.
      total: How many groups stay in all; may be traced.
      pattern: Defines the groups; its scores compete after pooling.

    Returns:
      int32 scalars with the structure of `scores`; `Wide` for a leaf of 2**31 groups or more.
    """
    rows, treedef = tree.flatten(scores)
    pooled = tuple(
        requests.fitting(p.pool, *row[:2]) for p, row in zip(requests.by_leaf(pattern, scores), rows, strict=True)
    )
    counted = _checked_count("all leaves", total, sum(p.size for p in pooled))
    kept = _select(pooled, jax.tree.map(lambda own: own[None], counted), jointly=True)
    return treedef.unflatten([wide.counted(mask) for mask in kept])


def _checked_count(name: str, count: Any, size: int) -> Int[Array, ""] | Wide:
    """The count, in range; `Wide` where 32 bits might not hold it."""
    if size >= wide.END:
        raise ValueError(f"{name} has {size} groups; selection counts up to {wide.END - 1}. Split the tree.")
    if isinstance(count, Wide):
        checked = wide.at_most(count, wide.of(size))
        return checked if size >= 2**31 else wide.clipped(checked)
    if isinstance(count, jax.Array):
        checked = jnp.clip(count.astype(jnp.int32), 0, min(size, 2**31 - 1))
        return wide.of(checked) if size >= 2**31 else checked
    if count is None or not 0 <= count <= size:
        raise ValueError(f"The keep-count of {name} must be an integer from 0 to {size}; got {count}.")
    return wide.of(int(count)) if size >= 2**31 else jnp.int32(count)


def _select(
    scores: tuple[Score, ...], keep: Int[Array, " group"] | Wide, *, jointly: bool, absolute: bool = False
) -> tuple[Mask, ...]:
    """Masks of the scores themselves; one group for all leaves or one for each."""
    sizes = [score.size for score in scores]
    entries = sum(sizes) if jointly else len(sizes) * max(sizes)  # of a table with a row for each group
    if 0 < entries <= _FEW and not any(meshes.is_spread(score) for score in scores):
        assert not isinstance(keep, Wide)  # so few need none
        return _highest_of_few(scores, keep, jointly=jointly, absolute=absolute)
    return _highest(scores, keep, jointly=jointly, absolute=absolute)


@functools.partial(jax.jit, static_argnames=("jointly", "absolute"))
def _highest_of_few(
    scores: tuple[Score, ...], keep: Int[Array, " group"], *, jointly: bool, absolute: bool
) -> tuple[Mask, ...]:
    dtype = functools.reduce(tree.promote, [score.dtype for score in scores])
    flat = [score.astype(dtype).reshape(-1) for score in scores]
    rows = [jnp.concatenate(flat)] if jointly else flat
    width = max(row.size for row in rows)
    # NaN comes last, and of NaNs those that fill a row up.
    table = jnp.stack([jnp.pad(row, (0, width - row.size), constant_values=jnp.nan) for row in rows])
    chosen = ordering.highest(jnp.abs(table) if absolute else table, keep[:, None], (1,))
    sizes = [score.size for score in scores]
    masks = jnp.split(chosen[0], np.cumsum(sizes)[:-1].tolist()) if jointly else [*chosen]
    return tuple(m[:size].reshape(score.shape) for m, size, score in zip(masks, sizes, scores, strict=True))


@functools.partial(jax.jit, static_argnames=("jointly", "absolute"))
def _highest(
    scores: tuple[Score, ...], keep: Int[Array, " group"] | Wide, *, jointly: bool, absolute: bool
) -> tuple[Mask, ...]:
    # Keys of different dtypes do not compare.
    dtype = functools.reduce(tree.promote, [score.dtype for score in scores])
    slabs = [_slabs(score) for score in scores]
    owner = np.repeat(np.arange(len(scores)), [len(own) for own in slabs])
    found = dict[int, Mask]()
    if len(owner):
        pieces = [slab.astype(dtype) for own in slabs for slab in own]
        pieces = [piece if meshes.is_spread(piece) else piece.reshape(-1) for piece in pieces]
        filled, group = np.unique(owner, return_inverse=True)
        sizes = np.array([piece.size for piece in pieces])
        if jointly:
            group = np.zeros(len(owner), np.int64)
        else:
            keep = jax.tree.map(lambda own: partition.picked(own, filled), keep)
        problem = Problem(partition.of(pieces, group, absolute), sizes, group, keep, dtype)
        ends = _ends(problem)
        for parts in problem.parts:
            found |= dict(zip(parts.leaves.tolist(), parts.masks(*ends), strict=True))
    return tuple(
        _joined(score, own, [found[piece] for piece in np.flatnonzero(owner == i).tolist()])
        for i, (score, own) in enumerate(zip(scores, slabs, strict=True))
    )


def _slabs(score: Score) -> list[Score]:
    """The score itself, or slabs of fewer than 2**31 where it has more, which are copies; none if it is empty."""
    if score.size <= _SLAB:
        return [score] if score.size else []
    rows = _SLAB // (score.size // score.shape[0])
    if not rows:
        raise ValueError(
            f"Selection needs fewer than 2**31 groups in each slice along a leaf's first axis; got shape "
            f"{score.shape}. Give the leaf another axis in front."
        )
    whole = meshes.whole(score, 0)
    return [whole[start : start + rows] for start in range(0, score.shape[0], rows)]


def _joined(score: Score, slabs: list[Score], masks: list[Mask]) -> Mask:
    """One mask of those of all slabs."""
    shaped = [mask.reshape(slab.shape) for mask, slab in zip(masks, slabs, strict=True)]
    return jnp.concatenate(shaped) if len(shaped) > 1 else shaped[0] if shaped else jnp.ones(score.shape, bool)


def _ends(problem: Problem) -> tuple[Int[Array, " leaf"], Int[Array, " leaf"]]:
    """For each leaf the least key that stays, and the flat index from which on not even that does."""
    bracket, rows = threshold.find(problem)
    tied, everything = brackets.are_tied(bracket), jnp.asarray(problem.sizes, jnp.int32)
    least = jnp.where((bracket.over == 0) | tied, bracket.low, bracket.high)
    least, tied_leaves = (partition.picked(own, problem.group) for own in (least, tied))

    def cut() -> tuple[Array, Array]:
        wanted = threshold.missing(problem, bracket)
        wanted = Wide(*(jnp.where(tied, digit, 0) for digit in wanted))
        wanted, own = threshold.looked_at_after(wanted, problem)
        return least, jnp.where(tied_leaves, ties.cuts(own, bracket.low, wanted, rows), everything)

    return lax.cond(spread.how_many(tied, (0,)) > 0, cut, lambda: (least, everything))
