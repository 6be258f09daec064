"""Strategies that look at what `calibrate` measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

from jaxprune import budgets, patterns
from jaxprune import scores as scoring
from jaxprune._arrays import tree
from jaxprune._strategies._from_scores import UNSTRUCTURED, from_scores
from jaxprune._strategies._within import pruned
from jaxprune.typing import Axes, Budget, Masks, Params, Pattern, Sparsity, Statistics, Where

_BY_OUTPUT = patterns.Along()


def wanda(
    params: Params,
    statistics: Statistics,
    sparsity: Sparsity | None = None,
    *,
    where: Where | None = None,
    budget: Budget = budgets.uniform,
    pattern: Pattern = _BY_OUTPUT,
    within: Masks = None,
) -> Masks:
    r"""Prunes by weight magnitude times input norm, $|W_{ij}| \lVert x_i \rVert_2$, within each output.

    Args:
      params: Any pytree, kernels in any layout.
      statistics: From `calibrate(..., statistic="norm")`.
      sparsity: Fraction of each output's weights to remove, in [0, 1]; see `magnitude`, as for the options.
      where: Picks the leaves to prune; the rest get `None`. By default all that were measured.
      budget: How the sparsity is spread over the leaves; `budgets.owl` was made for these scores.
      pattern: `Along()` compares the weights of each output, and `NM(n, m)` of so many consecutive inputs: both run
        along the inputs that were measured, whatever the layout, unless they are given an axis.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks with the structure of `params`.

    Raises:
      ValueError: A picked leaf has no such statistic; the message names its path. Or see `from_scores`.

    Examples:
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [1.0, 2.0]])}
      >>> x = jnp.array([[0.1, 1.0], [0.1, 1.0]])
      >>> statistics = jaxprune.calibrate(lambda p, x: x @ p["kernel"], params, [x])
      >>> print(jaxprune.wanda(params, statistics, 0.5)["kernel"])
      [[False False]
       [ True  True]]

    References:
      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models".
    """
    params = pruned(params, within)
    scores = scoring.wanda(params, statistics, where=where)
    return from_scores(
        scores, sparsity, budget=budget, pattern=_along_inputs(pattern, params, statistics, where), within=within
    )


def ria(
    params: Params,
    statistics: Statistics,
    sparsity: Sparsity | None = None,
    *,
    power: float = 0.5,
    where: Where | None = None,
    budget: Budget = budgets.uniform,
    pattern: Pattern = UNSTRUCTURED,
    within: Masks = None,
) -> Masks:
    """Prunes by relative importance and activations; see `jaxprune.scores.ria`.

    Args:
      params: Any pytree, kernels in any layout.
      statistics: From `calibrate(..., statistic="norm")`.
      sparsity: See `magnitude`, as for the options.
      power: Of the input's norm; the paper takes 0.5.
      where: Picks the leaves to prune; by default all that were measured.
      budget: How the sparsity is spread over the leaves.
      pattern: What is removed together: single weights of a whole kernel, as in the paper; see `wanda` for others.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks with the structure of `params`.

    Raises:
      ValueError: A picked leaf has no such statistic; the message names its path. Or see `from_scores`.

    References:
      Zhang et al., 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models".
    """
    params = pruned(params, within)
    scores = scoring.ria(params, statistics, power=power, where=where)
    return from_scores(
        scores, sparsity, budget=budget, pattern=_along_inputs(pattern, params, statistics, where), within=within
    )


def variance(
    params: Params,
    statistics: Statistics,
    sparsity: Sparsity | None = None,
    *,
    remove: Literal["smallest", "largest"] = "smallest",
    where: Where | None = None,
    budget: Budget = budgets.uniform,
    within: Masks = None,
) -> Masks:
    """Removes whole outputs of kernels, neurons and channels, by the variance of what they put out.

    An output that hardly varies carries little information, and its mean can be put into the bias that follows: see
    `shrink(..., compensate=statistics)`. Each layer of a stack removes as many as the others.

    Args:
      params: Any pytree, kernels in any layout.
      statistics: From `calibrate(..., statistic="variance")`.
      sparsity: Fraction of each kernel's outputs to remove; see `magnitude`.
      remove: `"largest"` is the rule of the article whose "weight pruning" this is.
      where: Picks the kernels, by default all that were measured. Leave out the last one: its outputs are the model's.
      budget: How the sparsity is spread over the kernels.
      within: Masks of an earlier pruning, which stay in force; see `from_scores`.

    Returns:
      Masks of size 1 along the inputs of each kernel, which broadcast.

    Raises:
      ValueError: A picked leaf has no such statistic; the message names its path. Or see `from_scores`.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, 0.0], [2.0, 0.1]])}
      >>> x = jnp.array([[0.0, 1.0], [1.0, 3.0]])
      >>> statistics = jaxprune.calibrate(lambda p, x: x @ p["kernel"], params, [x], statistic="variance")
      >>> print(jaxprune.variance(params, statistics, 0.5)["kernel"])
      [[ True False]]
    """
    if remove not in ("smallest", "largest"):
        raise ValueError(f"`remove` must be 'smallest' or 'largest'; got {remove!r}.")
    scores = scoring.variance(params, statistics, where=where)
    outputs = _axis_tree(lambda axes: axes.outputs, params, statistics, where)
    ranked = scores if remove == "smallest" else jax.tree.map(lambda score: -score, scores)
    return from_scores(ranked, sparsity, budget=budget, pattern=patterns.Along(outputs), within=within)


def _along_inputs(pattern: Pattern, params: Params, statistics: Statistics, where: Where | None) -> Pattern:
    """The pattern along the inputs of each kernel, if it has no axis of its own."""
    if isinstance(pattern, patterns.NM) and pattern.axis is None:
        return dataclasses.replace(pattern, axis=_axis_tree(lambda axes: axes.inputs[-1], params, statistics, where))
    if isinstance(pattern, patterns.Along) and pattern.axis is None:
        return patterns.Along(_axis_tree(lambda axes: axes.inputs, params, statistics, where))
    return pattern


def _axis_tree(choose: Callable[[Axes], Any], params: Params, statistics: Statistics, where: Where | None) -> Any:
    """Axes of the picked leaves, which were found to have statistics."""
    return tree.map_with_path(
        lambda path, leaf, measured: (
            choose(measured.axes) if (measured is not None if where is None else where(path, leaf)) else None
        ),
        params,
        statistics,
    )
