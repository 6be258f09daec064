"""The strategy that removes frequencies of kernels."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune import budgets
from jaxprune._arrays import checks, tree
from jaxprune._masks import frequency, masking, spectra
from jaxprune._selection import frequencies, requests
from jaxprune._strategies._from_scores import UNSTRUCTURED
from jaxprune._strategies._within import pruned
from jaxprune.filters import is_kernel
from jaxprune.typing import Budget, Masks, Params, Sparsity, Where


def dft(
    params: Params,
    sparsity: Sparsity | None = None,
    *,
    axes: tuple[int, ...] = (-2, -1),
    keep: Literal["energy", "low", "high"] = "energy",
    transform: frequency.Transform = "dft",
    where: Where = is_kernel,
    budget: Budget = budgets.uniform,
    within: Masks = None,
) -> Masks:
    """Removes frequencies of the kernels instead of weights.

    `apply` then projects a kernel onto the frequencies kept, and so does every optax transform of this library.

    Args:
      params: Any pytree of arrays.
      sparsity: Fraction of each kernel's real degrees of freedom to remove; `None` means what the budget decides, else
        0.5.
      axes: One to three axes to transform: the default is the matrix of inputs and outputs; (0, 1) is the spatial axes
        of a Flax convolution kernel `(height, width, in, out)`.
      keep: The coefficients with the largest energy, the lowest or the highest frequencies.
      transform: Fourier or cosine (type II, orthonormal).
      where: Picks the leaves to prune; the rest get `None`.
      budget: How the sparsity is spread over the leaves.
      within: Masks of an earlier call over the same axes and transform: what they removed stays removed.

    Returns:
      A tree of `Spectral` masks; `None` for leaves that were not picked or are empty.

    Raises:
      ValueError: An axis does not exist in a leaf; the message names its path. Or `keep` or `transform` is unknown.
    """
    if keep not in ("energy", "low", "high") or transform not in ("dft", "dct"):
        raise ValueError(
            f"`dft` needs keep='energy', 'low' or 'high' and transform='dft' or 'dct'; got {keep!r}, {transform!r}."
        )
    if not checks.is_a(axes, tuple, list) or not all(checks.is_a(axis, int) for axis in axes):
        raise TypeError(f"`axes` must be a tuple of integers; got {axes!r}. Give, for example, (-2, -1).")
    settled = requests.settled(UNSTRUCTURED, sparsity, budget)
    params = pruned(params, within)
    rows, treedef = tree.flatten(tree.map_picked(_unless_empty, where, params))
    normalised = [_axes_of(path, leaf, axes) for path, leaf in rows]
    rankings = [_ranking(leaf, a, keep, transform) for (_, leaf), a in zip(rows, normalised, strict=True)]
    shapes = [leaf.shape for _, leaf in rows]
    spread = [frequency.spread(r, s, a, transform) for r, s, a in zip(rankings, shapes, normalised, strict=True)]
    counts = jax.tree.leaves(budget(treedef.unflatten(spread), settled, UNSTRUCTURED))
    if within is not None:
        earlier = {path: mask for path, _, mask in tree.flatten(params, within, names=("within",))[0]}
        rankings = [
            _removed_last(r, earlier[path], a, transform)
            for (path, _), r, a in zip(rows, rankings, normalised, strict=True)
        ]
    ranked = [frequencies.Ranking(r, s, a, transform) for r, s, a in zip(rankings, shapes, normalised, strict=True)]
    masks = treedef.unflatten(
        [
            frequency.Spectral(keep, a, transform)
            for keep, a in zip(frequencies.select_frequencies(ranked, counts), normalised, strict=True)
        ]
    )
    return masks if within is None else masking.intersection(masks, within)


def _removed_last(ranking: Any, mask: Any, axes: tuple[int, ...], transform: frequency.Transform) -> Any:
    """The ranking with what an earlier mask removed below all else, if it is a mask of these frequencies."""
    if not isinstance(mask, frequency.Spectral) or (mask.axes, mask.transform) != (axes, transform):
        return ranking
    return jnp.where(mask.keep, ranking, jnp.full_like(ranking, -jnp.inf))


def _unless_empty(path: str, leaf: Any) -> Any:
    tree.check_floating(path, leaf)
    return leaf if leaf.size else None


def _axes_of(path: str, leaf: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return frequency.normalise_axes(leaf.shape, axes)
    except ValueError as error:
        raise ValueError(f"`dft`: {error}; this is '{path}'. Change `axes=` or leave it out with `where=`.") from error


def _ranking(leaf: Any, axes: tuple[int, ...], keep: str, transform: frequency.Transform) -> Float[Array, "..."]:
    energies = spectra.energy(jnp.asarray(leaf), axes, transform)
    if keep == "energy":
        return energies
    radius = jnp.asarray(frequency.radius(leaf.shape, axes, transform), energies.dtype)
    return jnp.broadcast_to(-radius if keep == "low" else radius, energies.shape)
