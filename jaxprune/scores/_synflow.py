"""SynFlow: how much of the network's total path strength runs through a weight; needs no data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._arrays import checks, tree
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, Scores, Where


def synflow(fun: Callable[..., Any], params: Params, *args: Any, where: Where = is_kernel) -> Scores:
    r"""Scores each weight by $|w| \cdot \partial R / \partial |w|$, with $R$ the output for all-ones input.

    Every parameter is replaced by its absolute value. The score alone lets a layer collapse at high sparsity; the
    strategy `jaxprune.synflow` recomputes it as it prunes, as the paper does.

    Args:
      fun: `fun(params, *args)`, returning arrays; without dropout or the like.
      params: Any pytree.
      *args: Inputs, or `jax.ShapeDtypeStruct`s: floating ones are replaced by ones.
      where: Picks the leaves; the rest get `None`.

    Returns:
      Scores in the parameters' dtypes.

    Raises:
      TypeError: `fun` is not a function, or returns no floating-point array.

    References:
      Tanaka et al., 2020, "Pruning neural networks without any data by iteratively conserving synaptic flow", alg. 1.
    """
    checks.function(fun, "fun", "model.apply")
    tree.check_tree(params)
    ones = jax.tree.map(_ones, args)
    positive = jax.tree.map(lambda leaf: jnp.abs(leaf) if tree.is_floating(leaf) else leaf, params)

    leaves, rebuild = tree.partition(positive, tree.is_floating)

    def flow(leaves: list[Any]) -> Any:
        outputs = fun(rebuild(leaves), *ones)
        floating = [jnp.sum(out) for out in jax.tree.leaves(outputs) if tree.is_floating(out)]
        if not floating:
            raise TypeError(f"`fun` returns no floating-point array, but {tree.kinds(outputs)}. Return the logits.")
        return sum(floating)

    grads = rebuild(jax.grad(flow)(leaves))
    return tree.map_picked(lambda path, leaf, grad: jnp.abs(leaf * grad), where, positive, grads)


def _ones(leaf: Any) -> Any:
    return jnp.ones(leaf.shape, leaf.dtype) if tree.is_floating(leaf) else leaf
