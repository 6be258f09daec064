"""Random: the baseline that every criterion has to beat."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._arrays import tree
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, PRNGKey, Scores, Where


def random(key: PRNGKey, params: Params, *, where: Where = is_kernel) -> Scores:
    """Scores uniform in [0, 1), the same for the same key: a higher sparsity prunes a superset.

    Args:
      key: From `jax.random.key`.
      params: Any pytree; only shapes matter, and which weights are NaN: they score NaN.
      where: Picks the leaves; the rest get `None`.

    Returns:
      float32 scores.
    """
    _check_key(key)
    chosen = tree.choose(where, params)
    leaves, treedef = jax.tree.flatten(chosen)
    keys = jax.random.split(key, max(1, len(leaves)))
    return treedef.unflatten([_drawn(k, leaf) for k, leaf in zip(keys, leaves, strict=False)])


def _check_key(key: Any) -> None:
    is_typed = tree.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    is_raw = tree.is_array(key) and key.dtype == jnp.uint32 and key.ndim == 1
    if not is_typed and not is_raw:
        raise TypeError(
            "`random` takes a key first; got "
            f"{type(key).__name__}. Call `random(jax.random.key(0), params)`, with the sparsity last for masks."
        )


def _drawn(key: PRNGKey, leaf: Any) -> Any:
    scores = jax.random.uniform(key, leaf.shape)
    if isinstance(leaf, jax.ShapeDtypeStruct) or not tree.is_floating(leaf):
        return scores
    # NaN is pruned first, as under any other criterion. On a mesh this also gives the scores the leaf's sharding.
    return jnp.where(jnp.isnan(leaf), jnp.nan, scores)
