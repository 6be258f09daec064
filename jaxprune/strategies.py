"""One call from parameters to masks: a score, a budget and a pattern together.

Each strategy is a pure function. It takes the parameters (and gradients, statistics or a key) first and the sparsity,
the fraction to remove, last by position; it returns masks with the structure of the parameters, `None` where a leaf
stays dense. `functools.partial(magnitude, budget=budgets.erk)` sets options where only `(params, sparsity)` is called,
as `gradual` does. A sparsity may be traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxprune import budgets, frequency, frequency_selection, meshes, patterns, selection, slimming, tree
from jaxprune import masks as masking
from jaxprune import scores as scoring
from jaxprune.coupling import Coupling
from jaxprune.filters import is_kernel
from jaxprune.typing import Budget, Count, Grads, Masks, Params, Pattern, PRNGKey, Scores, Sparsity, Where

_UNSTRUCTURED = patterns.Unstructured()


def from_scores(
    scores: Scores,
    sparsity: Sparsity | None = None,
    *,
    budget: Budget = budgets.uniform,
    pattern: Pattern = _UNSTRUCTURED,
) -> Masks:
    """Prunes by any scores: the last step of every strategy here, and the way to use your own criterion.

    Args:
      scores: One floating array per leaf, higher = more worth keeping; `None` leaves stay dense.
      sparsity: Fraction to remove, in [0, 1]. `None` means what the pattern or the budget fixes, else 0.5.
      budget: How the sparsity is spread over the leaves.
      pattern: What is removed together.

    Returns:
      Masks with the structure of `scores`.

    Raises:
      ValueError: The sparsity is out of range or contradicts the pattern or the budget, or a leaf does not fit the
        pattern; the message names its path.

    Example:
      >>> masks = from_scores({"kernel": jnp.array([[0.1, 3.0], [2.0, 0.2]]), "bias": None}, 0.5)
      >>> print(masks["kernel"])
      [[False  True]
       [ True False]]
    """
    if pattern.sparsity is not None:
        _check_fixed(pattern, sparsity, budget)
        return selection.select(scores, 0, pattern=pattern)
    if sparsity is None and not isinstance(budget, budgets.Cumulative):
        sparsity = 0.5
    return selection.select(scores, _counts(scores, sparsity, budget, pattern), pattern=pattern)


def magnitude(
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    norm: Literal["l1", "l2"] = "l1",
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
    pattern: Pattern = _UNSTRUCTURED,
) -> Masks:
    """Removes the smallest weights; see `jaxprune.scores.magnitude`.

    Args:
      params: Any pytree of arrays.
      sparsity: Fraction to remove, in [0, 1]. `None` means what the pattern or the budget fixes, else 0.5.
      norm: How a block or channel is measured; single weights rank the same under both.
      where: Picks the leaves to prune, by `(path, leaf)`; the rest get `None`.
      budget: How the sparsity is spread over the leaves.
      pattern: What is removed together.

    Returns:
      Masks with the structure of `params`.

    Raises:
      ValueError: See `from_scores`.
      TypeError: `where` picks a leaf that is not floating.

    Example:
      >>> masks = magnitude({"kernel": jnp.array([[4.0, -3.0], [1.0, 2.0]]), "bias": jnp.zeros(2)}, 0.5)
      >>> print(masks["kernel"], masks["bias"])
      [[ True  True]
       [False False]] None
    """
    return from_scores(scoring.magnitude(params, norm=norm, where=where), sparsity, budget=budget, pattern=pattern)


def random(
    key: PRNGKey,
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
    pattern: Pattern = _UNSTRUCTURED,
) -> Masks:
    """Removes weights at random: the baseline; see `jaxprune.scores.random`.

    Args:
      key: From `jax.random.key`. The same key prunes a superset at a higher sparsity.
      params: Any pytree of arrays.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: How the sparsity is spread over the leaves.
      pattern: What is removed together.

    Returns:
      Masks with the structure of `params`.
    """
    return from_scores(scoring.random(key, params, where=where), sparsity, budget=budget, pattern=pattern)


def taylor(
    params: Params,
    grads: Grads,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
    pattern: Pattern = _UNSTRUCTURED,
) -> Masks:
    """Removes the weights that change the loss least to first order; see `jaxprune.scores.taylor`.

    Args:
      params: Any pytree of arrays.
      grads: Of the loss, with the structure of `params`.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: How the sparsity is spread over the leaves.
      pattern: What is removed together.

    Returns:
      Masks with the structure of `params`.
    """
    return from_scores(scoring.taylor(params, grads, where=where), sparsity, budget=budget, pattern=pattern)


def snip(
    params: Params,
    grads: Grads,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.global_,
    pattern: Pattern = _UNSTRUCTURED,
) -> Masks:
    """Prunes at initialisation by connection sensitivity, all weights ranked together; see `jaxprune.scores.snip`.

    Args:
      params: At initialisation.
      grads: Of the loss on one batch, with the structure of `params`.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: The paper's is `global_`.
      pattern: What is removed together.

    Returns:
      Masks with the structure of `params`.
    """
    return from_scores(scoring.snip(params, grads, where=where), sparsity, budget=budget, pattern=pattern)


def grasp(
    loss: Callable[[Params], Float[Array, ""]],
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.global_,
    pattern: Pattern = _UNSTRUCTURED,
) -> Masks:
    """Prunes at initialisation so that the gradient keeps flowing; see `jaxprune.scores.grasp`.

    Args:
      loss: From parameters to a scalar, on a batch of training data.
      params: At initialisation.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: The paper's is `global_`.
      pattern: What is removed together.

    Returns:
      Masks with the structure of `params`.
    """
    return from_scores(scoring.grasp(loss, params, where=where), sparsity, budget=budget, pattern=pattern)


def synflow(
    fun: Callable[..., Any],
    params: Params,
    inputs: Any,
    sparsity: Sparsity | None = None,
    *,
    rounds: int = 100,
    where: Where = is_kernel,
    budget: Budget = budgets.global_,
    pattern: Pattern = _UNSTRUCTURED,
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

    Returns:
      Masks with the structure of `params`.

    Raises:
      ValueError: `rounds` is not positive.
    """
    if rounds < 1:
        raise ValueError(f"`synflow` needs at least one round; got {rounds}.")
    args = inputs if isinstance(inputs, tuple) else (inputs,)

    def prune(masks: Masks | None, sparsity: Sparsity | None) -> Masks:
        pruned = params if masks is None else masking.apply(params, masks)
        scores = scoring.synflow(fun, pruned, *args, where=where)
        return from_scores(scores, sparsity, budget=budget, pattern=pattern)

    if pattern.sparsity is not None or isinstance(budget, budgets.Cumulative):
        return prune(None, sparsity)
    density = 1 - jnp.asarray(0.5 if sparsity is None else sparsity, jnp.float32)
    shapes = jax.eval_shape(lambda: prune(None, sparsity))
    dense = jax.tree.map(lambda leaf, mask: None if mask is None else meshes.ones(mask.shape, leaf), params, shapes)

    def step(i: Any, masks: Masks) -> Masks:
        return prune(masks, 1 - density ** (i.astype(jnp.float32) / rounds))

    return prune(lax.fori_loop(1, rounds, step, dense), sparsity)


