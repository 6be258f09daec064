"""Maps over kernels and their statistics, which are checked to belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxprune._arrays import tree
from jaxprune.typing import Params, Scores, Statistics, Where

_NAMES = {"Norm": "norm", "Variance": "variance", "Gram": "gram"}


def map_measured(
    function: Callable[[Any, Any], Any], params: Params, statistics: Statistics, kind: type, where: Where
) -> Scores:
    """Maps `function(kernel, statistic)` over the picked leaves, kernels as float32 or wider; the rest get `None`.

    Raises:
      ValueError: A picked leaf has no statistic of the kind, or one of another shape; the message names its path.
    """

    def score(path: str, leaf: Any, statistic: Any) -> Any:
        tree.check_floating(path, leaf)
        if not isinstance(statistic, kind):
            raise ValueError(
                f"'{path}' needs a statistic from `calibrate(..., statistic={_NAMES[kind.__name__]!r})`; got "
                f"{type(statistic).__name__}. Leave it out with `where=`."
            )
        return function(leaf.astype(tree.promote(leaf.dtype, jnp.float32)), statistic)

    return tree.map_picked(score, where, params, statistics, names=("statistics",))
