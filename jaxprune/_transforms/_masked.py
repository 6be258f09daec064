"""Fixed masks around an optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

from jaxprune._masks import masking
from jaxprune._transforms import _state, _updates
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
        return KeepMaskedState(_state.fitting(params, masks))

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, KeepMaskedState]:
        del extra_args
        return _updates.constrain(updates, _updates.given(params, "keep_masked"), state.masks), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def masked(optimizer: optax.GradientTransformation, masks: Masks) -> optax.GradientTransformationExtraArgs:
    """Trains only what the masks keep.

    Pruned weights and their gradients are hidden from the optimizer, which sees zeros, so that they enter no moment,
    norm, decay or clip. Updates leave the parameters exactly masked, but for a pruned weight that is NaN or infinite,
    which no sum can make 0: see `apply_updates`. Frequency-pruned leaves are projected in the same way.

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
        kept = _state.fitting(params, masks)
        return MaskedState(kept, _state.owned(optimizer.init(masking.apply(params, kept)), params))

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, MaskedState]:
        params = _updates.given(params, "masked")
        hidden, shown = masking.apply(updates, state.masks), masking.apply(params, state.masks)
        updates, inner = optimizer.update(hidden, state.inner, shown, **extra_args)
        return _updates.constrain(updates, params, state.masks), MaskedState(state.masks, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
