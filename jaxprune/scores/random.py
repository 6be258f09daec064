"""Random: the baseline that every criterion has to beat."""

from __future__ import annotations

import jax

from jaxprune import tree
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, PRNGKey, Scores, Where


def random(key: PRNGKey, params: Params, *, where: Where = is_kernel) -> Scores:
    """Scores uniform in [0, 1), the same for the same key: a higher sparsity prunes a superset.

    Args:
      key: From `jax.random.key`.
      params: Any pytree; only shapes matter.
      where: Picks the leaves; the rest get `None`.

    Returns:
      float32 scores.
    """
    chosen = tree.choose(where, params)
    leaves, treedef = jax.tree.flatten(chosen)
    keys = jax.random.split(key, max(1, len(leaves)))
    drawn = [jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=False)]
    return treedef.unflatten(drawn)
