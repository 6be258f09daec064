"""Updates after which the parameters are what a transform wants, and the check that it was given them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._arrays import tree
from jaxprune._masks import verbs
from jaxprune.typing import Masks, Params


def given(params: Params | None, name: str) -> Params:
    """The parameters, or a `ValueError` that says how to pass them."""
    if params is None:
        raise ValueError(f"`{name}` needs the parameters: call `optimizer.update(grads, state, params)`.")
    return params


def constrain(updates: Params, params: Params, masks: Masks) -> Params:
    """Updates after which the parameters are masked."""
    return tree.map_with_path(verbs.constrain, updates, params, masks, names=("parameters", "masks"))


def towards(target: Params, params: Params) -> Params:
    """Updates after which the parameters are the target, to the last bit but one, and exactly 0 where it is."""
    return jax.tree.map(_difference, target, params)


def _difference(target: Any, param: Any) -> Any:
    wide = tree.promote(param.dtype, jnp.float32)
    return target.astype(wide) - param.astype(wide)
