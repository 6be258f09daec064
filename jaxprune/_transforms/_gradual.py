"""Pruning that follows a schedule while the model trains."""

from __future__ import annotations

from typing import Any

import optax

from jaxprune._transforms import _inputs, _state
from jaxprune._transforms._refreshed import Times, refreshed
from jaxprune.typing import Grads, Masks, Params


def gradual(
    optimizer: optax.GradientTransformation,
    strategy: _inputs.Strategy,
    sparsity: _inputs.Schedule | None,
    *,
    begin: int = 0,
    end: int,
    every: int = 1,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Prunes while training: the strategy chooses the masks anew from time to time, inside the jitted step.

    Masks are refreshed at `begin`, every `every` updates from there, and at `end`, whatever `every` is, so the last
    sparsity of the schedule is always reached. Updates are counted from 0. Between refreshes, and after the last, the
    optimizer is wrapped as by `masked`. What the optimizer remembers of a weight is zeroed when the weight is pruned;
    one that comes back starts from 0 with nothing remembered.

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
      ValueError: Not 0 <= begin <= end, or every < 1; or the sparsity at the first or the last refresh is not between
        0 and 1. Between these, what a schedule gives is clipped.

    Examples:
      >>> schedule = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=100)
      >>> optimizer = gradual(optax.adam(1e-3), jaxprune.magnitude, schedule, begin=0, end=100, every=10)
      >>> state = optimizer.init({"kernel": jnp.ones((4, 4))})

    References:
      Zhu and Gupta, 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression".
    """

    def start(params: Params) -> Masks:
        _inputs.check_at(sparsity, "sparsity", 0, end - begin)
        return _state.keep_all(params, _inputs.shapes(strategy, params, sparsity))

    def refresh(step: Any, params: Params, grads: Grads, masks: Masks) -> Masks:
        del masks
        return _inputs.call(strategy, params, grads, _inputs.at(sparsity, step - begin))

    times = Times("gradual", begin, end, every)
    _inputs.check(sparsity, "sparsity")
    return refreshed(optimizer, start, refresh, times, regrown_wait=False, packed=packed)
