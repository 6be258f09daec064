"""Factorises a Gram matrix; the damping is raised, with a warning, until that succeeds."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxprune._arrays import checks, inputs, tree
from jaxprune.typing import Gram

_LEAST = 1e-6
_STEPS = 10


class Damped(NamedTuple):
    """A Gram matrix that is safe to invert.

    Attributes:
      gram: With the damping added to its diagonal; where an input was never seen, a tiny number stands in for 0.
      upper: Upper triangular; `upper.T @ upper` is the inverse of `gram`.
      damping: What was added, as a fraction of the mean of the diagonal over the inputs that were seen.
      steps: How often the damping had to be raised.
    """

    gram: Gram
    upper: Float[Array, "in in"]
    damping: Float[Array, ""]
    steps: Int[Array, ""]


def damp(gram: Gram, *, damping: float | Float[Array, ""] = 0.01) -> Damped:
    r"""Factorises the inverse of `gram + damping * mean(diagonal) * I`.

    If the Cholesky factorisation breaks down, or a pivot is no more than rounding error, the damping is raised tenfold
    (from 0: to 1e-6) and tried again. A warning says so, under `jit` too, and the result holds the final damping.

    Args:
      gram: Symmetric, $X^\top X$.
      damping: Fraction of the mean of the diagonal to begin with.

    Returns:
      The damped matrix, the factor of its inverse, and how it was damped.

    Raises:
      ValueError: The matrix is not square, or no damping helps: it holds NaN or infinity, or is far from positive.

    Examples:
      >>> from jaxprune import layerwise
      >>> damped = layerwise.damp(jnp.diag(jnp.array([1.0, 3.0])), damping=0.5)
      >>> print(damped.gram, damped.steps)
      [[2. 0.]
       [0. 4.]] 0

    References:
      Frantar & Alistarh, 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", which damps
      by 1 % of the mean; raising it is ours.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"A Gram matrix is square, (in, in); got shape {gram.shape}. Pass X.T @ X.")
    if checks.is_concrete(damping):
        checks.positive(damping, "damping", zero=True)
    damped = factorise(gram.astype(tree.promote(gram.dtype, jnp.float32)), jnp.asarray(damping, jnp.float32))
    report(damped.steps, damped.damping, jnp.all(jnp.isfinite(damped.upper)))
    return damped


@jax.jit
def factorise(gram: Gram, damping: Float[Array, ""]) -> Damped:
    """`damp` without its checks and warnings, so that it can be mapped over kernels."""
    factor = _factor(gram, damping)
    # The Cholesky factor of H with both axes reversed, reversed again, is an upper R with H = R R^T: H^-1 = R^-T R^-1.
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    inverse = lax.linalg.triangular_solve(factor.lower, identity, left_side=True, lower=True)
    return Damped(factor.gram, _reversed(inverse), factor.damping, factor.steps)


class Solution(NamedTuple):
    """The solution of a linear system, and the damping that it took.

    Attributes:
      values: `(in, out)`.
      damping: What was added to the diagonal, as a fraction of its mean over the inputs that were seen.
      steps: How often the damping had to be raised.
      finite: Whether the factorisation succeeded in the end.
    """

    values: Float[Array, "in out"]
    damping: Float[Array, ""]
    steps: Int[Array, ""]
    finite: Bool[Array, ""]


def solve(gram: Gram, right: Float[Array, "in out"]) -> Solution:
    """Solves `gram @ values = right`, damped only if the factorisation fails without; can be mapped as `factorise`."""
    factor = _factor(gram, jnp.float32(0))
    values = jax.scipy.linalg.cho_solve((factor.lower, True), jnp.flip(right, 0))
    return Solution(jnp.flip(values, 0), factor.damping, factor.steps, jnp.all(jnp.isfinite(factor.lower)))


class _Factor(NamedTuple):
    """As `Damped`, but with the Cholesky factor of the damped matrix with both axes reversed."""

    gram: Gram
    lower: Float[Array, "in in"]
    damping: Float[Array, ""]
    steps: Int[Array, ""]


def _factor(gram: Gram, damping: Float[Array, ""]) -> _Factor:
    diagonal = jnp.diagonal(gram)
    least = inputs.least_square(diagonal)
    # An input that was never seen has nothing to be damped, so that its weights stay the cheapest to remove.
    seen = jnp.minimum(diagonal / least, 1)
    mean = seen * jnp.sum(diagonal) / jnp.maximum(jnp.sum(seen), 1)
    gram = gram + jnp.diag(jnp.maximum(least - diagonal, 0))

    def attempt(state: tuple[Array, ...]) -> tuple[Array, ...]:
        _, fraction, steps, _ = state
        fraction = jnp.where(steps < 0, fraction, jnp.maximum(fraction * 10, _LEAST))
        shifted = gram + jnp.diag(fraction * mean)
        lower = lax.linalg.cholesky(_reversed(shifted), symmetrize_input=False)
        pivots = jnp.diagonal(lower) ** 2
        tiny = jnp.finfo(gram.dtype).eps * jnp.flip(jnp.diagonal(shifted))
        return lower, fraction, steps + 1, jnp.all(jnp.isfinite(lower)) & jnp.all(pivots > tiny)

    start = (jnp.zeros_like(gram), damping.astype(gram.dtype), jnp.int32(-1), jnp.array(False))
    lower, fraction, steps, _ = lax.while_loop(lambda s: ~s[3] & (s[2] < _STEPS), attempt, start)
    return _Factor(gram + jnp.diag(fraction * mean), lower, fraction, steps)


def report(steps: Int[Array, "..."], damping: Float[Array, "..."], finite: Bool[Array, "..."]) -> None:
    """Warns if the damping was raised, and raises if that was not enough; for traced values, when the program runs."""
    if any(isinstance(value, Tracer) for value in (steps, damping, finite)):
        jax.debug.callback(_report, steps, damping, finite)
    else:
        _report(steps, damping, finite)


def _report(steps: Any, damping: Any, finite: Any) -> None:
    if not np.all(finite):
        raise ValueError(
            f"The Gram matrix could not be factorised, even with {float(np.max(damping)):g} of its mean diagonal "
            "added; it must be finite and positive semi-definite. Look for NaN among the inputs of the layer."
        )
    if np.any(np.asarray(steps) > 0):
        warnings.warn(
            f"The Gram matrix is not of full rank: its damping was raised {int(np.max(steps))} times, to "
            f"{float(np.max(damping)):g} of the mean diagonal. More calibration samples would help.",
            stacklevel=4,
        )


def _reversed(matrix: Gram) -> Gram:
    return jnp.flip(matrix, (0, 1))
