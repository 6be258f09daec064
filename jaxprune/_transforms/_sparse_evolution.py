"""Sparse evolutionary training: drop the smallest weights, grow at random."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxprune import patterns, scores
from jaxprune._arrays import tree
from jaxprune._transforms import _inputs
from jaxprune._transforms._refreshed import Times
from jaxprune._transforms._regrow import regrowing
from jaxprune.typing import Grads, Masks, Pattern, PRNGKey, Scores


def sparse_evolution(
    key: PRNGKey,
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
    """Trains a sparse model that stays as sparse as it starts, trying new weights at random (SET).

    As `rigl`, but what grows is drawn at random. No dense gradient is needed.

    1. The paper drops the smallest positive and the largest negative weights separately; here the smallest by size go.
    2. The paper's fraction is a constant, which is `drop=0.3`; what falls to zero ends better.

    Args:
      key: From `jax.random.key`; each exchange draws from a key of its own.
      optimizer: Any optax optimizer; extra arguments are passed on to it.
      masks: To start from; the paper's are `jaxprune.random(key, params, sparsity, budget=budgets.erk)`.
      begin: The update of the first exchange.
      end: The update of the last exchange.
      every: Updates between exchanges.
      drop: The fraction of the kept weights to exchange: a constant, or an optax schedule, called with the number of
        updates since `begin`. `None` is `optax.cosine_decay_schedule(0.3, end - begin)`.
      per_leaf: Keep the number of weights of each leaf; else only their sum.
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
      >>> optimizer = sparse_evolution(jax.random.key(0), optax.sgd(0.1), masks, end=100, drop=0.5)
      >>> _, state = optimizer.update(params, optimizer.init(params), params)
      >>> print(jaxprune.masks_of(state)["kernel"].sum())
      2

    References:
      Mocanu et al., 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired
      by network science", alg. 1.
    """

    def growth(step: Any, grads: Grads) -> Scores:
        return scores.random(jax.random.fold_in(key, step), grads, where=lambda _, grad: tree.is_floating(grad))

    times = Times("sparse_evolution", begin, end, every)
    return regrowing(optimizer, masks, growth, times, drop=drop, per_leaf=per_leaf, pattern=pattern)
