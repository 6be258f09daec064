"""LAMP: magnitude, rescaled so that all layers can share one threshold."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxprune._arrays import meshes, tree, xla
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, Scores, Where


def lamp(params: Params, *, where: Where = is_kernel) -> Scores:
    r"""Scores each weight by $w_i^2 / \sum_{j : |w_j| \ge |w_i|} w_j^2$ within its leaf.

    The largest weight of every leaf scores 1, whatever its size, and all others at most one half: under the budget
    `global_`, no leaf is emptied before all of them are down to one weight. Of equal weights the first counts as the
    larger. The definition ranks a leaf's weights, so each leaf is sorted.

    Args:
      params: Any pytree.
      where: Picks the leaves; the rest get `None`.

    Returns:
      float32 scores in [0, 1]; those of weights below 1e-22 of the leaf's largest may be 0. An infinite weight scores 1
      and counts for nothing in the others' sums; NaN scores NaN.

    References:
      Lee et al., 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", eq. 3.
    """

    def score(path: str, leaf: Any) -> Any:
        tree.check_floating(path, leaf)
        sizes = jnp.abs(meshes.gather(leaf, *range(leaf.ndim))).reshape(-1)
        sizes = sizes.astype(tree.promote(sizes.dtype, jnp.float32))
        order = jnp.argsort(-sizes, stable=True)
        descending = sizes[order]
        finite = jnp.where(jnp.isfinite(descending), descending, jnp.zeros_like(descending))
        largest = jnp.max(finite, initial=0)
        # Squares of shares of the largest neither overflow nor vanish.
        squares = jnp.square(xla.shares_of(largest, finite)[0]).astype(jnp.float32)
        tail = jnp.cumsum(squares)
        ratio = squares / jnp.where(tail > 0, tail, jnp.ones_like(tail))
        is_first = jnp.arange(ratio.size) == 0
        ratio = jnp.where(is_first | jnp.isinf(descending), jnp.ones_like(ratio), ratio)
        ratio = jnp.where(jnp.isnan(descending), jnp.full_like(ratio, jnp.nan), ratio)
        return meshes.like(jnp.zeros_like(ratio).at[order].set(ratio).reshape(leaf.shape), leaf)

    return tree.map_picked(score, where, params)
