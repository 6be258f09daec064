"""Exact selection of the highest scores, under any pattern."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from jaxprune import patterns
from jaxprune._arrays import checks, host, meshes, tree, wide
from jaxprune._arrays.wide import Wide
from jaxprune._selection import counting, introselect, requests
from jaxprune.typing import Counts, Mask, Masks, Pattern, Score, Scores, SelectingPattern


def select(
    scores: Scores, keep: Counts, *, pattern: Pattern = patterns.Unstructured(), absolute: bool = False
) -> Masks:
    """Keeps the highest scores, exactly as many as asked.

    Ties go to the lowest flat index. NaN is pruned first. The counts may be traced: changing them does not recompile.

    Args:
      scores: Floating arrays; `None` leaves stay dense.
      keep: For each leaf how many groups of the pattern to keep, from 0 to all of them; or one number for all leaves
        together, which then compete with each other. Ignored by a pattern that fixes its sparsity. Traced numbers are
        clipped to what there is; of 2**31 groups or more they are a `jaxprune.budgets.Wide`, as `budgets.keep_count`
        makes it.
      pattern: What is removed together.
      absolute: Keep the highest absolute values. That spares memory and a pass over it where the pattern is
        `Unstructured`, since absolute values need not be written down.

    Returns:
      Masks with the structure of `scores`.

    Raises:
      ValueError: A count is out of range, a leaf does not fit the pattern, or the structures differ.
      TypeError: Scores are not floating, a count is not a whole number, or the pattern is none.

    Examples:
      >>> scores = {"a": jnp.array([[3.0, 1.0], [2.0, 2.0]])}
      >>> print(select(scores, {"a": 2})["a"])
      [[ True False]
       [ True False]]
    """
    if absolute and not isinstance(pattern, patterns.Unstructured):
        scores, absolute = magnitudes(scores), False
    jointly = isinstance(keep, int | float | str | np.generic | Wide) or (tree.is_array(keep) and keep.ndim == 0)
    if jointly:
        rows, treedef = tree.flatten(scores)
        counts = [keep]
    else:
        rows, treedef = tree.flatten(scores, keep, names=("counts",))
        counts = [row[2] for row in rows]
    if not rows:
        return scores
    leaves, rows = [row[1] for row in rows], _here(rows)
    leaf_patterns = requests.by_leaf(pattern, scores)
    selecting = [p for p in leaf_patterns if isinstance(p, SelectingPattern)]
    if len(selecting) == len(rows):
        masks = _selected_by_patterns(rows, selecting, counts)
        return treedef.unflatten([_on_device(mask, leaf) for mask, leaf in zip(masks, leaves, strict=True)])
    pooled = _pooled(rows, leaf_patterns)
    names = ["all leaves"] if jointly else [f"'{row[0]}'" for row in rows]
    sizes = [sum(leaf.size for leaf in pooled)] if jointly else [leaf.size for leaf in pooled]
    checked = [checked_count(*args) for args in zip(names, counts, sizes, strict=True)]
    kept = _highest(pooled, checked, jointly=jointly, absolute=absolute)
    expanded = [p.expand(k, row[1].shape) for p, k, row in zip(leaf_patterns, kept, rows, strict=True)]
    return treedef.unflatten(
        [meshes.like(_on_device(mask, leaf), leaf) for mask, leaf in zip(expanded, leaves, strict=True)]
    )


def _here(rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    """The rows with NumPy arrays for scores, if all of them lie in host memory."""
    if not all(tree.is_floating(row[1]) and host.is_here(row[1]) for row in rows):
        return rows
    return [(row[0], np.asarray(row[1]), *row[2:]) for row in rows]


def _pooled(rows: Sequence[tuple[Any, ...]], leaf_patterns: Sequence[Pattern]) -> tuple[Score, ...]:
    """The scores of each leaf's groups."""
    return tuple(requests.fitting(p.pool, *row[:2]) for p, row in zip(leaf_patterns, rows, strict=True))


