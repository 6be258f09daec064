"""Swaps pruned weights of a mask for kept ones, as long as the layer's outputs come nearer to the dense ones.

Notes on what differs from the paper, which decides by the mean and the variance of each input:

1. The Gram matrix gives the exact change of the error, so a swap that would raise it is never made.
2. A step takes the better of two swaps for each output: the weight that is best to restore, with the one that is then
   best to remove; and the weight that is best to remove, with the one that is then best to restore. Under N:M, where
   both weights are of one group, it takes the best of all swaps.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxprune import patterns
from jaxprune.layerwise import _choice
from jaxprune.typing import Gram, Kernel

_LEAST_GAIN = 1e-5  # of an output's error; smaller gains are rounding


def swap(
    kernel: Kernel,
    gram: Gram,
    mask: Bool[Array, "in out"],
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    steps: int = 100,
) -> Bool[Array, "in out"]:
    r"""Refines the mask of one layer, so that $\lVert X W - X (M \odot W) \rVert_F$ falls.

    Kept weights keep their values; `refit` then adjusts them. Every output keeps as many weights as before.

    Args:
      kernel: `(in, out)`, floating, before it was pruned.
      gram: $X^\top X$ of the layer's inputs, `(in, in)`.
      mask: `True` = kept.
      pattern: `Unstructured()`, or the `NM(n, m)` that the mask obeys and will still obey.
      steps: The most swaps in each output.

    Returns:
      The new mask.

    Raises:
      ValueError: The shapes or the pattern do not fit.
      TypeError: The kernel is not floating, or the pattern is another one.

    Examples:
      >>> from jaxprune import layerwise
      >>> kernel, mask = jnp.array([[1.0], [2.0]]), jnp.array([[True], [False]])
      >>> print(layerwise.swap(kernel, jnp.eye(2), mask))
      [[False]
       [ True]]

    References:
      Zhang et al., 2024, "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs".
    """
    _choice.checked(kernel, gram.shape, pattern, pattern.sparsity)
    _choice.check_mask(kernel, mask)
    _choice.checked_options(steps=steps)
    if isinstance(pattern, patterns.NM) and pattern.group > 1:
        raise ValueError(f"A swap moves one weight, and `NM(..., group={pattern.group})` several. Take `group=1`.")
    return _refine(kernel, gram, mask, pattern, steps)


@functools.partial(jax.jit, static_argnames=("pattern", "steps"))
def _refine(kernel: Kernel, gram: Gram, mask: Bool[Array, "in out"], pattern: Any, steps: int) -> Bool[Array, "in out"]:
    dtype = _choice.working(kernel, gram)
    weights, gram = kernel.T.astype(dtype), gram.astype(dtype)
    rows = jnp.arange(weights.shape[0])

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        mask, products, error, _, steps = state
        restored, removed, change = _best(weights, mask, products, gram, pattern)
        better = change < -_LEAST_GAIN * error
        gained, lost = (jnp.where(better, weights[rows, i], 0)[:, None] for i in (restored, removed))
        products = products + gained * gram[restored] - lost * gram[removed]
        swapped = mask.at[rows, restored].set(True).at[rows, removed].set(False)
        mask = jnp.where(better[:, None], swapped, mask)
        return mask, products, jnp.where(better, error + change, error), jnp.any(better), steps + 1

    difference = jnp.where(mask.T, 0, -weights)  # of the masked to the dense weights
    products = difference @ gram
    start = (mask.T, products, jnp.sum(difference * products, axis=1), jnp.array(True), jnp.int32(0))
    return lax.while_loop(lambda state: state[3] & (state[4] < steps), step, start)[0].T


def _best(
    weights: Float[Array, "out in"],
    mask: Bool[Array, "out in"],
    products: Float[Array, "out in"],
    gram: Gram,
    pattern: Any,
) -> tuple[Array, Array, Array]:
    """For each output, which weight to restore, which to remove, and by how much that changes the error."""
    squares = jnp.square(weights) * jnp.diagonal(gram)[None]
    restoring = jnp.where(mask, jnp.inf, squares + 2 * weights * products)
    removing = jnp.where(mask, squares - 2 * weights * products, jnp.inf)
    if isinstance(pattern, patterns.NM):
        return _best_in_groups(weights, restoring, removing, gram, pattern.m)
    rows = jnp.arange(weights.shape[0])

    def after(chosen: Array, costs: Array) -> tuple[Array, Array]:
        """The best weight for the other half of a swap, and what that half costs."""
        left = costs - 2 * weights * weights[rows, chosen][:, None] * gram[chosen]
        best = jnp.argmin(left, axis=1)
        return best, left[rows, best]

    restored, removed = jnp.argmin(restoring, axis=1), jnp.argmin(removing, axis=1)
    removed_then, cost = after(restored, removing)
    restoring_first = cost + restoring[rows, restored]
    restored_then, cost = after(removed, restoring)
    removing_first = cost + removing[rows, removed]
    first = restoring_first <= removing_first
    change = jnp.where(first, restoring_first, removing_first)
    return jnp.where(first, restored, restored_then), jnp.where(first, removed_then, removed), change


def _best_in_groups(
    weights: Float[Array, "out in"],
    restoring: Float[Array, "out in"],
    removing: Float[Array, "out in"],
    gram: Gram,
    m: int,
) -> tuple[Array, Array, Array]:
    outputs, inputs = weights.shape
    groups = jnp.arange(inputs).reshape(-1, m)
    grams = gram[groups[:, :, None], groups[:, None, :]]
    grouped, restoring, removing = (x.reshape(outputs, -1, m) for x in (weights, restoring, removing))
    pairs = grouped[:, :, :, None] * grouped[:, :, None, :] * grams[None]
    change = (restoring[:, :, :, None] + removing[:, :, None, :] - 2 * pairs).reshape(outputs, -1)
    best = jnp.argmin(change, axis=1)
    group, place = best // m**2, best % m**2
    return group * m + place // m, group * m + place % m, change[jnp.arange(outputs), best]