def lamp(
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    where: Where = is_kernel,
    budget: Budget = budgets.global_,
    pattern: Pattern = _UNSTRUCTURED,
) -> Masks:
    """Magnitude with layer-adaptive scores under one threshold; see `jaxprune.scores.lamp`.

    Args:
      params: Any pytree of arrays.
      sparsity: See `magnitude`, as for the options.
      where: Picks the leaves to prune.
      budget: The paper's is `global_`.
      pattern: What is removed together.

    Returns:
      Masks with the structure of `params`.
    """
    return from_scores(scoring.lamp(params, where=where), sparsity, budget=budget, pattern=pattern)


def dft(
    params: Params,
    sparsity: Sparsity = 0.5,
    *,
    axes: tuple[int, ...] = (-2, -1),
    keep: Literal["energy", "low", "high"] = "energy",
    transform: frequency.Transform = "dft",
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
) -> Masks:
    """Removes frequencies of the kernels instead of weights.

    `apply` then projects a kernel onto the frequencies kept, and so does every optax transform of this library.

    Args:
      params: Any pytree of arrays.
      sparsity: Fraction of each kernel's real degrees of freedom to remove.
      axes: One to three axes to transform: the default is the matrix of inputs and outputs; (0, 1) is the spatial axes
        of a Flax convolution kernel `(height, width, in, out)`.
      keep: The coefficients with the largest energy, the lowest or the highest frequencies.
      transform: Fourier or cosine (type II, orthonormal).
      where: Picks the leaves to prune; the rest get `None`.
      budget: How the sparsity is spread over the leaves.

    Returns:
      A tree of `Spectral` masks.

    Raises:
      ValueError: An axis does not exist in a leaf; the message names its path. Or `keep` or `transform` is unknown.
    """
    if keep not in ("energy", "low", "high") or transform not in ("dft", "dct"):
        raise ValueError(
            f"`dft` needs keep='energy', 'low' or 'high' and transform='dft' or 'dct'; got {keep!r}, {transform!r}."
        )
    rows, treedef = tree.flatten(tree.choose(where, params))
    normalised = [_axes_of(path, leaf, axes) for path, leaf in rows]
    rankings = [_ranking(leaf, a, keep, transform) for (_, leaf), a in zip(rows, normalised, strict=True)]
    shapes = [leaf.shape for _, leaf in rows]
    spread = [frequency.spread(r, s, a, transform) for r, s, a in zip(rankings, shapes, normalised, strict=True)]
    counts = jax.tree.leaves(budget(treedef.unflatten(spread), sparsity, _UNSTRUCTURED))
    return treedef.unflatten(
        [
            frequency.Spectral(frequency_selection.select_frequencies(r, count, s, a, transform), a, transform)
            for r, count, s, a in zip(rankings, counts, shapes, normalised, strict=True)
        ]
    )


