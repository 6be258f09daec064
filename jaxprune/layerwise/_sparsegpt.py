"""SparseGPT: prunes the inputs of a layer in order; the weights of later inputs make up for the error so far.

Notes on what differs from the paper's program, which works on (out, in) kernels:

1. The factor of the inverse comes from one Cholesky factorisation and one triangular solve, with no explicit inverse.
2. An error is not applied to all later rows of the kernel at once. Each row makes up for all earlier errors when its
   turn comes ("left-looking"), by one product for a block and one for a group. The results are the same up to rounding.
3. Exactly `round(size * (1 - sparsity))` weights stay, and ties go to the lowest index.
4. Weights of an input that was never seen keep their values, or are pruned, smallest first and before all others; there
   they are set to 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune import patterns
from jaxprune.layerwise import _choice
from jaxprune.layerwise._damping import Damped, damp
from jaxprune.typing import Gram, Kernel, Sparsity


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseGPT:
    """SparseGPT as a method for `oneshot.prune`; see `sparsegpt`.

    Attributes:
      block: How many inputs are decided on together, at least 1; rounded up to a multiple of `m` under N:M.
      damping: See `damp`. Larger by default than for `sparsegpt` alone and than in the paper's program, 0.01: in a
        whole model, a kernel that fits a few samples too closely serves other samples worse.
      within: Which weights compete, if unstructured: those of a block, as in the paper's program, or those of a block
        that belong to the same output.

    Examples:
      >>> from jaxprune import layerwise, oneshot
      >>> params, x = {"kernel": jnp.ones((8, 4))}, jax.random.normal(jax.random.key(0), (64, 8))
      >>> method = layerwise.SparseGPT(damping=0.05)
      >>> params, masks = oneshot.prune(lambda p, x: x @ p["kernel"], params, [x], method, sparsity=0.75)
      >>> print(jaxprune.sparsity(params, masks))
      0.75

    References:
      Frantar & Alistarh, 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot".
    """

    block: int = 128
    damping: float = 0.1
    within: Literal["block", "output"] = "block"

    def __post_init__(self) -> None:
        _choice.checked_options(block=self.block, damping=self.damping)
        _choice.checked_within(self.within, "block", "output")

    @property
    def statistic(self) -> Literal["gram"]:
        """It needs Gram matrices."""
        return "gram"

    def prepare(self, statistic: Gram) -> Damped:
        """Factorises the Gram matrix, once for all kernels with the same inputs."""
        return damp(statistic, damping=self.damping)

    def prune(
        self,
        kernel: Kernel,
        prepared: Damped,
        sparsity: Sparsity,
        pattern: patterns.Unstructured | patterns.NM,
        mask: Bool[Array, "in out"] | None = None,
    ) -> tuple[Kernel, Bool[Array, "in out"]]:
        """Calls `sparsegpt`."""
        return sparsegpt(kernel, prepared, sparsity, pattern=pattern, block=self.block, within=self.within, mask=mask)


def sparsegpt(
    kernel: Kernel,
    gram: Gram | Damped,
    sparsity: Sparsity | None = None,
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    block: int = 128,
    damping: float = 0.01,
    within: Literal["block", "output"] = "block",
    mask: Bool[Array, "in out"] | None = None,
) -> tuple[Kernel, Bool[Array, "in out"]]:
    r"""Prunes one layer and adjusts the kept weights, so that $\lVert X W - X \hat W \rVert_F$ stays small.

    Args:
      kernel: `(in, out)`, floating.
      gram: $X^\top X$ of the layer's inputs, `(in, in)`; or the result of `damp`, which layers with the same inputs
        can share.
      sparsity: Fraction to remove, in [0, 1]; may be traced. `None` means what the pattern fixes, else 0.5.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      block: See `SparseGPT`.
      damping: See `damp`. A Gram matrix that is not of full rank raises it, with a warning.
      within: See `SparseGPT`.
      mask: Which weights may stay, `True`; the others are pruned whatever their number. `None` means all.

    Returns:
      The kernel, of the same dtype, exactly 0 where it is pruned, and the mask, `True` = kept.

    Raises:
      ValueError: The shapes or the pattern do not fit, or the Gram matrix is not finite.
      TypeError: The kernel is not floating, or the pattern is another one.

    Examples:
      >>> from jaxprune import layerwise
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> kernel, mask = layerwise.sparsegpt(jnp.ones((8, 4)), x.T @ x, 0.75)
      >>> int(mask.sum()), bool((kernel[~mask] == 0).all())
      (8, True)

    References:
      Frantar & Alistarh, 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", algorithm 1.
    """
    sparsity = _choice.checked(kernel, (gram.gram if isinstance(gram, Damped) else gram).shape, pattern, sparsity)
    _choice.check_mask(kernel, mask)
    _choice.checked_options(block=block, damping=damping)
    _choice.checked_within(within, "block", "output")
    damped = gram if isinstance(gram, Damped) else damp(gram, damping=damping)
    inputs, outputs = kernel.shape
    block = min(block, inputs)
    if isinstance(pattern, patterns.NM):
        block += -block % pattern.m
    ends = [min(start + block, inputs) for start in range(0, inputs, block)]
    kept = _choice.counts([end if within == "output" else end * outputs for end in ends], sparsity)
    keep = jnp.diff(kept, prepend=jnp.zeros(1, jnp.int32))
    return _swept(kernel, damped.upper, keep, mask, pattern, block, within == "output")


@functools.partial(jax.jit, static_argnames=("pattern", "block", "by_output"))
def _swept(
    kernel: Kernel,
    upper: Float[Array, "in in"],
    keep: Int[Array, " block"],
    allowed: Bool[Array, "in out"] | None,
    pattern: Any,
    block: int,
    by_output: bool,
) -> tuple[Kernel, Bool[Array, "in out"]]:
    inputs = kernel.shape[0]
    dtype = _choice.working(kernel, upper)
    rest = -inputs % block
    weights = jnp.pad(kernel.astype(dtype), ((0, rest), (0, 0)))
    factor = jnp.pad(upper.astype(dtype), ((0, rest), (0, rest))) + jnp.diag(
        (jnp.arange(inputs + rest) >= inputs).astype(dtype)
    )

    # The padding of the last block never takes the place of a weight.
    may_stay = jnp.pad(jnp.ones(kernel.shape, bool) if allowed is None else allowed, ((0, rest), (0, 0)))

    def choose(weights: Array, factor: Array, start: Array, keep: Array) -> tuple[Array, Array, Array]:
        may = lax.dynamic_slice_in_dim(may_stay, start, weights.shape[0])
        mask = _choice.chosen(_choice.scored(_saliency(weights, factor), may), keep, pattern, by_output) & may
        return _prune(weights, factor, mask)

    def by_block(weights: Array, factor: Array, index: Array) -> tuple[Array, Array, Array]:
        if not isinstance(pattern, patterns.NM):
            return choose(weights, factor, index * block, keep[index])
        first = index * block
        return _in_order(weights, factor, pattern.m, lambda w, f, i: choose(w, f, first + i * pattern.m, keep[index]))

    pruned, mask, _ = _in_order(weights, factor, block, by_block)
    return pruned[:inputs].astype(kernel.dtype), mask[:inputs]


def _saliency(weights: Float[Array, "in out"], factor: Float[Array, "in in"]) -> Float[Array, "in out"]:
    """By how much the error grows when a weight is removed and the later ones make up for it."""
    return jnp.square(weights / jnp.diagonal(factor)[:, None])


def _in_order(
    weights: Float[Array, "in out"], factor: Float[Array, "in in"], size: int, prune: Callable[..., tuple[Array, ...]]
) -> tuple[Array, Array, Array]:
    """Calls `prune(weights, factor, index)` on `size` inputs at a time, whose weights make up for all earlier errors.

    Returns:
      The pruned weights, their mask and the errors, each (in, out).
    """

    def step(index: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        _, _, errors = state
        start = index * size
        columns = lax.dynamic_slice_in_dim(factor, start, size, axis=1)  # errors of later inputs are still 0
        rows = lax.dynamic_slice_in_dim(weights, start, size) - columns.T @ errors
        results = prune(rows, lax.dynamic_slice_in_dim(columns, start, size), index)
        return tuple(lax.dynamic_update_slice_in_dim(s, r, start, 0) for s, r in zip(state, results, strict=True))

    start = (weights, jnp.zeros(weights.shape, bool), jnp.zeros_like(weights))
    pruned, mask, errors = lax.fori_loop(0, weights.shape[0] // size, step, start)
    return pruned, mask, errors


def _prune(
    weights: Float[Array, "in out"], factor: Float[Array, "in in"], mask: Bool[Array, "in out"]
) -> tuple[Array, Array, Array]:
    """Removes what the mask does not keep, one input after another."""

    def one(row: Array, factor: Array, index: Array) -> tuple[Array, Array, Array]:
        kept = lax.dynamic_slice_in_dim(mask, index, 1)
        pruned = jnp.where(kept, row, 0)
        return pruned, kept, (row - pruned) / factor

    return _in_order(weights, factor, 1, one)
