"""RIA: a weight matters by its share among its neighbours, and by its input."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxprune._arrays import checks
from jaxprune.scores._measured import map_measured
from jaxprune.scores._wanda import sizes
from jaxprune.statistics import Norm
from jaxprune.typing import Params, Scores, Statistics, Where


def ria(params: Params, statistics: Statistics, *, power: float = 0.5, where: Where | None = None) -> Scores:
    r"""Scores each weight by its relative importance times its input's norm to a power.

    $$\left(\frac{|W_{ij}|}{\sum_k |W_{kj}|} + \frac{|W_{ij}|}{\sum_k |W_{ik}|}\right) \lVert x_i \rVert_2^a$$

    The first share is among the weights of the same output, the second among those of the same input: inputs and
    outputs whose weights are all small compete on equal terms, so that fewer of them lose all of theirs.

    Args:
      params: Any pytree, kernels in any layout.
      statistics: From `calibrate(..., statistic="norm")`.
      power: $a$; the paper takes 0.5.
      where: Picks the leaves; the rest get `None`. By default all that were measured.

    Returns:
      float32 scores (float64 for float64 parameters).

    Raises:
      ValueError: A picked leaf has no such statistic; the message names its path.

    References:
      Zhang et al., 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", eq. 4.
    """
    power = checks.real(power, "power")

    def score(kernel: Any, norm: Norm) -> Any:
        size = jnp.abs(kernel)
        sums = [jnp.sum(size, axis, keepdims=True) for axis in (norm.axes.inputs, norm.axes.outputs)]
        shares = [size / jnp.where(total > 0, total, jnp.ones_like(total)) for total in sums]
        return (shares[0] + shares[1]) * sizes(norm) ** power

    return map_measured(score, params, statistics, Norm, where)
