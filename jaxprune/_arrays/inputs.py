"""Inputs of a layer that calibration never saw, or hardly."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_NOTHING = 1e-4  # of the least square: what is fitted to such an input changes its weights by less than that
_LEAST = 1e-8  # of the mean of the squared norms: rounding, in float32


def least_square(squares: Float[Array, "..."], axes: tuple[int, ...] = (0,)) -> Float[Array, "..."]:
    """What an input's squared norm is taken for if it is lower.

    Statistics say nothing of an input that was 0 in every sample. With this in place of 0, its weights are compared
    with each other by magnitude, come before those of all other inputs in the order of removal, and are fitted to
    nothing but their own values. Inputs that were nearly 0 follow continuously.

    Args:
      squares: The squared norms of inputs.
      axes: Those that the inputs of a kernel lie along.

    Returns:
      Of the same rank, of size 1 along `axes`.
    """
    mean = jnp.mean(squares, axis=axes, keepdims=True)
    return jnp.where(mean > 0, mean * _LEAST, jnp.ones_like(mean))


def are_unseen(squares: Float[Array, " in"]) -> Bool[Array, " in"]:
    """Which inputs of a kernel were 0 in every sample, or next to it."""
    return squares <= _NOTHING * least_square(squares)