def slim(
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    coupling: Coupling | None = None,
    scores: Scores | slimming.UnitScores | None = None,
    norm: Literal["l1", "l2"] = "l2",
    axis: int = -1,
    aggregate: slimming.Aggregate = "mean",
    normalize: bool = True,
    round_to: int = 1,
    keep_at_least: int = 1,
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
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
        `slimming.UnitScores`.
      norm: The criterion where no scores are given.
      axis: Without a coupling, the axis of the output units: -1 for Flax and Haiku, 0 for Equinox.
      aggregate: With a coupling, how the scores of all weights of a unit become one.
      normalize: With a coupling, divide by the mean over the group, so that groups compare under a global budget.
      round_to: Keep a multiple of so many units, at least one such multiple, as hardware likes it.
      keep_at_least: With a coupling, keep so many units of every group.
      where: Picks the kernels. Without a coupling, leave out the last one: its outputs are the model's.
      budget: How the sparsity is spread over the leaves, or over the groups, which `by_path` then knows by name; with a
        coupling also `slimming.macs` or `slimming.latency`.

    Returns:
      Masks with the structure of `params`.

    Raises:
      ValueError: An option is out of range, or see `from_scores`.

    Example:
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.arange(32.0).reshape(4, 8), "second": jnp.ones((8, 2))}
      >>> coupling = jaxprune.couple(mlp, params, jnp.ones((1, 4)))
      >>> masks = slim(params, 0.5, coupling=coupling)
      >>> masks["first"].shape, masks["second"].shape
      ((1, 8), (8, 1))
    """
    if coupling is not None:
        return slimming.slim(
            params, sparsity, coupling, scores=scores, norm=norm, aggregate=aggregate, normalize=normalize,
            budget=budget, round_to=round_to, keep_at_least=keep_at_least, where=where,
        )  # fmt: skip
    if isinstance(scores, slimming.UnitScores) or isinstance(budget, slimming.Fitted):
        raise TypeError("Scores per unit and budgets of their cost need `coupling=`. Make it with `couple`.")
    if round_to < 1:
        raise ValueError(f"`round_to` must be at least 1; got {round_to}.")
    pattern = patterns.Channel(axis)
    if scores is None:
        scores = scoring.magnitude(params, norm=norm, where=where)
    if round_to == 1:
        return from_scores(scores, sparsity, budget=budget, pattern=pattern)
    sizes = budgets.group_sizes(scores, pattern)
    counts = jax.tree.leaves(budget(scores, 0.5 if sparsity is None else sparsity, pattern))
    rounded = [_to_multiple(count, size, round_to) for count, size in zip(counts, sizes, strict=True)]
    return selection.select(scores, jax.tree.unflatten(jax.tree.structure(scores), rounded), pattern=pattern)


def _counts(scores: Scores, sparsity: Any, budget: Budget, pattern: Pattern) -> Any:
    """Keep-counts; for the plain global budget only their sum, which spares a second search for the threshold."""
    if budget is budgets.global_:
        return budgets.keep_count(sum(budgets.group_sizes(scores, pattern)), sparsity)
    return budget(scores, sparsity, pattern)


def _check_fixed(pattern: Pattern, sparsity: Sparsity | None, budget: Budget) -> None:
    patterns.settled(pattern, sparsity)  # raises where they contradict
    if budget is not budgets.uniform:
        raise ValueError(f"`{pattern}` fixes the sparsity of every leaf; a budget has nothing to decide. Leave it out.")


def _axes_of(path: str, leaf: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    tree.check_floating(path, leaf)
    try:
        return frequency.normalise_axes(leaf.shape, axes)
    except ValueError as error:
        raise ValueError(f"`dft`: {error}; this is '{path}'. Change `axes=` or leave it out with `where=`.") from error


def _ranking(leaf: Any, axes: tuple[int, ...], keep: str, transform: frequency.Transform) -> Float[Array, "..."]:
    energies = frequency.energy(meshes.whole(leaf, *range(leaf.ndim)), axes, transform)
    if keep == "energy":
        return energies
    radius = jnp.asarray(frequency.radius(leaf.shape, axes, transform), energies.dtype)
    return jnp.broadcast_to(-radius if keep == "low" else radius, energies.shape)


def _to_multiple(count: Count, size: int, multiple: int) -> Count:
    nearest = (count + multiple // 2) // multiple * multiple
    if isinstance(nearest, int):
        return min(size, max(multiple, nearest))
    return jnp.clip(nearest, min(multiple, size), size)
