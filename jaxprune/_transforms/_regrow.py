"""Exchanging weights at a constant number of non-zeros: what `rigl` and `sparse_evolution` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxprune import budgets, patterns
from jaxprune._arrays import tree, wide
from jaxprune._masks import verbs
from jaxprune._selection import exact, requests
from jaxprune._transforms import _inputs, _state
from jaxprune._transforms._refreshed import Times, refreshed
from jaxprune.typing import Grads, Masks, Params, Pattern, Scores


def regrowing(
    optimizer: optax.GradientTransformation,
    masks: Masks,
    growth: Callable[[Int[Array, ""], Grads], Scores],
    times: Times,
    *,
    drop: _inputs.Schedule | None,
    per_leaf: bool,
    pattern: Pattern,
) -> optax.GradientTransformationExtraArgs:
    """Trains a sparse model that exchanges a fraction of its weights from time to time.

    Args:
      optimizer: Any optax optimizer.
      masks: To start from.
      growth: `growth(step, grads)`: for each leaf with a mask, scores of the weights that might come in.
      times: Of the exchanges.
      drop: The fraction exchanged, by the number of updates since the first exchange; `None` falls from 0.3 to 0.
      per_leaf: Exchange within each leaf, or over all leaves.
      pattern: What is exchanged together.
    """
    _inputs.check(drop, "drop")
    if drop is None:
        drop = optax.cosine_decay_schedule(0.3, max(1, times.end - times.begin))

    def start(params: Params) -> Masks:
        _inputs.check_at(drop, "drop", 0, times.end - times.begin)
        visible = _state.fitting(params, masks)
        chosen = _with_masks(lambda leaf, mask: leaf, params, visible)
        shapes = jax.eval_shape(lambda s: exact.select(s, jax.tree.map(lambda _: 0, s), pattern=pattern), chosen)
        return _state.sharded_like(params, tree.map_with_path(_start_leaf, params, visible, shapes))

    def refresh(step: Any, params: Params, grads: Grads, masks: Masks) -> Masks:
        fraction = _inputs.at(drop, step - times.begin)
        return exchange(params, masks, growth(step, grads), fraction, per_leaf=per_leaf, pattern=pattern)

    return refreshed(optimizer, start, refresh, times)


def exchange(
    params: Params,
    masks: Masks,
    growth: Scores,
    drop: float | Float[Array, ""],
    *,
    per_leaf: bool = True,
    pattern: Pattern = patterns.Unstructured(),
) -> Masks:
    """Drops the smallest kept weights and lets as many others in, those with the highest growth scores.

    A dropped weight may come back at once; it then keeps its value.

    Args:
      params: Any pytree.
      masks: Of its structure; `None` leaves stay dense.
      growth: Scores with the structure of `params`; those of leaves without a mask are ignored.
      drop: The fraction of kept groups to drop.
      per_leaf: Whether the number of each leaf's groups stays, or only that of all leaves together.
      pattern: What is exchanged together. Under N:M single weights are dropped, and each group is filled up again.

    Returns:
      Masks that keep as many groups as before.
    """
    sizes = _with_masks(lambda leaf, mask: jnp.where(mask, jnp.abs(leaf), -jnp.ones_like(leaf)), params, masks)
    groups = jax.tree.map(_count_groups, masks, _by_leaf(pattern, masks))
    stay = jax.tree.map(lambda count: budgets.keep_count(count, jnp.asarray(drop, jnp.float32)), groups)
    if not per_leaf:
        groups, stay = (wide.added(jax.tree.leaves(counts)) for counts in (groups, stay))
    # Dropping from whole N:M groups would leave nothing to choose, so there single weights go.
    kept = exact.select(sizes, stay, pattern=pattern if pattern.sparsity is None else patterns.Unstructured())
    return exact.select(_with_masks(_kept_first, growth, kept), groups, pattern=pattern)


def _with_masks(function: Callable[[Any, Any], Any], values: Any, masks: Masks) -> Any:
    """Maps over the leaves that have a mask; the others get `None`."""
    return tree.map_with_path(lambda _, value, mask: None if mask is None else function(value, mask), values, masks)


def _kept_first(score: Any, kept: Any) -> Any:
    """The growth scores, with what is kept above all of them."""
    return jnp.where(kept, jnp.full_like(score, jnp.inf), jnp.minimum(score, jnp.finfo(score.dtype).max))


def _count_groups(mask: Any, pattern: Pattern) -> Int[Array, ""] | wide.Wide:
    return wide.counted(pattern.pool(mask.astype(jnp.float32)) > 0)


def _by_leaf(pattern: Pattern, masks: Masks) -> Any:
    return jax.tree.unflatten(jax.tree.structure(masks), requests.by_leaf(pattern, masks))


def _start_leaf(path: str, leaf: Any, mask: Any, expected: Any) -> Any:
    """The mask in the shape that an exchange will give it."""
    if mask is None:
        return None
    if verbs.of_weights(path, leaf, mask) is None:
        raise TypeError(f"'{path}' has a frequency mask, and frequencies are not exchanged. Use `masked` for them.")
    if jnp.broadcast_shapes(mask.shape, expected.shape) != expected.shape:
        raise ValueError(
            f"'{path}' of shape {leaf.shape} has a mask of shape {mask.shape}; this pattern makes masks of shape "
            f"{expected.shape}. Make the masks by the same pattern."
        )
    return jnp.broadcast_to(mask, expected.shape)
