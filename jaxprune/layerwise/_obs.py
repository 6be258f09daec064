"""Optimal Brain Surgeon, exact and greedy: the yardstick for small layers."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune import patterns
from jaxprune.layerwise import _choice
from jaxprune.layerwise._damping import Damped, damp
from jaxprune.typing import Gram, Kernel, Sparsity


def obs(
    kernel: Kernel,
    gram: Gram | Damped,
    sparsity: Sparsity | None = None,
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    damping: float = 0.0,
    within: Literal["layer", "output"] = "layer",
    mask: Bool[Array, "in out"] | None = None,
) -> tuple[Kernel, Bool[Array, "in out"]]:
    r"""Removes one weight at a time, always the one that costs least, and each time re-solves all others of its output.

    It holds an inverse for every output, `out * in**2` numbers, and takes a step for every weight that it removes (of a
    layer, or of an output): for layers of a few hundred inputs, and to check faster methods.

    Args:
      kernel: `(in, out)`, floating.
      gram: $X^\top X$ of the layer's inputs, `(in, in)`; or the result of `damp`.
      sparsity: Fraction to remove, in [0, 1]; may be traced. `None` means what the pattern fixes, else 0.5.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      damping: See `damp`. A Gram matrix that is not of full rank raises it, with a warning.
      within: Which weights compete, if unstructured: all, or those of one output.
      mask: Which weights may stay, `True`; the others are pruned whatever their number. `None` means all.

    Returns:
      The kernel, of the same dtype, exactly 0 where it is pruned, and the mask, `True` = kept.

    Raises:
      ValueError: The shapes or the pattern do not fit, or the Gram matrix is not finite.
      TypeError: The kernel is not floating, or the pattern is another one.

    Examples:
      >>> from jaxprune import layerwise
      >>> kernel, mask = layerwise.obs(jnp.array([[3.0], [2.0]]), jnp.array([[2.0, 1.0], [1.0, 2.0]]), 0.5)
      >>> print(kernel)
      [[4.]
       [0.]]

    References:
      Hassibi & Stork, 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon";
      Frantar & Alistarh, 2022, "Optimal Brain Compression", which removes the updates between outputs.
    """
    sparsity = _choice.checked(kernel, (gram.gram if isinstance(gram, Damped) else gram).shape, pattern, sparsity)
    damped = gram if isinstance(gram, Damped) else damp(gram, damping=damping)
    # Under N:M every output loses the same number of weights, so outputs need not compete with each other.
    by_output = within == "output" or isinstance(pattern, patterns.NM)
    competing = kernel.shape[0] if by_output else kernel.size
    keep = _choice.counts([competing], sparsity)[0]
    _choice.check_mask(kernel, mask)
    _choice.checked_within(within, "layer", "output")
    return _eliminated(kernel, damped, keep, mask, pattern, by_output)


@functools.partial(jax.jit, static_argnames=("pattern", "by_output"))
def _eliminated(
    kernel: Kernel,
    damped: Damped,
    keep: Int[Array, ""],
    allowed: Bool[Array, "in out"] | None,
    pattern: Any,
    by_output: bool,
) -> tuple[Kernel, Bool[Array, "in out"]]:
    inputs, outputs = kernel.shape
    dtype = _choice.working(kernel, damped.gram)
    inverse = (damped.upper.T @ damped.upper).astype(dtype)
    weights = kernel.astype(dtype)
    columns = jnp.arange(outputs)
    everything = jnp.ones((outputs, inputs), bool)
    may_stay = everything if allowed is None else allowed.T

    def losing(mask: Bool[Array, "out in"]) -> Bool[Array, "out in"]:
        """Of which weights one must still go."""
        return mask & (_too_many(mask, keep, pattern, by_output) | ~may_stay)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        weights, inverses, mask = state  # (out, in), (out, in, in), (out, in)
        diagonal = jnp.diagonal(inverses, axis1=1, axis2=2)
        free = losing(mask)
        costs = jnp.where(free, jnp.square(weights) / jnp.where(free, diagonal, 1), jnp.inf)
        costs = jnp.where(free & ~may_stay, -1, costs)
        index = jnp.argmin(costs, axis=1)
        chosen = jnp.any(free, axis=1)
        if not by_output:
            chosen = chosen & (columns == jnp.argmin(costs[columns, index]))
        row = jnp.where(chosen[:, None], inverses[columns, index], 0)
        pivot = jnp.where(chosen, diagonal[columns, index], 1)[:, None]
        weights = weights - row * (weights[columns, index][:, None] / pivot)
        inverses = inverses - row[:, :, None] * (row / pivot)[:, None, :]
        gone = chosen[:, None] & (jnp.arange(inputs)[None] == index[:, None])
        mask = mask & ~gone
        return jnp.where(mask, weights, 0), inverses, mask

    start = (weights.T, jnp.broadcast_to(inverse, (outputs, inputs, inputs)), everything)
    weights, _, mask = lax.while_loop(lambda state: jnp.any(losing(state[2])), step, start)
    return weights.T.astype(kernel.dtype), mask.T


def _too_many(mask: Bool[Array, "out in"], keep: Int[Array, ""], pattern: Any, by_output: bool) -> Bool[Array, "..."]:
    """Where more weights are left than may stay: in a group of the pattern, in an output, or in the layer."""
    if isinstance(pattern, patterns.NM):
        left = jnp.sum(mask.reshape(mask.shape[0], -1, pattern.m), axis=2, dtype=jnp.int32)
        return jnp.repeat(left > pattern.n, pattern.m, axis=1)
    return jnp.sum(mask, axis=1 if by_output else None, keepdims=True, dtype=jnp.int32) > keep
