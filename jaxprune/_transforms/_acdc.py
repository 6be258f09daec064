"""AC/DC: phases of sparse and of dense training in turn."""

from __future__ import annotations

from typing import Any

import optax
from jax import lax

from jaxprune._transforms import _inputs, _state
from jaxprune._transforms._refreshed import Times, refreshed
from jaxprune.typing import Grads, Masks, Params


def acdc(
    optimizer: optax.GradientTransformation,
    strategy: _inputs.Strategy,
    sparsity: _inputs.Schedule | None,
    *,
    begin: int = 0,
    end: int,
    every: int,
) -> optax.GradientTransformationExtraArgs:
    """Trains sparse and dense in turn, and ends sparse: one run gives a model that knew both.

    Dense up to `begin`; then phases of `every` updates, sparse, dense, sparse and so on; sparse for good from `end`. A
    dense phase starts pruned weights from 0 with nothing remembered in the optimizer.

    Args:
      optimizer: Any optax optimizer; extra arguments are passed on to it.
      strategy: `strategy(params, sparsity)`; the paper's is `jaxprune.magnitude` with the budget `global_`. See
        `gradual`.
      sparsity: Of the sparse phases: a constant, or an optax schedule, called with the number of updates since
        `begin`; `None` for a pattern that fixes it.
      begin: The update at which the first sparse phase starts.
      end: The update from which on the model is sparse.
      every: Updates in a phase; the paper's are five epochs.

    Returns:
      An optax optimizer. Its update needs `params`. `masks_of(state)` are the masks, which keep everything in a dense
      phase.

    Raises:
      ValueError: Not 0 <= begin <= end, or every < 1.

    Examples:
      >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
      >>> optimizer = acdc(optax.sgd(0.1), jaxprune.magnitude, 0.5, end=3, every=1)
      >>> state = optimizer.init(params)
      >>> for _ in range(4):
      ...     _, state = optimizer.update(params, state, params)
      ...     print(jaxprune.masks_of(state)["kernel"])
      [[ True False]]
      [[ True  True]]
      [[ True False]]
      [[ True False]]

    References:
      Peste et al., 2021, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks", alg. 1.
    """

    def start(params: Params) -> Masks:
        _inputs.check_at(sparsity, "sparsity", 0, end - begin)
        return _state.keep_all(params, _inputs.shapes(strategy, params, sparsity))

    def refresh(step: Any, params: Params, grads: Grads, masks: Masks) -> Masks:
        compressed = ((step - begin) // every % 2 == 0) | (step == end)
        return lax.cond(
            compressed,
            lambda: _inputs.call(strategy, params, grads, _inputs.at(sparsity, step - begin)),
            lambda: _state.keep_all(params, masks),
        )

    times = Times("acdc", begin, end, every)
    _inputs.check(sparsity, "sparsity")
    return refreshed(optimizer, start, refresh, times)
