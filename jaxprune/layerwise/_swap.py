"""Swaps weights of a mask, one pruned for one kept, as long as the layer's outputs come nearer to the dense ones.

Notes on what differs from the paper, which goes by the mean and the variance of each input and trains nothing either:

1. The Gram matrix gives the exact change of the error, so a swap that would raise it is never made.
2. A step takes the better of two candidates for each output: the weight that is best to bring back with the best one
   to lose for it, and the weight that is best to lose with the best one to bring back. Under N:M, where a swap stays
   within its group, it takes the best of all.
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

_GAIN = 1e-5  # of an output's error: less than that is rounding


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
      pattern: `Unstructured()`, or the `NM(n, m)` that the mask obeys and shall go on to.
      steps: Swaps in each output at most.

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
    if isinstance(pattern, patterns.NM) and pattern.group > 1:
        raise ValueError(f"A swap moves one weight, and `NM(..., group={pattern.group})` several. Take `group=1`.")
    return _swap(kernel, gram, mask, pattern, steps)


@functools.partial(jax.jit, static_argnames=("pattern", "steps"))
def _swap(kernel: Kernel, gram: Gram, mask: Bool[Array, "in out"], pattern: Any, steps: int) -> Bool[Array, "in out"]:
    dtype = _choice.working(kernel, gram)
    weights, gram = kernel.T.astype(dtype), gram.astype(dtype)
    rows = jnp.arange(weights.shape[0])

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        mask, pull, error, _, steps = state
        back, gone, change = _best(weights, mask, pull, gram, pattern)
        better = change < -_GAIN * error
        back_by, gone_by = (jnp.where(better, weights[rows, i], 0)[:, None] for i in (back, gone))
        pull = pull + back_by * gram[back] - gone_by * gram[gone]
        swapped = mask.at[rows, back].set(True).at[rows, gone].set(False)
        mask = jnp.where(better[:, None], swapped, mask)
        return mask, pull, jnp.where(better, error + change, error), jnp.any(better), steps + 1

    lost = jnp.where(mask.T, 0, -weights)
    pull = lost @ gram
    start = (mask.T, pull, jnp.sum(lost * pull, axis=1), jnp.array(True), jnp.int32(0))
    return lax.while_loop(lambda state: state[3] & (state[4] < steps), step, start)[0].T


def _best(
    weights: Float[Array, "out in"], mask: Bool[Array, "out in"], pull: Float[Array, "out in"], gram: Gram, pattern: Any
) -> tuple[Array, Array, Array]:
    """For each output, which weight comes back, which goes, and by how much that changes the error."""
    squares = jnp.square(weights) * jnp.diagonal(gram)[None]
    back = jnp.where(mask, jnp.inf, squares + 2 * weights * pull)
    gone = jnp.where(mask, squares - 2 * weights * pull, jnp.inf)
    if isinstance(pattern, patterns.NM):
        return _best_in_groups(weights, back, gone, gram, pattern.m)
    rows = jnp.arange(weights.shape[0])
    first, last = jnp.argmin(back, axis=1), jnp.argmin(gone, axis=1)

    def with_other(costs: Array, chosen: Array) -> tuple[Array, Array]:
        together = costs - 2 * weights * weights[rows, chosen][:, None] * gram[chosen]
        other = jnp.argmin(together, axis=1)
        return other, together[rows, other]

    (goes, lower), (comes, upper) = with_other(gone, first), with_other(back, last)
    ahead = (lower + back[rows, first]) <= (upper + gone[rows, last])
    change = jnp.where(ahead, lower + back[rows, first], upper + gone[rows, last])
    return jnp.where(ahead, first, comes), jnp.where(ahead, goes, last), change


def _best_in_groups(
    weights: Float[Array, "out in"], back: Float[Array, "out in"], gone: Float[Array, "out in"], gram: Gram, m: int
) -> tuple[Array, Array, Array]:
    outputs, inputs = weights.shape
    near = jnp.arange(inputs).reshape(-1, m)
    products = gram[near[:, :, None], near[:, None, :]]
    grouped, back, gone = (x.reshape(outputs, -1, m) for x in (weights, back, gone))
    together = grouped[:, :, :, None] * grouped[:, :, None, :] * products[None]
    change = (back[:, :, :, None] + gone[:, :, None, :] - 2 * together).reshape(outputs, -1)
    best = jnp.argmin(change, axis=1)
    group, place = best // m**2, best % m**2
    return group * m + place // m, group * m + place % m, change[jnp.arange(outputs), best]
