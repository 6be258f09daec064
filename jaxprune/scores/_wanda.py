"""Wanda: a weight matters by what it adds to its output."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune._arrays import inputs
from jaxprune.scores._measured import map_measured
from jaxprune.statistics import Norm
from jaxprune.typing import Params, Scores, Statistics, Where


def wanda(params: Params, statistics: Statistics, *, where: Where | None = None) -> Scores:
    r"""Scores each weight by its magnitude times the norm of its input, $|W_{ij}| \lVert x_i \rVert_2$.

    Args:
      params: Any pytree, kernels in any layout.
      statistics: From `calibrate(..., statistic="norm")`.
      where: Picks the leaves; the rest get `None`. By default all that were measured.

    Returns:
      float32 scores (float64 for float64 parameters).

    Raises:
      ValueError: A picked leaf has no such statistic; the message names its path.

    References:
      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1.
    """
    return map_measured(lambda kernel, norm: jnp.abs(kernel) * sizes(norm), params, statistics, Norm, where)


def sizes(norm: Norm) -> Float[Array, "..."]:
    """The norm of each input; a tiny number for one that was never seen, so that its weights rank by magnitude."""
    least = inputs.least_square(jnp.square(norm.norm), norm.axes.inputs)
    return jnp.maximum(norm.norm, jnp.sqrt(least))
