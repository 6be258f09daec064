"""Fixed masks around an optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jaxprune._arrays import meshes, tree
from jaxprune._masks import masking
from jaxprune._masks.frequency import Spectral
from jaxprune._transforms import _state as states
from jaxprune.typing import Masks, Params


class KeepMaskedState(NamedTuple):
    """The state of `keep_masked`."""

    masks: Masks


class MaskedState(NamedTuple):
    """The state of `masked`."""

    masks: Masks
    inner: Any


def keep_masked(masks: Masks) -> optax.GradientTransformationExtraArgs:
    """Rewrites updates so that `params + updates` is exactly masked. Goes last in a chain.

    The optimizer before it still sees gradients of pruned weights; `masked` hides them.

    Args:
      masks: With the structure of the parameters. They are kept in the state, so that a step compiled once runs with
        other masks of the same shapes: put them there with `state._replace(masks=...)`.

    Returns:
      An optax transform. Its update needs `params`.

    Raises:
      ValueError: In `init`, where the masks do not fit the parameters; in `update`, without `params`.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
      >>> optimizer = optax.chain(optax.sgd(0.5), keep_masked({"kernel": jnp.array([[True, False]])}))
      >>> updates, _ = optimizer.update({"kernel": jnp.ones((1, 2))}, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[0.5 0. ]]
    """

    def init_fn(params: Params) -> KeepMaskedState:
        return KeepMaskedState(states.fitting(params, masks))

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, KeepMaskedState]:
        del extra_args
        return constrain(updates, need(params, "keep_masked"), state.masks), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def masked(optimizer: optax.GradientTransformation, masks: Masks) -> optax.GradientTransformationExtraArgs:
    """Trains only what the masks keep.

    Gradients of pruned weights are hidden from the optimizer, so that they enter no moment, norm or clip, and updates
    leave the parameters exactly masked. Frequency-pruned leaves are projected in the same way.

    Args:
      optimizer: Any optax optimizer; extra arguments are passed on to it.
      masks: With the structure of the parameters; kept in the state, as for `keep_masked`.

    Returns:
      An optax optimizer. Its update needs `params`.

    Raises:
      ValueError: In `init`, where the masks do not fit the parameters; in `update`, without `params`.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
      >>> optimizer = masked(optax.adam(0.1), {"kernel": jnp.array([[True, False]])})
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update({"kernel": jnp.ones((1, 2))}, state, params)
      >>> print(optax.apply_updates(params, updates)["kernel"].round(2))
      [[0.9 0. ]]
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init_fn(params: Params) -> MaskedState:
        return MaskedState(states.fitting(params, masks), optimizer.init(params))

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, MaskedState]:
        params = need(params, "masked")
        hidden = masking.apply(updates, state.masks)
        updates, inner = optimizer.update(hidden, state.inner, params, **extra_args)
        return constrain(updates, params, state.masks), MaskedState(state.masks, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def constrain(updates: Params, params: Params, masks: Masks) -> Params:
    """Updates after which the parameters are masked: minus the parameter where it is pruned."""
    return tree.map_with_path(_constrain_leaf, updates, params, masks, names=("parameters", "masks"))


def need(params: Params | None, name: str) -> Params:
    """The parameters, or a `ValueError` that says how to pass them."""
    if params is None:
        raise ValueError(f"`{name}` needs the parameters: call `optimizer.update(grads, state, params)`.")
    return params


def _constrain_leaf(path: str, update: Any, param: Any, mask: Any) -> Any:
    if mask is None:
        return update
    dtype = tree.promote(update.dtype, param.dtype)
    update, param = update.astype(dtype), param.astype(dtype)
    if isinstance(mask, Spectral):
        return mask.project(param + update) - param
    return jnp.where(meshes.like(masking.checked(path, param, mask), param), update, -param)
