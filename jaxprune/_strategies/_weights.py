"""Strategies that look at the weights alone, or at nothing."""

from __future__ import annotations

from typing import Literal

from jaxprune import budgets
from jaxprune import scores as scoring
from jaxprune._arrays import tree
from jaxprune._strategies._from_scores import UNSTRUCTURED, from_scores
from jaxprune._strategies._within import pruned
from jaxprune.filters import is_kernel
from jaxprune.typing import Budget, Masks, Params, Pattern, PRNGKey, Sparsity, Where


def magnitude(
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    norm: Literal["l1", "l2"] = "l1",
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
    pattern: Pattern = UNSTRUCTURED,
    within: Masks = None,
) -> Masks:
    """Removes the smallest weights; see `jaxprune.scores.magnitude`.

    Args:
      params: Any pytree of arrays.
      sparsity: Fraction to remove, in [0, 1]. `None` means what the pattern or the budget fixes, else 0.5.
      norm: How a block or channel is measured; single weights rank the same under both.
      where: Picks the leaves to prune, by `(path, leaf)`; the rest get `None`.
      budget: How the sparsity is spread over the leaves.
      pattern: What is removed together.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks with the structure of `params`.

    Raises:
      ValueError: See `from_scores`.
      TypeError: `where` picks a leaf that is not floating.

    Examples:
      >>> masks = magnitude({"kernel": jnp.array([[4.0, -3.0], [1.0, 2.0]]), "bias": jnp.zeros(2)}, 0.5)
      >>> print(masks["kernel"], masks["bias"])
      [[ True  True]
       [False False]] None
    """
    params = pruned(params, within)
    absolute = norm == "l1"  # single weights then rank without their absolute values being written down
    scores = tree.choose(where, params) if absolute else scoring.magnitude(params, norm=norm, where=where)
    return from_scores(scores, sparsity, budget=budget, pattern=pattern, absolute=absolute, within=within)


def random(
    key: PRNGKey,
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
    pattern: Pattern = UNSTRUCTURED,
    within: Masks = None,
) -> Masks:
    """Removes weights at random: the baseline; see `jaxprune.scores.random`.

    Args:
      key: From `jax.random.key`. The same key prunes a superset at a higher sparsity.
      params: Any pytree of arrays.
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
        scoring.random(key, params, where=where), sparsity, budget=budget, pattern=pattern, within=within
    )


def lamp(
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.global_,
    pattern: Pattern = UNSTRUCTURED,
    within: Masks = None,
) -> Masks:
    """Magnitude with layer-adaptive scores under one threshold; see `jaxprune.scores.lamp`.

    Args:
      params: Any pytree of arrays.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: The paper's is `global_`.
      pattern: What is removed together.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks with the structure of `params`.
    """
    params = pruned(params, within)
    return from_scores(scoring.lamp(params, where=where), sparsity, budget=budget, pattern=pattern, within=within)
