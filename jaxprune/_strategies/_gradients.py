"""Strategies that look at gradients, or at the paths through the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxprune import budgets
from jaxprune import scores as scoring
from jaxprune._arrays import checks, meshes
from jaxprune._selection import requests
from jaxprune._strategies._from_scores import UNSTRUCTURED, from_scores
from jaxprune._strategies._within import pruned
from jaxprune.filters import is_kernel
from jaxprune.typing import Budget, Grads, Masks, Params, Pattern, Sparsity, Where


def taylor(
    params: Params,
    grads: Grads,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
    pattern: Pattern = UNSTRUCTURED,
    within: Masks = None,
) -> Masks:
    """Removes the weights that change the loss least to first order; see `jaxprune.scores.taylor`.

    Args:
      params: Any pytree of arrays.
      grads: Of the loss, with the structure of `params`.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: How the sparsity is spread over the leaves.
      pattern: What is removed together.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks with the structure of `params`.
    """
    params = pruned(params, within)
    return from_scores(
        scoring.taylor(params, grads, where=where), sparsity, budget=budget, pattern=pattern, within=within
    )


def snip(
    params: Params,
    grads: Grads,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.global_,
    pattern: Pattern = UNSTRUCTURED,
    within: Masks = None,
) -> Masks:
    """Prunes at initialisation by connection sensitivity, all weights ranked together; see `jaxprune.scores.snip`.

    Args:
      params: At initialisation.
      grads: Of the loss on one batch, with the structure of `params`.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: The paper's is `global_`.
      pattern: What is removed together.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks with the structure of `params`.
    """
    params = pruned(params, within)
    return from_scores(
        scoring.snip(params, grads, where=where), sparsity, budget=budget, pattern=pattern, within=within
    )


def grasp(
    loss: Callable[[Params], Float[Array, ""]],
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.global_,
    pattern: Pattern = UNSTRUCTURED,
    within: Masks = None,
) -> Masks:
    """Prunes at initialisation so that the gradient keeps flowing; see `jaxprune.scores.grasp`.

    Args:
      loss: From parameters to a scalar, on a batch of training data.
      params: At initialisation.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: The paper's is `global_`.
      pattern: What is removed together.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks with the structure of `params`.
    """
    params = pruned(params, within)
    return from_scores(
        scoring.grasp(loss, params, where=where), sparsity, budget=budget, pattern=pattern, within=within
    )


def synflow(
    fun: Callable[..., Any],
    params: Params,
    inputs: Any,
    sparsity: Sparsity | None = None,
    *,
    rounds: int = 100,
    where: Where = is_kernel,
    budget: Budget = budgets.global_,
    pattern: Pattern = UNSTRUCTURED,
    within: Masks = None,
) -> Masks:
    """Prunes at initialisation without data, in rounds that keep layers from collapsing; see `jaxprune.scores.synflow`.

    Density falls by the same factor every round, and the scores are recomputed from what is left.

    Args:
      fun: `fun(params, *inputs)`, returning arrays.
      params: At initialisation.
      inputs: One argument of `fun`, or a tuple of them, as arrays or `jax.ShapeDtypeStruct`s; batch size 1 is enough.
      sparsity: See `magnitude`, as for the options.
      rounds: The paper's 100; one is enough where the pattern fixes the sparsity.
      where: Picks the leaves to prune.
      budget: The paper's is `global_`.
      pattern: What is removed together.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks with the structure of `params`.

    Raises:
      ValueError: `rounds` is not positive.
    """
    params = pruned(params, within)
    if checks.whole(rounds, "rounds", least=None) < 1:
        raise ValueError(f"`synflow` needs at least one round; got {rounds}.")
    args = inputs if isinstance(inputs, tuple) else (inputs,)

    def prune(masks: Masks | None, sparsity: Sparsity | None) -> Masks:
        scores = scoring.synflow(fun, pruned(params, masks), *args, where=where)
        return from_scores(scores, sparsity, budget=budget, pattern=pattern, within=within)

    settled = requests.settled(pattern, sparsity, budget)
    if pattern.sparsity is not None or settled is None:
        return prune(None, sparsity)
    density = 1 - jnp.asarray(settled, jnp.float32)
    shapes = jax.eval_shape(lambda: prune(None, sparsity))
    dense = jax.tree.map(lambda leaf, mask: None if mask is None else meshes.ones(mask.shape, leaf), params, shapes)

    def step(i: Any, masks: Masks) -> Masks:
        return prune(masks, 1 - density ** (i.astype(jnp.float32) / rounds))

    return prune(lax.fori_loop(1, rounds, step, dense), sparsity)
