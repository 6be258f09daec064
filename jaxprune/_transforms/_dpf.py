"""Dynamic pruning with feedback: the straight-through estimator over masks that follow dense weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from jaxprune._masks import masking
from jaxprune._transforms import _inputs, _state, _updates
from jaxprune._transforms._refreshed import Times
from jaxprune.typing import Masks, Params


class FeedbackState(NamedTuple):
    """The state of `dpf`.

    Attributes:
      step: How many updates were made.
      masks: In force since the last refresh; they keep everything before the first.
      dense: The weights behind the masks.
      inner: The optimizer's own state.
    """

    step: Int[Array, ""]
    masks: Masks
    dense: Params
    inner: Any


def dpf(
    optimizer: optax.GradientTransformation,
    strategy: _inputs.Strategy,
    sparsity: _inputs.Schedule | None,
    *,
    begin: int = 0,
    end: int,
    every: int = 1,
    decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Trains dense weights by the gradients of the pruned model (magnitude STE), so that what is pruned can come back.

    The parameters are the pruned ones. The dense weights are in the state, and every gradient goes straight through to
    all of them. Parameters and kept dense weights may differ in the last bit, which does not add up.

    Args:
      optimizer: Any optax optimizer; it trains the dense weights. Extra arguments are passed on to it.
      strategy: Applied to the dense weights; see `gradual`. With the pattern `NM(n, m)`, `every=1` and a `decay` this
        is SR-STE.
      sparsity: An optax schedule, called with the number of updates since `begin`; a constant; or `None` for a pattern
        that fixes it.
      begin: The update of the first refresh.
      end: The update of the last refresh.
      every: Updates between refreshes; the paper's are 16.
      decay: Pulls pruned dense weights towards 0, as `optax.add_decayed_weights` would; SR-STE's is 2e-4.

    Returns:
      An optax optimizer. Its update needs `params`. `masks_of(state)` are the masks.

    Raises:
      ValueError: Not 0 <= begin <= end, or every < 1.

    Examples:
      >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
      >>> optimizer = dpf(optax.sgd(1.0), jaxprune.magnitude, 0.5, end=100)
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update({"kernel": jnp.array([[0.0, -1.5]])}, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["kernel"])
      [[3. 0.]]
      [[0. 4.]]

    References:
      Lin et al., 2020, "Dynamic Model Pruning with Feedback", alg. 1; Zhou et al., 2021, "Learning N:M Fine-grained
      Structured Sparse Neural Networks From Scratch", eq. 9, for `decay`.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    times = Times("dpf", begin, end, every)
    _inputs.check(sparsity, "sparsity")

    def init_fn(params: Params) -> FeedbackState:
        _inputs.check_at(sparsity, "sparsity", 0, end - begin)
        masks = _state.keep_all(params, _inputs.shapes(strategy, params, sparsity))
        return FeedbackState(
            jnp.zeros((), jnp.int32),
            masks,
            jax.tree.map(jnp.copy, params),
            _state.owned(optimizer.init(params), params),
        )

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, FeedbackState]:
        params = _updates.given(params, "dpf")
        grads = decayed(updates, state.dense, state.masks) if decay else updates
        new, inner = optimizer.update(grads, state.inner, state.dense, **extra_args)
        dense = optax.apply_updates(state.dense, new)
        masks = lax.cond(
            times.include(state.step),
            lambda: _state.sharded_like(
                params, _inputs.call(strategy, dense, updates, _inputs.at(sparsity, state.step - begin))
            ),
            lambda: state.masks,
        )
        new_updates = _updates.towards(masking.apply(dense, masks), params)
        return new_updates, FeedbackState(state.step + 1, masks, dense, inner)

    def decayed(grads: Params, dense: Params, masks: Masks) -> Params:
        kept = masking.apply(dense, masks)
        return jax.tree.map(
            lambda grad, all_, some: grad + decay * (all_ - some).astype(grad.dtype), grads, dense, kept
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
