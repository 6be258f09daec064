"""Pruning that follows a schedule while the model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune import masks as masking
from jaxprune.transforms import inputs
from jaxprune.transforms import state as states
from jaxprune.transforms.masked import constrain, need
from jaxprune.typing import Masks, Params, Sparsity


class GradualState(NamedTuple):
    """The state of `gradual`.

    Attributes:
      step: How many updates were made.
      masks: In force since the last refresh; they keep everything before the first. `Packed` if so asked.
      inner: The optimizer's own state.
    """

    step: Int[Array, ""]
    masks: Masks
    inner: Any


def gradual(
    optimizer: optax.GradientTransformation,
    strategy: inputs.Strategy,
    sparsity: Callable[[Any], Any] | float | None,
    *,
    begin: int = 0,
    end: int,
    every: int = 1,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Prunes while training: the strategy chooses the masks anew from time to time, inside the jitted step.

    Masks are refreshed at `begin`, every `every` updates from there, and at `end`, whatever `every` is, so the last
    sparsity of the schedule is always reached. Updates are counted from 0. Between refreshes, and after the last, the
    optimizer is wrapped as by `masked`. What the optimizer remembers of a weight is zeroed when the weight is pruned.

    Args:
      optimizer: Any optax optimizer; extra arguments are passed on to it.
      strategy: `strategy(params, sparsity)`, such as `jaxprune.magnitude` or a `functools.partial` of it; or
        `WithGradients(strategy)` or `WithKey(strategy, key)` for one that needs more.
      sparsity: An optax schedule, called with the number of updates since `begin`; or a constant. The usual cubic is
        `optax.polynomial_schedule(0.0, final, power=3, transition_steps=end - begin)`. For a pattern that fixes its
        sparsity give `None`.
      begin: The update of the first refresh.
      end: The update of the last refresh.
      every: Updates between refreshes.
      packed: Keep the masks in the state at one bit per weight instead of a byte, and unpack them inside each step.

    Returns:
      An optax optimizer. Its update needs `params`. `masks_of(state)` are the masks; its state can be checkpointed as
      any other.

    Raises:
      ValueError: Not 0 <= begin <= end, or every < 1.

    Example:
      >>> schedule = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=100)
      >>> optimizer = gradual(optax.adam(1e-3), jaxprune.magnitude, schedule, begin=0, end=100, every=10)
      >>> state = optimizer.init({"kernel": jnp.ones((4, 4))})

    References:
      Zhu and Gupta, 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression".
    """
    if not 0 <= begin <= end or every < 1:
        raise ValueError(
            f"`gradual` needs 0 <= begin <= end and every >= 1; got begin={begin}, end={end}, every={every}."
        )
    optimizer = optax.with_extra_args_support(optimizer)
    at_rest = masking.pack if packed else lambda masks: masks

    def sparsity_at(step: Any) -> Sparsity | None:
        return jnp.asarray(sparsity(step - begin), jnp.float32) if callable(sparsity) else sparsity

    def init_fn(params: Params) -> GradualState:
        shapes = jax.eval_shape(lambda p: inputs.call(strategy, p, p, sparsity_at(jnp.int32(begin))), params)
        return GradualState(jnp.zeros((), jnp.int32), at_rest(states.dense(shapes, params)), optimizer.init(params))

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, GradualState]:
        params = need(params, "gradual")

        def refresh() -> Masks:
            return at_rest(inputs.call(strategy, params, updates, sparsity_at(state.step)))

        resting = lax.cond(is_refresh(state.step), refresh, lambda: state.masks)
        masks = masking.unpack(resting)
        # At every step, not only at a refresh: XLA fuses it into the optimizer, while a state that passes through
        # `cond` would be copied.
        inner = states.zero_pruned(state.inner, params, masks)
        hidden = masking.apply(updates, masks)
        new_updates, inner = optimizer.update(hidden, inner, params, **extra_args)
        new_updates = constrain(new_updates, params, masks)
        return new_updates, GradualState(state.step + 1, resting, inner)

    def is_refresh(step: Int[Array, ""]) -> Bool[Array, ""]:
        due = ((step - begin) % every == 0) | (step == end)
        return due & (step >= begin) & (step <= end)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
