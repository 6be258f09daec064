"""Least squares for the weights that a mask keeps, so that they make up for the pruned ones."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxprune import patterns
from jaxprune._arrays import inputs
from jaxprune.layerwise import _choice
from jaxprune.layerwise._damping import factorise, report
from jaxprune.typing import Gram, Kernel

_CONVERGED = 1e-5  # norm of the residual, relative to that of the right-hand side
_MOST_STEPS = 200


def refit(
    kernel: Kernel, gram: Gram, mask: Bool[Array, "in out"], *, damping: float = 0.01, exact: bool = False
) -> Kernel:
    r"""Re-solves the kept weights of one layer, so that $\lVert X W - X \hat W \rVert_F$ is least on that support.

    Args:
      kernel: `(in, out)`, floating, before it was pruned.
      gram: $X^\top X$ of the layer's inputs, `(in, in)`.
      mask: `True` = kept.
      damping: Pulls the weights towards the given ones: a fraction of each input's own squared norm. 0 gives least
        squares alone, which fit a few samples too closely.
      exact: Whether to factorise a matrix for each output, `out` times the cost of one; else conjugate gradients solve
        for all outputs at a time, until they have converged. An exact system that is not of full rank has its damping
        raised, with a warning.

    Returns:
      The kernel, of the same dtype, exactly 0 where it is pruned.

    Raises:
      ValueError: The shapes do not fit, or `exact` and the Gram matrix is not finite.
      TypeError: The kernel is not floating.

    Examples:
      >>> from jaxprune import layerwise
      >>> gram = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> print(layerwise.refit(jnp.array([[3.0], [2.0]]), gram, jnp.array([[True], [False]]), damping=0.0))
      [[4.]
       [0.]]

    References:
      Boža, 2024, "Fast and Effective Weight Update for Pruned Large Language Models", for its damping and scale.
    """
    _choice.checked(kernel, gram.shape, patterns.Unstructured(), 0.0)
    _choice.check_mask(kernel, mask)
    _choice.checked_options(damping=damping)
    solved, fit = _least_squares(kernel, gram, mask, damping, exact)
    if exact:
        report(*fit)
    return solved


@functools.partial(jax.jit, static_argnames="exact")
def _least_squares(
    kernel: Kernel, gram: Gram, mask: Bool[Array, "in out"], damping: Float[Array, ""] | float, exact: bool
) -> tuple[Kernel, Any]:
    system = scaled(kernel, gram, damping)
    start = jnp.where(mask, system.weights, 0)
    solved, fit = solve(system, mask) if exact else (refine(system, start, mask, _CONVERGED), None)
    return unscaled(kernel, solved, mask, gram, system), fit


class Scaled(NamedTuple):
    """A layer whose inputs are scaled to unit norm.

    Attributes:
      gram: Of the scaled inputs, with the damping on its diagonal.
      weights: The kernel for the scaled inputs.
      target: `gram @ weights`.
      scale: The norms that the inputs were divided by; a tiny number for those that were never seen.
    """

    gram: Gram
    weights: Kernel
    target: Kernel
    scale: Float[Array, " in"]


def scaled(kernel: Kernel, gram: Gram, damping: Float[Array, ""] | float) -> Scaled:
    """Scales inputs to unit norm, so that weights can be compared by what they add to the output."""
    dtype = _choice.working(kernel, gram)
    gram = gram.astype(dtype)
    squares = jnp.diagonal(gram)
    lifted = jnp.maximum(squares, inputs.least_square(squares))
    scale = jnp.sqrt(lifted)
    pull = (lifted - squares) / lifted + jnp.asarray(damping, dtype)  # towards the given weights
    correlation = gram / (scale[:, None] * scale[None, :]) + jnp.diag(pull)
    weights = kernel.astype(dtype) * scale[:, None]
    return Scaled(correlation, weights, correlation @ weights, scale)


def unscaled(kernel: Kernel, solved: Kernel, mask: Bool[Array, "in out"], gram: Gram, system: Scaled) -> Kernel:
    """The kernel for the inputs as they are. What an input that was never seen keeps does not change."""
    values = (solved / system.scale[:, None]).astype(kernel.dtype)
    return jnp.where(inputs.are_unseen(jnp.diagonal(gram))[:, None] & mask, kernel, values)


def refine(system: Scaled, weights: Kernel, mask: Bool[Array, "in out"], tolerance: float) -> Kernel:
    """Conjugate gradients for the kept weights of every output at once."""

    def squared(values: Array) -> Float[Array, " out"]:
        return jnp.sum(jnp.square(values), axis=0)

    gram, target = system.gram, system.target
    tolerated = tolerance**2 * squared(jnp.where(mask, target, 0))

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        weights, residual, direction, size, steps = state
        image = jnp.where(mask, gram @ direction, 0)
        curvature = jnp.sum(direction * image, axis=0)
        moves = (size > tolerated) & (curvature > 0)
        length = jnp.where(moves, size / jnp.where(curvature > 0, curvature, 1), 0)[None]
        weights, residual = weights + length * direction, residual - length * image
        new_size = squared(residual)
        new_direction = residual + (new_size / jnp.where(size > 0, size, 1))[None] * direction
        return weights, residual, new_direction, new_size, steps + 1

    def unfinished(state: tuple[Array, ...]) -> Bool[Array, ""]:
        return jnp.any(state[3] > tolerated) & (state[4] < _MOST_STEPS)

    residual = jnp.where(mask, target - gram @ weights, 0)
    return lax.while_loop(unfinished, step, (weights, residual, residual, squared(residual), jnp.int32(0)))[0]


def solve(system: Scaled, mask: Bool[Array, "in out"]) -> tuple[Kernel, tuple[Array, ...]]:
    """Factorises the system of each output's kept weights: the least-squares weights, and what `report` takes."""
    identity = jnp.eye(system.gram.shape[0], dtype=system.gram.dtype)

    def one(column: tuple[Array, Array]) -> tuple[Array, ...]:
        right, kept = column
        damped = factorise(jnp.where(kept[:, None] & kept[None, :], system.gram, identity), jnp.float32(0))
        solved = damped.upper.T @ (damped.upper @ jnp.where(kept, right, 0))
        return jnp.where(kept, solved, 0), damped.steps, damped.damping, jnp.all(jnp.isfinite(damped.upper))

    solved, *fit = lax.map(one, (system.target.T, mask.T), batch_size=8)
    return solved.T, tuple(fit)
