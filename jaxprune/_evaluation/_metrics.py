"""How much was removed, counted exactly.

The source article's formulas keep their meaning under other names: what it calls sparsity is the share that remains,
here `density`; its compression ratio, (|W*| - |W|) / |W|, is `relative_size_change`, a negative number.
`compression_ratio` is what the field means by it, original over kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune._arrays import tree, wide
from jaxprune._masks import verbs
from jaxprune.filters import is_kernel
from jaxprune.typing import Masks, Params


class LeafSummary(NamedTuple):
    """How much of one leaf is kept.

    Attributes:
      path: The leaf's path.
      shape: Its shape.
      size: Its number of weights.
      kept: How many of them remain; degrees of freedom for a frequency mask.
      sparsity: The fraction removed.
      picked: Whether the leaf has a mask; without masks, whether it would get one by default.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    kept: int
    sparsity: float
    picked: bool = True


def sparsity(params: Params, masks: Masks | None = None) -> Float[Array, ""]:
    """The fraction of weights removed, over all leaves that have a mask.

    Args:
      params: Any pytree of arrays.
      masks: With the structure of `params`. Without masks, exact zeros are counted, over the floating-point leaves with
        two axes or more.

    Returns:
      A float32 scalar in [0, 1]; 0 where there is nothing to prune.

    Examples:
      >>> params = {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}
      >>> print(sparsity(params, jaxprune.magnitude(params, 0.75)))
      0.75
    """
    size, kept = _totals(params, masks, dense_too=False)
    return jnp.where(size > 0, (size - kept) / jnp.maximum(size, 1), jnp.zeros_like(kept))


def density(params: Params, masks: Masks | None = None) -> Float[Array, ""]:
    """The fraction of weights kept: 1 - sparsity, and what the source article's sparsity formula computes."""
    return 1 - sparsity(params, masks)


def compression_ratio(params: Params, masks: Masks | None = None) -> Float[Array, ""]:
    """All parameters over those kept, dense leaves included: 10 means a tenth of the model is left.

    Returns:
      A float32 scalar, at least 1; infinity where nothing is left of something, 1 where there are no parameters.

    References:
      Blalock et al., 2020, "What is the State of Neural Network Pruning?", sec. 2.2.
    """
    size, kept = _totals(params, masks, dense_too=True)
    return jnp.where(size > 0, size / kept, jnp.ones_like(kept))


def relative_size_change(params: Params, masks: Masks | None = None) -> Float[Array, ""]:
    """(kept - all) / all over all parameters, the source article's compression ratio: -0.9 means 90 % smaller.

    Returns:
      A float32 scalar in [-1, 0]: 1 / compression_ratio - 1; 0 where there are no parameters.
    """
    size, kept = _totals(params, masks, dense_too=True)
    return (kept - size) / jnp.maximum(size, 1)


def count_params(params: Params) -> int:
    """The number of floating-point parameters."""
    tree.check_tree(params)
    return sum(leaf.size for leaf in jax.tree.leaves(params) if tree.is_floating(leaf))


def nbytes(params: Params, masks: Masks | None = None) -> int:
    """The bytes that the kept weights need in their own dtypes, and their masks at one bit per entry.

    Args:
      params: Any pytree of arrays.
      masks: With the structure of `params`; without masks, the dense size.

    Returns:
      Bytes. A leaf without a mask counts whole. Kept frequencies count as real numbers of the kernel's dtype.
    """
    rows = tree.flatten(params, *([] if masks is None else [masks]), names=("masks",))[0]
    total = 0
    for path, leaf, *rest in rows:
        if not tree.is_array(leaf):
            continue
        mask = rest[0] if rest else None
        total += wide.exact(verbs.count(path, leaf, mask)) * leaf.dtype.itemsize
        total += sum(array.nbytes for array in jax.tree.leaves(verbs.pack(path, mask)))
    return total


def summary(params: Params, masks: Masks | None = None, *, dense: bool = False) -> list[LeafSummary]:
    """What each leaf keeps, in order, for the leaves that were picked: those that `sparsity` counts.

    Args:
      params: Any pytree of arrays.
      masks: With the structure of `params`; see `sparsity`.
      dense: Also list the floating-point leaves that were not picked.

    Examples:
      >>> params = {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}
      >>> for row in summary(params, jaxprune.magnitude(params, 0.75)):
      ...     print(row.path, row.kept, row.size, row.sparsity)
      kernel 5 20 0.75
      >>> [row.path for row in summary(params, jaxprune.magnitude(params, 0.75), dense=True) if not row.picked]
      ['bias']
    """
    found: dict[str, Any] = {path: wide.exact(kept) for path, _, kept in _kept(params, masks)}
    rows = []
    for path, leaf in tree.flatten(params)[0]:
        if path in found or (dense and tree.is_floating(leaf)):
            kept = found[path] if path in found else int(leaf.size)
            removed = 1 - kept / leaf.size if leaf.size else 0.0
            rows.append(LeafSummary(path, leaf.shape, leaf.size, kept, removed, path in found))
    return rows


def _kept(params: Params, masks: Masks | None) -> list[tuple[str, Any, Any]]:
    if masks is None:
        rows = [(path, leaf) for path, leaf in tree.flatten(params)[0] if is_kernel(path, leaf)]
        for row in rows:
            tree.check_width(*row)
        return [(path, leaf, wide.counted(jnp.asarray(leaf != 0))) for path, leaf in rows]
    rows = tree.flatten(params, masks, names=("masks",))[0]
    return [(path, leaf, verbs.count(path, leaf, mask)) for path, leaf, mask in rows if mask is not None]


def _totals(params: Params, masks: Masks | None, *, dense_too: bool) -> tuple[Array, Array]:
    rows = _kept(params, masks)
    maskable = sum(leaf.size for _, leaf, _ in rows)
    removed = wide.minus(wide.of(maskable), wide.added([kept for _, _, kept in rows]))
    size = jnp.asarray(np.float32(count_params(params) if dense_too else maskable))
    return size, size - wide.floating(removed)
