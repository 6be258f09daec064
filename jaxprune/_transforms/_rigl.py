"""RigL: drop the smallest weights, grow where the gradient is largest."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from jaxprune import patterns
from jaxprune._arrays import tree
from jaxprune._transforms import _inputs
from jaxprune._transforms._refreshed import Times
from jaxprune._transforms._regrow import regrowing
from jaxprune.typing import Grads, Masks, Pattern, Scores


def rigl(
    optimizer: optax.GradientTransformation,
    masks: Masks,
    *,
    begin: int = 0,
    end: int,
    every: int = 100,
    drop: _inputs.Schedule | None = None,
    per_leaf: bool = True,
    pattern: Pattern = patterns.Unstructured(),
) -> optax.GradientTransformationExtraArgs:
    """Trains a sparse model that stays as sparse as it starts, and moves its weights to where the loss wants them.

    From time to time the smallest weights are dropped and as many are grown, from zero and with nothing remembered in
    the optimizer, where the dense gradient is largest. Dense gradients are looked at in those steps alone.

    1. A weight that was dropped may be grown in the same step; it then keeps its value, as in the authors' code.
    2. The kept weights are trained in a step that exchanges, too; the paper leaves that step out.

    Args:
      optimizer: Any optax optimizer; extra arguments are passed on to it.
      masks: To start from; the paper's are `jaxprune.random(key, params, sparsity, budget=budgets.erk)`.
      begin: The update of the first exchange.
      end: The update of the last exchange, best at about three quarters of the training.
      every: Updates between exchanges.
      drop: The fraction of the kept weights to exchange: a constant, or an optax schedule, called with the number of
        updates since `begin`. `None` is the paper's `optax.cosine_decay_schedule(0.3, end - begin)`.
      per_leaf: Keep the number of weights of each leaf; else only their sum, and magnitudes and gradients of all leaves
        compete.
      pattern: What is exchanged together; give the one that the masks were made by. N:M groups keep their n.

    Returns:
      An optax optimizer. Its update needs `params`. `masks_of(state)` are the masks.

    Raises:
      ValueError: Not 0 <= begin <= end, or every < 1; in `init`, where the masks do not fit the parameters or the
        pattern.
      TypeError: In `init`, where a mask is a frequency mask.

    Examples:
      >>> params = {"kernel": jnp.array([[3.0, 1.0, 0.0, 0.0]])}
      >>> masks = {"kernel": jnp.array([[True, True, False, False]])}
      >>> optimizer = rigl(optax.sgd(0.1), masks, end=100, drop=0.5)
      >>> grads = {"kernel": jnp.array([[0.0, 0.0, 1.0, 2.0]])}
      >>> _, state = optimizer.update(grads, optimizer.init(params), params)
      >>> print(jaxprune.masks_of(state)["kernel"])
      [[ True False False  True]]

    References:
      Evci et al., 2020, "Rigging the Lottery: Making All Tickets Winners", alg. 1.
    """

    def growth(step: Any, grads: Grads) -> Scores:
        del step
        return tree.map_with_path(lambda _, grad: jnp.abs(grad) if tree.is_floating(grad) else grad, grads)

    times = Times("rigl", begin, end, every)
    return regrowing(optimizer, masks, growth, times, drop=drop, per_leaf=per_leaf, pattern=pattern)
