"""Maps over kernels and their statistics, which are checked to belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._arrays import checks, tree
from jaxprune.typing import Params, Scores, Statistics, Where

_NAMES = {"Norm": "norm", "Variance": "variance", "Gram": "gram"}


def map_measured(
    function: Callable[[Any, Any], Any], params: Params, statistics: Statistics, kind: type, where: Where | None
) -> Scores:
    """Maps `function(kernel, statistic)` over the picked leaves, kernels as float32 or wider; the rest get `None`.

    Without `where`, all leaves that have a statistic are picked.

    Raises:
      ValueError: A picked leaf has no statistic of the kind, or it holds NaN, or no leaf has one; the message names the
        path.
    """

    def score(path: str, leaf: Any, statistic: Any) -> Any:
        tree.check_floating(path, leaf)
        if not isinstance(statistic, kind):
            raise ValueError(
                f"'{path}' needs a statistic from `calibrate(..., statistic={_NAMES[kind.__name__]!r})`; got "
                f"{type(statistic).__name__}. Leave it out with `where=`."
            )
        for measured in jax.tree.leaves(statistic):
            checks.finite(path, measured, "statistics", "Look for NaN in the batches.")
        return function(leaf.astype(tree.promote(leaf.dtype, jnp.float32)), statistic)

    if where is not None:
        return tree.map_picked(score, where, params, statistics, names=("statistics",))
    found = tree.map_with_path(
        lambda path, leaf, statistic: None if statistic is None else score(path, leaf, statistic),
        params,
        statistics,
        names=("statistics",),
    )
    if not jax.tree.leaves(found):
        raise ValueError(
            f"No leaf has a statistic; there are {tree.some(tree.paths(params))}. Give what `calibrate` returned for "
            "these parameters."
        )
    return found