def _on_device(mask: Any, leaf: Any) -> Any:
    """A mask of NumPy as one of JAX, where its leaf is."""
    if not isinstance(mask, np.ndarray):
        return mask
    return host.placed(mask, leaf) if isinstance(leaf, jax.Array) else jax.device_put(mask)


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
        keep: Any = 0 if fixed else checked_count(f"'{path}'", count, score.size)
        return requests.fitting(functools.partial(pattern.select, keep=keep), path, score)

    return [mask(*each) for each in zip(rows, leaf_patterns, counts, strict=True)]


def magnitudes(scores: Scores) -> Scores:
    """The absolute values. A leaf that is not floating raises a `TypeError` that names its path."""

    def magnitude(path: str, score: Any) -> Any:
        tree.check_floating(path, score)
        return abs(host.view(score))

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
    if not rows:
        return scores
    pooled = _pooled(_here(rows), requests.by_leaf(pattern, scores))
    counted = checked_count("all leaves", total, sum(p.size for p in pooled))
    kept = _highest(pooled, [counted], jointly=True, absolute=False)
    return treedef.unflatten([wide.counted(jax.device_put(mask)) for mask in kept])


def checked_count(name: str, count: Any, size: int) -> int | Int[Array, ""] | Wide:
    """The count of what has this name, in range; `Wide` where it is an array and 32 bits might not hold it."""
    if size >= wide.END:
        raise ValueError(f"{name} has {size} groups; selection counts up to {wide.END - 1}. Split the tree.")
    if isinstance(count, Wide):
        checked = wide.at_most(count, wide.of(size))
        return checked if size >= 2**31 else wide.clipped(checked)
    if isinstance(count, Tracer) and jnp.issubdtype(count.dtype, jnp.integer) and count.ndim == 0:
        checked = jnp.clip(count.astype(jnp.int32), 0, min(size, 2**31 - 1))
        return wide.of(checked) if size >= 2**31 else checked
    number = None if count is None else checks.whole(count, f"keep-count of {name}", least=None)
    if number is None or not 0 <= number <= size:
        raise ValueError(f"The keep-count of {name} must be an integer from 0 to {size}; got {count}.")
    return wide.of(number) if size >= 2**31 else number


def _highest(
    scores: tuple[Score, ...], keep: Sequence[int | Int[Array, ""] | Wide], *, jointly: bool, absolute: bool
) -> Sequence[Mask]:
    """Masks of the scores themselves, all of them in one group or each in its own."""
    groups = (0,) * len(scores) if jointly else tuple(range(len(scores)))
    return highest_by_weight(scores, keep, groups, (1,) * len(scores), absolute=absolute)


def highest_by_weight(
    scores: Sequence[Score],
    keep: Sequence[int | Int[Array, ""] | Wide],
    groups: tuple[int, ...],
    weights: tuple[int, ...],
    *,
    absolute: bool = False,
) -> Sequence[Mask]:
    """Masks of scores, of which those of a leaf may count more than those of another; see `counting.highest`.

    In host memory where all is concrete and lies there, else by counting.
    """
    are_here = all(isinstance(score, np.ndarray) for score in scores)
    if are_here and not any(isinstance(digits, Tracer) for digits in jax.tree.leaves(keep)):
        numbers = list(map(wide.exact, keep))
        return introselect.highest(scores, numbers, groups=groups, weights=weights, absolute=absolute)
    if any(isinstance(count, Wide) for count in keep):
        number = Wide(*(jnp.stack(digits) for digits in zip(*map(wide.of, keep), strict=True)))
    else:
        number = jnp.stack([jnp.asarray(count, jnp.int32) for count in keep])
    arrays = tuple(map(jnp.asarray, scores))
    return counting.highest(arrays, number, groups=groups, weights=weights, absolute=absolute)
