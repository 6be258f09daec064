"""LAMP: magnitude, rescaled so that all layers can share one threshold."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxprune._arrays import meshes, tree
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, Scores, Where


def lamp(params: Params, *, where: Where = is_kernel) -> Scores:
    r"""Scores each weight by $w_i^2 / \sum_{j : |w_j| \ge |w_i|} w_j^2$ within its leaf.

    The largest weight of every leaf scores 1, so no leaf is ever emptied. Of equal weights the first counts as the
    larger. The definition ranks a leaf's weights, so each leaf is sorted.

    Args:
      params: Any pytree.
      where: Picks the leaves; the rest get `None`.

    Returns:
      float32 scores in [0, 1].

    References:
      Lee et al., 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", eq. 3.
    """

    def score(path: str, leaf: Any) -> Any:
        if not where(path, leaf):
            return None
        tree.check_floating(path, leaf)
        squares = jnp.square(meshes.gather(leaf, *range(leaf.ndim)).astype(jnp.float32)).reshape(-1)
        order = jnp.argsort(-squares, stable=True)
        descending = squares[order]
        tail = jnp.cumsum(descending)
        ratio = descending / jnp.where(tail > 0, tail, jnp.ones_like(tail))
        return meshes.like(jnp.zeros_like(squares).at[order].set(ratio).reshape(leaf.shape), leaf)

    return tree.map_with_path(score, params)
