"""Masked forward, dense backward."""

from __future__ import annotations

from typing import Any

import jax

from jaxprune._arrays import tree
from jaxprune._masks import masking
from jaxprune.typing import Masks, Params


def straight_through(params: Params, masks: Masks) -> Params:
    """`jaxprune.apply` whose derivative is the identity, so that pruned weights receive gradients and can come back.

    Args:
      params: Any pytree of arrays.
      masks: With the structure of `params`.

    Returns:
      The parameters, pruned.

    Raises:
      ValueError: The masks do not fit.

    Examples:
      >>> masks = {"kernel": jnp.array([[True, False]])}
      >>> loss = lambda params: jnp.sum(straight_through(params, masks)["kernel"] * 3.0)
      >>> print(jax.grad(loss)({"kernel": jnp.ones((1, 2))})["kernel"])
      [[3. 3.]]

    References:
      Bengio et al., 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation".
    """
    leaves, rebuild = tree.partition(params)

    # The masks are an argument and not closed over: inside `scan`, `cond` and `jax.checkpoint` they may be traced.
    @jax.custom_jvp
    def forward(leaves: list[Any], masks: Masks) -> list[Any]:
        return tree.partition(masking.apply(rebuild(leaves), masks))[0]

    forward.defjvp(lambda primals, tangents: (forward(*primals), tangents[0]))
    return rebuild(forward(leaves, masks))
