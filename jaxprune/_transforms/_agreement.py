"""Parameters and the masks in an optimizer's state: puts zeros where they belong, and tells whether they are there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune._arrays import checks, tree
from jaxprune._masks import masking, verbs
from jaxprune._transforms import _state
from jaxprune.typing import Masks, Params

_ROUNDING = 4  # in units of the last place of the largest weight: how far a projection may be from itself
_LEAST_ROUNDING = 1e-5  # a transform in float32 rounds more often


def apply_updates(params: Params, updates: Params, opt_state: Any) -> Params:
    """`optax.apply_updates`, after which every pruned weight is 0 whatever it was.

    The updates of `masked`, `gradual` and the like make pruned weights 0 by a sum, `params + updates`. That cannot do
    it where a pruned weight is NaN or infinite, as after a step with such a gradient, or where something between the
    transform and this call changed the updates.

    Args:
      params: The parameters.
      updates: From the optimizer.
      opt_state: The state that came with them, which holds the masks; or masks.

    Returns:
      The new parameters, masked.

    Raises:
      ValueError: The state holds no masks, or they do not fit the parameters.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, jnp.nan]])}
      >>> optimizer = jaxprune.masked(optax.sgd(0.5), {"kernel": jnp.array([[True, False]])})
      >>> updates, state = optimizer.update({"kernel": jnp.ones((1, 2))}, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"], apply_updates(params, updates, state)["kernel"])
      [[0.5 nan]] [[0.5 0. ]]
    """
    return masking.apply(optax.apply_updates(params, updates), _masks(opt_state))


def _masks(masks_or_state: Any) -> Masks:
    """The masks that a state holds, or masks as they are."""
    kinds = jax.tree.leaves(masks_or_state, is_leaf=verbs.is_mask)
    are_masks = bool(kinds) and all(verbs.is_mask(kind) or getattr(kind, "dtype", None) == jnp.bool_ for kind in kinds)
    if are_masks and not _state.holds_masks(masks_or_state):
        return masking.unpack(masks_or_state)
    return _state.masks_of(masks_or_state)


def check_masked(params: Params, masks: Masks | Any) -> None:
    """Raises unless parameters are 0 wherever masks, or the masks in an optimizer's state, prune them.

    To be called at the end of a training, where something may have undone the masks: an average of the weights, or a
    wrapper that moves the parameters by itself.

    Args:
      params: Concrete parameters.
      masks: Masks, or an optimizer state that holds some.

    Raises:
      ValueError: Weights that the masks prune are not 0; the message has paths and numbers. Or the masks do not fit, or
        the state holds none.
      TypeError: Something is traced.

    Examples:
      >>> masks = {"kernel": jnp.array([[True, False]])}
      >>> check_masked({"kernel": jnp.array([[1.0, 0.0]])}, masks)
      >>> try:
      ...     check_masked({"kernel": jnp.array([[1.0, 2.0]])}, masks)
      ... except ValueError as error:
      ...     print(str(error).split(".")[0])
      Weights that the masks prune are not 0: 'kernel' (1 of 1)
    """
    if any(not checks.is_concrete(leaf) for leaf in jax.tree.leaves((params, masks))):
        raise TypeError("`check_masked` looks at values, and these are traced. Call it outside `jit`.")
    given = _masks(masks)
    wrong = list[str]()
    for path, leaf, mask in tree.flatten(params, given, names=("masks",))[0]:
        if mask is None:
            continue
        kept = verbs.of_weights(path, leaf, mask)
        if kept is None:
            difference = float(jnp.max(jnp.abs(verbs.apply(path, leaf, mask) - leaf), initial=0))
            tolerated = max(_LEAST_ROUNDING, _ROUNDING * float(jnp.finfo(leaf.dtype).eps))
            if not difference <= tolerated * float(jnp.max(jnp.abs(leaf), initial=0)):
                wrong.append(f"'{path}' (off by {difference:.2g})")
            continue
        pruned = np.broadcast_to(~np.asarray(kept), leaf.shape)
        alive = int((np.asarray(leaf)[pruned] != 0).sum())
        if alive:
            wrong.append(f"'{path}' ({alive} of {int(pruned.sum())})")
    if wrong:
        raise ValueError(
            f"Weights that the masks prune are not 0: {tree.listed(wrong)}. Call `jaxprune.apply(params, masks)`, and "
            "put what averages or moves parameters inside the transform that holds the masks."
        )
