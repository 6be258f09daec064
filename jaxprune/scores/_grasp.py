"""GraSP: keep the weights whose removal would weaken the gradient flow."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune._arrays import tree
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, Scores, Where


def grasp(loss: Callable[[Params], Float[Array, ""]], params: Params, *, where: Where = is_kernel) -> Scores:
    r"""Scores each weight by $w \cdot (H g)$: to first order, half of what its removal takes from $\lVert g \rVert^2$.

    It takes one Hessian-vector product, by forward over reverse differentiation. The paper's score is the negative of
    this one, since it removes the highest.

    Args:
      loss: From parameters to a scalar, on a batch of training data. The paper divides logits by a temperature of 200
        first.
      params: At initialisation.
      where: Picks the leaves; the rest get `None`.

    Returns:
      Scores in the parameters' dtypes, of either sign.

    References:
      Wang et al., 2020, "Picking Winning Tickets Before Training by Preserving Gradient Flow", eq. 8.
    """
    leaves, rebuild = tree.partition(params, tree.is_floating)
    gradient = jax.grad(lambda leaves: loss(rebuild(leaves)))
    product = rebuild(jax.jvp(gradient, (leaves,), (gradient(leaves),))[1])
    return tree.map_picked(lambda path, leaf, curvature: jnp.multiply(leaf, curvature), where, params, product)
