"""Changes a kernel so that it makes up for the change of its inputs, which pruned layers before it caused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune import patterns
from jaxprune.layerwise import _choice
from jaxprune.layerwise._damping import report, solve
from jaxprune.layerwise._refit import scaled
from jaxprune.typing import Gram, Kernel


def correct(
    kernel: Kernel,
    gram: Gram,
    cross: Float[Array, "in in"],
    *,
    share: float = 1.0,
    damping: float = 0.3,
    residual: Float[Array, "in out"] | None = None,
) -> Kernel:
    r"""The kernel whose outputs for changed inputs are nearest to those of the given kernel for the original inputs.

    It minimises $\lVert \hat X W' - X W \rVert_F$, with damping. The squared error of a pruned kernel against the
    original outputs is, up to a constant, its squared error against $\hat X W'$. So any method that takes a Gram matrix
    comes near the original outputs if it prunes $W'$ in place of $W$.

    Args:
      kernel: $W$, `(in, out)`, floating.
      gram: $\hat X^\top \hat X$ of the changed inputs, `(in, in)`.
      cross: $\hat X^\top X$, of the changed and the original inputs for the same samples, `(in, in)`.
      share: How much of the change to make up for, in [0, 1]. At 1 the kernel fits a few samples too closely.
      damping: Pulls the weights towards the given ones: a fraction of each input's own squared norm.
      residual: $\hat X^\top (S - \hat S)$, `(in, out)`, where the outputs are added to $S$, as in a residual stream,
        which has changed to $\hat S$. The kernel then makes up for that change too.

    Returns:
      The kernel, of the same dtype.

    Raises:
      ValueError: The shapes do not fit, the share is out of range, or the Gram matrix is not finite.
      TypeError: The kernel is not floating.

    Examples:
      >>> from jaxprune import layerwise
      >>> x = jax.random.normal(jax.random.key(0), (64, 2))
      >>> changed = x * jnp.array([1.0, 0.5])  # the second input was halved
      >>> print(layerwise.correct(jnp.ones((2, 1)), changed.T @ changed, changed.T @ x, damping=0.0).round(3))
      [[1.]
       [2.]]

    References:
      Li et al., 2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", which quantises
      towards the outputs of the full model; solving for a kernel first is ours.
    """
    _choice.checked(kernel, gram.shape, patterns.Unstructured(), 0.0)
    _choice.checked_options(damping=damping)
    if cross.shape != gram.shape or not 0 <= share <= 1:
        raise ValueError(
            f"`cross` must have the shape {gram.shape} of the Gram matrix, and `share` must be in [0, 1]; got "
            f"{cross.shape} and {share}."
        )
    residual = jnp.zeros(kernel.shape, gram.dtype) if residual is None else residual
    if residual.shape != kernel.shape:
        raise ValueError(f"`residual` must have the shape {kernel.shape} of the kernel; got {residual.shape}.")
    corrected, fit = _correct(kernel, gram, cross, share, damping, residual)
    report(*fit)
    return corrected


@jax.jit
def _correct(
    kernel: Kernel,
    gram: Gram,
    cross: Float[Array, "in in"],
    share: Float[Array, ""] | float,
    damping: Float[Array, ""] | float,
    residual: Float[Array, "in out"],
) -> tuple[Kernel, tuple[Array, ...]]:
    # The given kernel solves the damped system for its own outputs, so only the change has to be solved for.
    system = scaled(kernel, gram, damping)
    change = share * ((cross - gram).astype(system.gram.dtype) @ kernel.astype(system.gram.dtype) + residual)
    solution = solve(system.gram, change / system.scale[:, None])
    fit = solution.steps, solution.damping, solution.finite
    return kernel + (solution.values / system.scale[:, None]).astype(kernel.dtype), fit
