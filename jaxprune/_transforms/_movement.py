"""Movement pruning: keep the weights that move away from zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from jaxprune._arrays import tree
from jaxprune._masks import masking
from jaxprune._transforms import _inputs, _state, _updates
from jaxprune._transforms._refreshed import Times
from jaxprune.filters import is_kernel
from jaxprune.typing import Masks, Params, Scores, Sparsity, Where


class MovementState(NamedTuple):
    """The state of `movement`.

    Attributes:
      step: How many updates were made.
      masks: In force since the last refresh; they keep everything before the first.
      scores: Learned, float32; `None` where a leaf stays dense.
      dense: The weights behind the masks.
      learner: The state of the scores' optimizer.
      inner: The optimizer's own state.
    """

    step: Int[Array, ""]
    masks: Masks
    scores: Scores
    dense: Params
    learner: Any
    inner: Any


def movement(
    optimizer: optax.GradientTransformation,
    strategy: Callable[[Scores, Sparsity | None], Masks],
    sparsity: _inputs.Schedule | None,
    *,
    begin: int = 0,
    end: int,
    every: int = 1,
    learner: optax.GradientTransformation = optax.sgd(1.0),  # noqa: B008
    where: Where = is_kernel,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes by scores that are learned with the weights: for fine-tuning, where sizes say what was, not what is.

    The parameters are the pruned ones; the dense weights $W$ and the scores $S$ are in the state. Scores receive the
    gradient $\partial L / \partial S = \partial L / \partial W' \cdot W$ straight through the masks, so that they rise
    where a weight moves away from zero, pruned or not. A dense weight that is pruned receives no gradient: under plain
    gradient descent it keeps its value; momentum and weight decay still move it.

    Args:
      optimizer: Any optax optimizer; it trains the weights. Extra arguments are passed on to it.
      strategy: `strategy(scores, sparsity)`, such as `jaxprune.from_scores` or a `functools.partial` of it; the paper's
        budget is `global_`.
      sparsity: An optax schedule, called with the number of updates since `begin`; a constant; or `None` for a pattern
        that fixes it. The paper's is the cubic one of `gradual`.
      begin: The update of the first refresh.
      end: The update of the last refresh.
      every: Updates between refreshes.
      learner: Trains the scores, which start at 0. Under plain gradient descent its rate makes no difference to their
        order.
      where: Picks the leaves to prune; the rest get `None`.

    Returns:
      An optax optimizer. Its update needs `params`. `masks_of(state)` are the masks.

    Raises:
      ValueError: Not 0 <= begin <= end, or every < 1.

    Examples:
      >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
      >>> optimizer = movement(optax.sgd(0.1), jaxprune.from_scores, 0.5, end=100)
      >>> grads = {"kernel": jnp.array([[1.0, -1.0]])}  # the first weight shrinks, the second grows
      >>> _, state = optimizer.update(grads, optimizer.init(params), params)
      >>> print(jaxprune.masks_of(state)["kernel"])
      [[False  True]]

    References:
      Sanh et al., 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", sec. 4.
    """
    optimizer, learner = optax.with_extra_args_support(optimizer), optax.with_extra_args_support(learner)
    times = Times("movement", begin, end, every)
    _inputs.check(sparsity, "sparsity")

    def init_fn(params: Params) -> MovementState:
        _inputs.check_at(sparsity, "sparsity", 0, end - begin)
        chosen = tree.choose(where, params)
        scores = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), chosen)
        shapes = jax.eval_shape(lambda s: strategy(s, _inputs.at(sparsity, jnp.int32(0))), scores)
        masks = _state.keep_all(params, shapes)
        dense = jax.tree.map(jnp.copy, params)
        return MovementState(
            jnp.zeros((), jnp.int32),
            masks,
            scores,
            dense,
            learner.init(scores),
            _state.owned(optimizer.init(params), params),
        )

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, MovementState]:
        params = _updates.given(params, "movement")
        slopes = tree.map_with_path(_slope, updates, state.dense, state.scores)
        moved, learned = learner.update(slopes, state.learner, state.scores)
        scores = optax.apply_updates(state.scores, moved)
        hidden = masking.apply(updates, state.masks)
        new, inner = optimizer.update(hidden, state.inner, state.dense, **extra_args)
        dense = optax.apply_updates(state.dense, new)
        masks = lax.cond(
            times.include(state.step),
            lambda: _state.sharded_like(params, strategy(scores, _inputs.at(sparsity, state.step - begin))),
            lambda: state.masks,
        )
        new_updates = _updates.towards(masking.apply(dense, masks), params)
        return new_updates, MovementState(state.step + 1, masks, scores, dense, learned, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _slope(path: str, grad: Any, weight: Any, score: Any) -> Any:
    """The gradient of a leaf's scores."""
    del path
    return None if score is None else grad.astype(jnp.float32) * weight.astype(jnp.float32)
