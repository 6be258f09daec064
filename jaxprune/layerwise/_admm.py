"""ADMM: prunes a layer by alternating between the best dense weights and the nearest sparse ones.

Notes on what differs from the paper:

1. Once the mask is found, conjugate gradients solve for the kept weights until they have converged, all outputs at a
   time; more ADMM steps with a fixed mask would reach the same solution more slowly.
2. The sparsity rises for N:M too: at first the largest weights stay as well, besides those that the pattern chooses,
   and with every step fewer of them.
3. Exactly `round(size * (1 - sparsity))` weights stay, and ties go to the lowest index.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune import patterns
from jaxprune._arrays import inputs
from jaxprune.layerwise import _choice
from jaxprune.layerwise._damping import factorise, report
from jaxprune.layerwise._refit import refine, scaled, solve, unscaled
from jaxprune.typing import Gram, Kernel, Sparsity

_CONVERGED = 1e-4  # norm of the residual, relative to that of the right-hand side


@dataclasses.dataclass(frozen=True, kw_only=True)
class ADMM:
    """ADMM as a method for `oneshot.prune`; see `admm`. Slower than `SparseGPT`, and nearer to the dense model.

    Attributes:
      iterations: How often the mask is reselected, at least 1.
      damping: Pulls the weights towards the given ones: a fraction of each input's own squared norm, so that a few
        large inputs do not damp the others. Larger by default than for `admm` alone, for the reason in `SparseGPT`.
      penalty: On the distance to the sparse weights, relative to the squared norm of an input. A higher one changes the
        mask less from step to step. `None` means 1 for N:M, where higher ones give worse masks, else 3.
      within: Which weights compete: all of the layer, or those of one output, which is better for a whole model; for
        N:M only while the sparsity rises.
      refit: Whether to solve for the kept weights exactly in the end, by a factorisation for each output: `out` times
        the cost of the one that the steps share. A system that is not of full rank has its damping raised, with a
        warning.

    Examples:
      >>> from jaxprune import layerwise, oneshot
      >>> params, x = {"kernel": jnp.ones((8, 4))}, jax.random.normal(jax.random.key(0), (64, 8))
      >>> method = layerwise.ADMM(iterations=10)
      >>> params, masks = oneshot.prune(lambda p, x: x @ p["kernel"], params, [x], method, sparsity=0.75)
      >>> print(jaxprune.sparsity(params, masks))
      0.75

    References:
      Boža, 2024, "Fast and Effective Weight Update for Pruned Large Language Models".
    """

    iterations: int = 20
    damping: float = 0.3
    penalty: float | None = None
    within: Literal["layer", "output"] = "output"
    refit: bool = False

    def __post_init__(self) -> None:
        _choice.checked_options(iterations=self.iterations, damping=self.damping, penalty=self.penalty)
        _choice.checked_within(self.within, "layer", "output")

    @property
    def statistic(self) -> Literal["gram"]:
        """It needs Gram matrices."""
        return "gram"

    def prepare(self, statistic: Gram) -> Gram:
        """The Gram matrix itself: each kernel scales and damps it anew."""
        return statistic

    def prune(
        self,
        kernel: Kernel,
        prepared: Gram,
        sparsity: Sparsity,
        pattern: patterns.Unstructured | patterns.NM,
        mask: Bool[Array, "in out"] | None = None,
    ) -> tuple[Kernel, Bool[Array, "in out"]]:
        """Calls `admm`."""
        penalty = self.penalty
        if penalty is None:
            penalty = 1.0 if isinstance(pattern, patterns.NM) else 3.0
        return admm(
            kernel,
            prepared,
            sparsity,
            pattern=pattern,
            iterations=self.iterations,
            damping=self.damping,
            penalty=penalty,
            within=self.within,
            refit=self.refit,
            mask=mask,
        )


def admm(
    kernel: Kernel,
    gram: Gram,
    sparsity: Sparsity | None = None,
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    iterations: int = 20,
    damping: float = 0.01,
    penalty: float = 1.0,
    within: Literal["layer", "output"] = "layer",
    refit: bool = False,
    mask: Bool[Array, "in out"] | None = None,
) -> tuple[Kernel, Bool[Array, "in out"]]:
    r"""Prunes one layer and solves for the kept weights, so that $\lVert X W - X \hat W \rVert_F$ is small.

    Inputs are first scaled to unit norm, so that weights are compared by what they add to the output, and one
    factorisation serves every step. Each step selects the mask anew, while the sparsity rises to its final value; then
    the weights are refined on that mask until they have converged.

    Args:
      kernel: `(in, out)`, floating.
      gram: $X^\top X$ of the layer's inputs, `(in, in)`.
      sparsity: Fraction to remove, in [0, 1]; may be traced. `None` means what the pattern fixes, else 0.5.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      iterations: See `ADMM`, as for the options below.
      damping: A fraction of each input's own squared norm.
      penalty: Relative to the squared norm of an input.
      within: Which weights compete.
      refit: Whether to solve for the kept weights exactly in the end.
      mask: Which weights may stay, `True`; the others are pruned whatever their number. `None` means all.

    Returns:
      The kernel, of the same dtype, exactly 0 where it is pruned, and the mask, `True` = kept.

    Raises:
      ValueError: The shapes or the pattern do not fit, or the Gram matrix is not finite.
      TypeError: The kernel is not floating, or the pattern is another one.

    Examples:
      >>> from jaxprune import layerwise
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> kernel, mask = layerwise.admm(jnp.ones((8, 4)), x.T @ x, 0.75)
      >>> int(mask.sum()), bool((kernel[~mask] == 0).all())
      (8, True)

    References:
      Boža, 2024, "Fast and Effective Weight Update for Pruned Large Language Models", algorithms 1 and 2.
    """
    sparsity = _choice.checked(kernel, gram.shape, pattern, sparsity)
    _choice.check_mask(kernel, mask)
    _choice.checked_options(iterations=iterations, damping=damping, penalty=penalty)
    _choice.checked_within(within, "layer", "output")
    competing = kernel.shape[0] if within == "output" else kernel.size
    final = 1.0 if isinstance(pattern, patterns.NM) else sparsity  # of the weights that compete
    rising = [final * (1 - (1 - (i + 1) / iterations) ** 3) for i in range(iterations)]
    keep = jnp.concatenate([_choice.counts([competing], s) for s in rising])
    pruned, kept, fit = _alternated(kernel, gram, keep, mask, damping, penalty, pattern, within == "output", refit)
    report(*fit)
    return pruned, kept


@functools.partial(jax.jit, static_argnames=("pattern", "by_output", "refit"))
def _alternated(
    kernel: Kernel,
    gram: Gram,
    keep: Int[Array, " iteration"],
    allowed: Bool[Array, "in out"] | None,
    damping: Float[Array, ""] | float,
    penalty: Float[Array, ""] | float,
    pattern: Any,
    by_output: bool,
    refit: bool,
) -> tuple[Kernel, Bool[Array, "in out"], tuple[Array, ...]]:
    system = scaled(kernel, gram, damping)
    weights, identity = system.weights, jnp.eye(gram.shape[0], dtype=system.gram.dtype)
    unseen = inputs.are_unseen(jnp.diagonal(gram))[:, None]
    damped = factorise(system.gram + penalty * identity, jnp.float32(0))
    inverse = damped.upper.T @ damped.upper

    def step(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        solved, dual, _ = state
        proposed = solved + dual
        # Nothing is fitted to an input that was never seen, so that only the weights themselves tell.
        scores = _choice.scored(jnp.abs(jnp.where(unseen, weights, proposed)), allowed)
        mask = _choice.highest(scores, keep[i], by_output)
        if isinstance(pattern, patterns.NM):
            mask = mask | pattern.select(scores, 0)
        mask = mask if allowed is None else mask & allowed
        sparse = jnp.where(mask, proposed, 0)
        dual = proposed - sparse
        return inverse @ (system.target + penalty * (sparse - dual)), dual, mask

    start = (weights, jnp.zeros_like(weights), jnp.zeros(weights.shape, bool))
    solved, _, mask = lax.fori_loop(0, keep.shape[0], step, start)
    solved = refine(system, jnp.where(mask, solved, 0), mask, _CONVERGED)
    fit = (damped.steps, damped.damping, jnp.all(jnp.isfinite(damped.upper)))
    if refit:
        solved, fit = solve(system, mask)
    return unscaled(kernel, solved, mask, gram, system), mask, fit
