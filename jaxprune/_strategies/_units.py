"""The strategy that removes whole units: neurons, channels, heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxprune import budgets, patterns, structured
from jaxprune import scores as scoring
from jaxprune._arrays import checks
from jaxprune._masks import masking
from jaxprune._selection import exact, requests
from jaxprune._strategies._from_scores import from_scores
from jaxprune._strategies._within import pruned
from jaxprune.filters import is_kernel
from jaxprune.structured._coupling import Coupling
from jaxprune.structured._select import masks_of_best_units
from jaxprune.typing import Budget, Count, Masks, Params, Scores, Sparsity, Where


def slim(
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    coupling: Coupling | None = None,
    scores: Scores | structured.UnitScores | None = None,
    norm: Literal["l1", "l2"] = "l2",
    axis: int | None = None,
    aggregate: structured.Aggregate = "mean",
    normalize: bool = True,
    round_to: int = 1,
    keep_at_least: int = 1,
    alike: bool | str | Sequence[str] = False,
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
    within: Masks = None,
) -> Masks:
    """Keeps the best units, whole: neurons of a dense layer, channels of a convolution, heads of an attention.

    With a `coupling`, a unit is everything that lives and dies with it: its bias, its norm, the weights that read it,
    the layers tied to it by a residual. `shrink` then removes it. Without one, a unit is an output of a kernel by
    itself. The masks have size 1 along every axis but the units', and broadcast.

    Args:
      params: Any pytree of arrays.
      sparsity: Fraction of each kernel's or group's units to remove; `None` means what the budget decides, else 0.5.
      coupling: From `couple(fun, params, *args)`.
      scores: Per-weight scores to average over each unit, in place of the norm; with a coupling also a
        `structured.UnitScores`.
      norm: The criterion where no scores are given.
      axis: Without a coupling, the axis of the output units. `None` is -1, right for Flax and Haiku; Equinox and torch
        have them on axis 0, and a kernel called `weight` gets a warning where no axis is given.
      aggregate: With a coupling, how the scores of all weights of a unit become one.
      normalize: With a coupling, divide by the mean over the group, so that groups compare under a global budget.
      round_to: Keep a multiple of so many units, at least one such multiple, as hardware likes it.
      keep_at_least: With a coupling, keep so many units of every group.
      alike: With a coupling, which groups keep equally many units, though not the same ones, so that a configuration
        with smaller numbers describes the result: `True` for those whose names differ in numbers alone, such as the
        MLPs of all layers; or regular expressions, each for the groups whose names it is the first to match.
      where: Picks the kernels. Without a coupling, leave out the last one: its outputs are the model's.
      budget: How the sparsity is spread over the leaves, or over the groups, which `by_path` then knows by name; with a
        coupling also `structured.macs` or `structured.latency`.
      within: Masks of an earlier pruning, of units or of weights, which stay in force: what they removed counts as 0.

    Returns:
      Masks with the structure of `params`.

    Raises:
      ValueError: An option is out of range, or see `from_scores`.

    Examples:
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.arange(32.0).reshape(4, 8), "second": jnp.ones((8, 2))}
      >>> coupling = jaxprune.couple(mlp, params, jnp.ones((1, 4)))
      >>> masks = slim(params, 0.5, coupling=coupling)
      >>> masks["first"].shape, masks["second"].shape
      ((1, 8), (8, 1))
    """
    if within is not None:
        known = scores if scores is None or isinstance(scores, structured.UnitScores) else pruned(scores, within)
        masks = slim(
            pruned(params, within), sparsity, coupling=coupling, scores=known, norm=norm, axis=axis,
            aggregate=aggregate, normalize=normalize, round_to=round_to, keep_at_least=keep_at_least, alike=alike,
            where=where, budget=budget,
        )  # fmt: skip
        return masking.intersection(masks, within)
    if coupling is not None and not checks.is_a(coupling, Coupling):
        raise TypeError(f"`coupling` must come from `couple(fun, params, *args)`; got {coupling!r}.")
    if coupling is not None:
        return masks_of_best_units(
            params, sparsity, coupling, scores=scores, norm=norm, aggregate=aggregate, normalize=normalize,
            budget=budget, round_to=round_to, keep_at_least=keep_at_least, alike=alike, where=where,
        )  # fmt: skip
    if isinstance(scores, structured.UnitScores) or isinstance(budget, structured.Fitted):
        raise TypeError("Scores per unit and budgets of their cost need `coupling=`. Make it with `couple`.")
    if alike is not False:
        raise TypeError("`alike` ties the groups of a coupling. Give `coupling=`, from `couple(fun, params, *args)`.")
    round_to = checks.whole(round_to, "round_to")
    pattern = patterns.Channel(axis)
    if scores is None:
        scores = scoring.magnitude(params, norm=norm, where=where)
    if round_to == 1:
        return from_scores(scores, sparsity, budget=budget, pattern=pattern)
    sizes = budgets.group_sizes(scores, pattern)
    counts = jax.tree.leaves(budget(scores, requests.settled(pattern, sparsity, budget), pattern))
    rounded = [_to_multiple(count, size, round_to) for count, size in zip(counts, sizes, strict=True)]
    return exact.select(scores, jax.tree.unflatten(jax.tree.structure(scores), rounded), pattern=pattern)


def _to_multiple(count: Count, size: int, multiple: int) -> Count:
    nearest = (count + multiple // 2) // multiple * multiple
    if isinstance(nearest, int):
        return min(size, max(multiple, nearest))
    return jnp.clip(nearest, min(multiple, size), size)
