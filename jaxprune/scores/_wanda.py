"""Wanda: a weight matters by what it adds to its output."""

from __future__ import annotations

import jax.numpy as jnp

from jaxprune.filters import is_kernel
from jaxprune.scores._measured import map_measured
from jaxprune.statistics import Norm
from jaxprune.typing import Params, Scores, Statistics, Where


def wanda(params: Params, statistics: Statistics, *, where: Where = is_kernel) -> Scores:
    r"""Scores each weight by its magnitude times the norm of its input, $|W_{ij}| \lVert x_i \rVert_2$.

    Args:
      params: Any pytree, kernels in any layout.
      statistics: From `calibrate(..., statistic="norm")`.
      where: Picks the leaves; the rest get `None`.

    Returns:
      float32 scores (float64 for float64 parameters).

    Raises:
      ValueError: A picked leaf has no such statistic; the message names its path.

    References:
      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1.
    """
    return map_measured(lambda kernel, norm: jnp.abs(kernel) * norm.norm, params, statistics, Norm, where)
