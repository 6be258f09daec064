"""Variance: an output that hardly varies carries little information."""

from __future__ import annotations

from typing import Any

from jaxprune.scores._measured import map_measured
from jaxprune.statistics import Variance
from jaxprune.typing import Params, Scores, Statistics, Where


def variance(params: Params, statistics: Statistics, *, where: Where | None = None) -> Scores:
    """Scores each output of a kernel by its variance over the data, before a bias is added.

    Args:
      params: Any pytree, kernels in any layout.
      statistics: From `calibrate(..., statistic="variance")`.
      where: Picks the leaves; the rest get `None`. By default all that were measured.

    Returns:
      float32 scores of size 1 along the inputs of each kernel: all weights of an output share one.

    Raises:
      ValueError: A picked leaf has no such statistic; the message names its path.
    """

    def score(_: Any, measured: Variance) -> Any:
        return measured.outputs.variance

    return map_measured(score, params, statistics, Variance, where)
