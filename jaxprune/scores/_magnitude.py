"""Magnitude: large weights matter."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

from jaxprune._arrays import tree
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, Scores, Where


def magnitude(params: Params, *, norm: Literal["l1", "l2"] = "l1", where: Where = is_kernel) -> Scores:
    r"""Scores each weight by its size.

    Single weights rank the same under both norms. The score of a block or channel is the mean over its weights, so
    `"l1"`, $|w|$, ranks it by its L1 norm and `"l2"`, $w^2$, by its L2 norm.

    Args:
      params: Any pytree.
      norm: Whether a weight scores $|w|$ or $w^2$.
      where: Picks the leaves; the rest get `None`.

    Returns:
      Scores in the leaves' own dtypes (`"l2"`: float32 or wider, in which squares of weights beyond 1.8e19 are infinite
      and tie).

    References:
      Han et al., 2015, "Learning both Weights and Connections for Efficient Neural Networks".
    """

    def score(path: str, leaf: Any) -> Any:
        tree.check_floating(path, leaf)
        return jnp.abs(leaf) if norm == "l1" else jnp.square(leaf.astype(tree.promote(leaf.dtype, jnp.float32)))

    if norm not in ("l1", "l2"):
        raise ValueError(f"`norm` must be 'l1' or 'l2'; got {norm!r}.")
    return tree.map_picked(score, where, params)
