"""First-order criteria: how much the loss would change, to first order, if a weight were removed."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._arrays import tree, xla
from jaxprune.filters import is_kernel
from jaxprune.typing import Grads, Params, Scores, Where


def taylor(params: Params, grads: Grads, *, where: Where = is_kernel) -> Scores:
    r"""Scores each weight by $|w \cdot \partial L / \partial w|$.

    Args:
      params: Any pytree.
      grads: Of the loss, with the structure of `params`; dense, that is, for pruned weights too.
      where: Picks the leaves; the rest get `None`.

    Returns:
      float32 scores (float64 for float64 parameters).

    Raises:
      ValueError: The structures differ.

    References:
      Molchanov et al., 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", eq. 7.
    """

    def score(path: str, leaf: Any, grad: Any) -> Any:
        tree.check_floating(path, leaf)
        if not tree.is_floating(grad) or grad.shape != leaf.shape:
            raise ValueError(
                f"'{path}' has shape {leaf.shape}; its gradient has {getattr(grad, 'shape', None)}. "
                f"Take `jax.grad` of the loss at these parameters."
            )
        wide = tree.promote(leaf.dtype, jnp.float32)
        return jnp.abs(leaf.astype(wide) * grad.astype(wide))

    return tree.map_picked(score, where, params, grads, names=("gradients",))


def snip(params: Params, grads: Grads, *, where: Where = is_kernel) -> Scores:
    r"""Scores each weight by its share of the total connection sensitivity, $|w g| / \sum |w g|$.

    The ranking is that of `taylor`. The paper takes the gradient on one batch at initialisation and ranks all weights
    of the network together, as the strategy `jaxprune.snip` does.

    Args:
      params: At initialisation.
      grads: Of the loss on one batch, with the structure of `params`.
      where: Picks the leaves; the rest get `None`.

    Returns:
      float32 scores (float64 for float64 parameters) that sum to 1 over the tree, up to rounding; all 0 where all
      gradients are. Those that are infinite or NaN stay so and do not count towards the sum.

    References:
      Lee et al., 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", eq. 6.
    """
    sensitivity = taylor(params, grads, where=where)
    leaves = jax.tree.leaves(sensitivity)
    finite = [jnp.where(jnp.isfinite(score), score, jnp.zeros_like(score)) for score in leaves]
    # Over the largest at first, since the sum may overflow.
    largest = functools.reduce(_larger, [jnp.max(score, initial=0) for score in finite], jnp.float32(0))
    sums = [jnp.sum(share, dtype=jnp.float32) for share in xla.shares_of(largest, *finite)]
    total = jnp.maximum(sum(sums, jnp.float32(0)), 1)  # the largest alone is 1, unless all are 0
    shares = [share / total.astype(share.dtype) for share in xla.shares_of(largest, *leaves)]
    return jax.tree.unflatten(jax.tree.structure(sensitivity), shares)


def _larger(first: Any, second: Any) -> Any:
    dtype = tree.promote(first.dtype, second.dtype)
    return jnp.maximum(first.astype(dtype), second.astype(dtype))
