"""ADMM: prunes a layer by alternating between the best weights and the sparsest ones.

Notes on what differs from the paper:

1. Once the mask is found, conjugate gradients solve for the kept weights until they have converged, all outputs at a
   time; more ADMM steps with a fixed mask would go to the same solution, more slowly.
2. The sparsity rises for N:M too: besides those that the pattern chooses, ever fewer of the highest weights stay.
3. Exactly `round(size * (1 - sparsity))` weights stay, and ties go to the lowest index.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune import patterns
from jaxprune.layerwise import _choice
from jaxprune.layerwise._damping import factorise, report
from jaxprune.layerwise._refit import refine, scaled, solve
from jaxprune.typing import Gram, Kernel, Sparsity

_CONVERGED = 1e-4  # norm of what is left of the gradient, relative to the right-hand side


def admm(
    kernel: Kernel,
    gram: Gram,
    sparsity: Sparsity | None = None,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    iterations: int = 20,
    damping: float = 0.01,
    penalty: float = 1.0,
    within: Literal["layer", "output"] = "layer",
    refit: bool = False,
) -> tuple[Kernel, Bool[Array, "in out"]]:
    r"""Prunes one layer and re-solves what is left, so that $\lVert X W - X \hat W \rVert_F$ is small.

    Inputs are first scaled to unit norm, so that a weight competes by its share of the output, and one factorisation
    serves every step. The mask is reselected at each, while the sparsity rises to its final value; then the weights
    are refined on that mask until they have converged.

    Args:
      kernel: `(in, out)`, floating.
      gram: $X^\top X$ of the layer's inputs, `(in, in)`.
      sparsity: Fraction to remove, in [0, 1]; may be traced. `None` means what the pattern fixes, else 0.5.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      iterations: How often the mask is reselected, at least 1.
      damping: Pulls the weights towards the given ones: a fraction of each input's own squared norm, so that a few
        large inputs do not damp the others.
      penalty: On the distance to the sparse weights, relative to the squared norm of an input. A higher one changes the
        mask less from step to step.
      within: Which weights compete: all, or those of one output; for N:M only while the sparsity rises.
      refit: Whether to solve for the kept weights exactly in the end, by a factorisation for each output: `out` times
        the cost of the one above. A system that is not of full rank has its damping raised, with a warning.

    Returns:
      The kernel, of the same dtype, exactly 0 where it is pruned, and the mask, `True` = kept.

    Raises:
      ValueError: The shapes or the pattern do not fit, or the Gram matrix is not finite.
      TypeError: The kernel is not floating, or the pattern is another one.

    Example:
      >>> from jaxprune import layerwise
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> kernel, mask = layerwise.admm(jnp.ones((8, 4)), x.T @ x, 0.75)
      >>> int(mask.sum()), bool((kernel[~mask] == 0).all())
      (8, True)

    References:
      Boža, 2024, "Fast and Effective Weight Update for Pruned Large Language Models", algorithms 1 and 2.
    """
    sparsity = _choice.checked(kernel, gram.shape, pattern, sparsity)
    if iterations < 1:
        raise ValueError(f"`iterations` must be at least 1; got {iterations}. The paper takes 20.")
    competing = kernel.shape[0] if within == "output" else kernel.size
    final = 1.0 if isinstance(pattern, patterns.NM) else sparsity  # of those that compete
    rising = [final * (1 - (1 - (i + 1) / iterations) ** 3) for i in range(iterations)]
    keep = jnp.concatenate([_choice.counts([competing], s) for s in rising])
    pruned, mask, fit = _admm(kernel, gram, keep, damping, penalty, pattern, within == "output", refit)
    report(*fit)
    return pruned, mask


@functools.partial(jax.jit, static_argnames=("pattern", "by_output", "refit"))
def _admm(
    kernel: Kernel,
    gram: Gram,
    keep: Int[Array, " iteration"],
    damping: Float[Array, ""] | float,
    penalty: Float[Array, ""] | float,
    pattern: Any,
    by_output: bool,
    refit: bool,
) -> tuple[Kernel, Bool[Array, "in out"], tuple[Array, ...]]:
    system = scaled(kernel, gram, damping)
    weights, identity = system.weights, jnp.eye(gram.shape[0], dtype=system.gram.dtype)
    damped = factorise(system.gram + penalty * identity, jnp.float32(0))
    inverse = damped.upper.T @ damped.upper

    def step(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        solved, dual, _ = state
        proposed = solved + dual
        mask = _choice.highest(jnp.abs(proposed), keep[i], by_output)
        if isinstance(pattern, patterns.NM):
            mask = mask | pattern.select(jnp.abs(proposed), 0)
        sparse = jnp.where(mask, proposed, 0)
        dual = proposed - sparse
        return inverse @ (system.target + penalty * (sparse - dual)), dual, mask

    start = (weights, jnp.zeros_like(weights), jnp.zeros(weights.shape, bool))
    solved, _, mask = lax.fori_loop(0, keep.shape[0], step, start)
    solved = refine(system, jnp.where(mask, solved, 0), mask, _CONVERGED)
    fit = (damped.steps, damped.damping, jnp.all(jnp.isfinite(damped.upper)))
    if refit:
        solved, fit = solve(system, mask)
    return (solved / system.scale[:, None]).astype(kernel.dtype), mask, fit
