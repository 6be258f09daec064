"""Exact selection of the highest scores by counting.

The threshold is found by `jaxprune.threshold`. Ties at it go to the lowest index, found by counting in ever smaller
parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jaxprune import meshes, ordering, partition, patterns, ties, tree
from jaxprune.threshold import Problem, find
from jaxprune.typing import Counts, Mask, Masks, Score, Scores


def select(scores: Scores, keep: Counts, *, pattern: Any = patterns.Unstructured(), absolute: bool = False) -> Masks:
    """Keeps the highest scores, exactly as many as asked.

    Ties go to the lowest flat index. NaN is pruned first. The counts may be traced: changing them does not recompile.

    Args:
      scores: Floating arrays; `None` leaves stay dense.
      keep: For each leaf how many groups of the pattern to keep, from 0 to all of them; or one number for all leaves
        together, which then compete with each other. Ignored by a pattern that fixes its sparsity.
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
    if isinstance(pattern, patterns.Along):
        return _along_lines(scores, keep, pattern)
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
    kept = _select(pooled, checked, jointly=jointly, absolute=absolute)
    expanded = [p.expand(k, row[1].shape) for p, k, row in zip(leaf_patterns, kept, rows, strict=True)]
    return treedef.unflatten([meshes.like(mask, row[1]) for mask, row in zip(expanded, rows, strict=True)])


def _along_lines(scores: Scores, keep: Counts, pattern: patterns.Along) -> Masks:
    rows, treedef = tree.flatten(scores, keep, names=("counts",))
    masks = [
        fitting(functools.partial(p.highest, keep=_checked_count(f"'{path}'", count, score.size)), path, score)
        for p, (path, score, count) in zip(patterns.by_leaf(pattern, scores), rows, strict=True)
    ]
    return treedef.unflatten(masks)


def magnitudes(scores: Scores) -> Scores:
    """The absolute values. A leaf that is not floating raises a `TypeError` that names its path."""

    def magnitude(path: str, score: Any) -> Any:
        tree.check_floating(path, score)
        return jnp.abs(score)

    return tree.map_with_path(magnitude, scores)


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
        return jax.eval_shape(method, score) if abstract else method(jnp.asarray(score))
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


@functools.partial(jax.jit, static_argnames=("jointly", "absolute"))
def _select(
    scores: tuple[Score, ...], keep: Int[Array, " group"], *, jointly: bool, absolute: bool = False
) -> tuple[Mask, ...]:
    """Masks of the scores themselves; one group for all leaves or one for each."""
    # Keys of different dtypes do not compare.
    dtype = functools.reduce(tree.promote, [score.dtype for score in scores])
    filled = [i for i, score in enumerate(scores) if score.size]
    masks = [jnp.ones(score.shape, bool) for score in scores]
    if filled:
        pieces = [scores[i].astype(dtype) for i in filled]
        pieces = [piece if meshes.is_spread(piece) else piece.reshape(-1) for piece in pieces]
        group = np.zeros(len(filled), np.int64) if jointly else np.arange(len(filled))
        sizes = np.array([piece.size for piece in pieces])
        counts = keep if jointly else keep[np.array(filled)]
        problem = Problem(partition.of(pieces, group, absolute), sizes, group, counts, dtype)
        least, cuts = _ends(problem)
        for i, piece, number in zip(filled, pieces, partition.numbers(range(len(pieces)), pieces), strict=True):
            own, cut = (lax.dynamic_index_in_dim(ends, number, keepdims=False) for ends in (least, cuts))
            late = meshes.flat_index(piece.shape) >= cut
            mask = ordering.keys(piece, absolute) >= own + late.astype(least.dtype)
            masks[i] = mask.reshape(scores[i].shape)
    return tuple(masks)


def _ends(problem: Problem) -> tuple[Int[Array, " leaf"], Int[Array, " leaf"]]:
    """For each leaf the least key that stays, and the flat index from which on not even that does."""
    bracket = find(problem)
    everything = jnp.asarray(problem.sizes, jnp.int32)
    all_ties = bracket.above_low == problem.keep
    missing = jnp.where(all_ties, 0, problem.keep - bracket.above_high)
    least = jnp.where(all_ties | (missing > 0), bracket.low, bracket.high)[problem.group]

    def cut() -> tuple[Array, Array]:
        return least, jnp.where((missing > 0)[problem.group], ties.cuts(problem, bracket.low, missing), everything)

    return lax.cond(jnp.any(missing > 0), cut, lambda: (least, everything))
