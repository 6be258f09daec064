"""GraSP: keep the weights whose removal would weaken the gradient flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune._arrays import checks, tree
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

    Raises:
      TypeError: `loss` is not a function, or returns no scalar.

    References:
      Wang et al., 2020, "Picking Winning Tickets Before Training by Preserving Gradient Flow", eq. 8.
    """
    checks.function(loss, "loss", "lambda params: jnp.mean(jnp.square(model(params, x) - y))")
    leaves, rebuild = tree.partition(params, tree.is_floating)

    def scalar(leaves: list[Any]) -> Any:
        value = loss(rebuild(leaves))
        if not tree.is_floating(value) or value.shape:
            got = f"{value.dtype} {value.shape}" if tree.is_array(value) else type(value).__name__
            raise TypeError(f"`loss` must return a scalar, floating; got {got}. Take the mean over the batch.")
        return value

    gradient = jax.grad(scalar)
    product = rebuild(jax.jvp(gradient, (leaves,), (gradient(leaves),))[1])
    return tree.map_picked(lambda path, leaf, curvature: jnp.multiply(leaf, curvature), where, params, product)
