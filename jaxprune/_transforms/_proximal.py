"""Proximal steps: soft thresholding for the L1 norm, of groups for the group lasso."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxprune import patterns
from jaxprune._arrays import checks, tree
from jaxprune._masks import masking
from jaxprune._selection import requests
from jaxprune._transforms import _inputs, _state, _updates
from jaxprune.filters import is_kernel
from jaxprune.typing import Masks, Params, Pattern, Where


class ProximalState(NamedTuple):
    """The state of `soft_threshold` and `group_lasso`.

    Attributes:
      step: How many updates were made.
      masks: What is not 0.
      inner: The optimizer's own state.
    """

    step: Int[Array, ""]
    masks: Masks
    inner: Any


def soft_threshold(
    optimizer: optax.GradientTransformation,
    threshold: _inputs.Schedule,
    *,
    end: int | None = None,
    where: Where = is_kernel,
) -> optax.GradientTransformationExtraArgs:
    r"""Pulls every weight towards 0 by a threshold after each update: the proximal step of an L1 penalty.

    $w \leftarrow \mathrm{sign}(w) \max(|w| - t, 0)$. Weights become exactly 0, and may come back while the penalty
    lasts. The data decide how sparse that is; a larger threshold gives more.

    Args:
      optimizer: Any optax optimizer; extra arguments are passed on to it.
      threshold: $t$, by the number of updates: a constant or an optax schedule. The penalty's weight times the learning
        rate, where that has one.
      end: From this update on nothing is pulled, and what is 0 stays 0, so that the rest recovers its size; `None`
        never.
      where: Picks the leaves.

    Returns:
      An optax optimizer. Its update needs `params`. `masks_of(state)` say what is not 0.

    Examples:
      >>> params = {"kernel": jnp.array([[3.0, -0.5]])}
      >>> optimizer = soft_threshold(optax.sgd(0.1), 1.0)
      >>> updates, state = optimizer.update({"kernel": jnp.zeros((1, 2))}, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"], jaxprune.masks_of(state)["kernel"])
      [[2. 0.]] [[ True False]]

    References:
      Daubechies et al., 2004, "An iterative thresholding algorithm for linear inverse problems with a sparsity
      constraint".
    """
    return _with_penalty("soft_threshold", optimizer, threshold, end, patterns.Unstructured(), where)


def group_lasso(
    optimizer: optax.GradientTransformation,
    threshold: _inputs.Schedule,
    *,
    pattern: Pattern = patterns.Channel(-1),
    end: int | None = None,
    where: Where = is_kernel,
) -> optax.GradientTransformationExtraArgs:
    r"""Pulls whole groups of weights towards 0 after each update: the proximal step of a group lasso.

    $w_g \leftarrow w_g \max(1 - t \sqrt{n_g} / \lVert w_g \rVert, 0)$ for each group of $n_g$ weights, so that groups
    of all sizes compare by the root mean square of their weights.

    Args:
      optimizer: Any optax optimizer; extra arguments are passed on to it.
      threshold: $t$; see `soft_threshold`.
      pattern: The groups: channels, or blocks.
      end: From this update on nothing is pulled, and what is 0 stays 0; `None` never.
      where: Picks the leaves. Leave out the last kernel where the groups are outputs, which are the model's there.

    Returns:
      An optax optimizer. Its update needs `params`. `masks_of(state)` say which groups are not 0.

    Raises:
      ValueError: The pattern fixes the sparsity, as N:M does.

    Examples:
      >>> params = {"kernel": jnp.array([[3.0, 0.5], [-3.0, 0.5]])}
      >>> optimizer = group_lasso(optax.sgd(0.1), 1.0)
      >>> updates, state = optimizer.update({"kernel": jnp.zeros((2, 2))}, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"], jaxprune.masks_of(state)["kernel"])
      [[ 2.  0.]
       [-2.  0.]] [[ True False]]

    References:
      Yuan and Lin, 2006, "Model selection and estimation in regression with grouped variables", eq. 2.4.
    """
    if pattern.sparsity is not None:
        raise ValueError(f"`group_lasso` needs groups that may go whole; `{pattern}` keeps part of each. Use `dpf`.")
    return _with_penalty("group_lasso", optimizer, threshold, end, pattern, where)


def _with_penalty(
    name: str,
    optimizer: optax.GradientTransformation,
    threshold: _inputs.Schedule,
    end: int | None,
    pattern: Pattern,
    where: Where,
) -> optax.GradientTransformationExtraArgs:
    optimizer = optax.with_extra_args_support(optimizer)
    if not callable(threshold) and checks.is_concrete(threshold):
        checks.positive(threshold, "threshold", zero=True)

    def norms(params: Params) -> Any:
        """The root mean square of each group, float32."""
        chosen = tree.choose(where, params)
        squares = jax.tree.map(lambda leaf: jnp.square(leaf.astype(jnp.float32)), chosen)
        return tree.map_with_path(lambda path, x: jnp.sqrt(requests.fitting(pattern.pool, path, x)), squares)

    def spread(values: Any, params: Params) -> Any:
        """From one value a group to an array that broadcasts against the leaf."""
        return tree.map_with_path(
            lambda _, leaf, value: None if value is None else pattern.expand(value, leaf.shape), params, values
        )

    def init_fn(params: Params) -> ProximalState:
        masks = spread(jax.tree.map(lambda norm: norm > 0, norms(params)), params)
        return ProximalState(jnp.zeros((), jnp.int32), masks, _state.owned(optimizer.init(params), params))

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, ProximalState]:
        weights: Any = _updates.given(params, name)
        pulling = jnp.bool_(True) if end is None else state.step < end
        visible = jax.tree.map(lambda mask: mask | pulling, state.masks)
        inner = _state.zero_pruned(state.inner, weights, visible)
        new, inner = optimizer.update(masking.apply(updates, visible), inner, weights, **extra_args)
        moved = masking.apply(optax.apply_updates(weights, new), visible)
        pull = jnp.where(pulling, jnp.asarray(_inputs.at(threshold, state.step), jnp.float32), jnp.float32(0))
        sizes = norms(moved)
        factors = spread(jax.tree.map(lambda size: _factor(size, pull), sizes), weights)
        found = spread(jax.tree.map(lambda size: size > pull, sizes), weights)
        masks = jax.tree.map(lambda now, before: jnp.where(pulling, now, before), found, state.masks)
        shrunk = tree.map_with_path(_shrunk, moved, factors)
        return _updates.towards(shrunk, weights), ProximalState(state.step + 1, masks, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _factor(size: Any, pull: Any) -> Any:
    """What a group of this root mean square is multiplied by."""
    return jnp.maximum(size - pull, jnp.zeros_like(size)) / jnp.where(size > 0, size, jnp.ones_like(size))


def _shrunk(path: str, leaf: Any, factor: Any) -> Any:
    del path
    return leaf if factor is None else leaf * factor.astype(leaf.dtype)
