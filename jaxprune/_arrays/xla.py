"""Workarounds for XLA, each with the version that needs it, the reason, and the command that shows it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt


def opaque_indices(number: int, always: Bool[Array, ""]) -> list[UInt[Array, ""]]:
    """The numbers from 0 on, such that XLA does not take them for constants.

    Kernels for equal shapes that index by them are then equal, and XLA compiles them once. With constants in them each
    would be compiled by itself: 224 leaves of four shapes take 14 s instead of 2.3 (JAX 0.10 and 0.12 on a CPU;
    `python -m benchmarks selection` shows it as the time to compile for many leaves). Unsigned, since indexing by a
    signed number first looks whether it is negative.

    Args:
      number: How many.
      always: Something that is true whatever the data, which XLA cannot see.
    """
    return lax.cond(always, lambda: indices(number), lambda: [jnp.uint32(0)] * number)


def indices(number: int) -> list[UInt[Array, ""]]:
    """The same as constants."""
    return [jnp.uint32(index) for index in range(number)]


def any_on_all_cores(flags: Bool[Array, " flag"]) -> Bool[Array, ""]:
    """Whether any flag is set, for the condition of a loop over large arrays.

    By a sort, since XLA on a CPU runs a loop without one on a single core if it takes it for a small one (JAX 0.12;
    `pytest tests/test_tracing.py -k all_cores`).
    """
    return jnp.sort(flags)[-1]


def kept_in_loop(passes: Int[Array, ""], *arrays: Any) -> tuple[Any, ...]:
    """The arrays, such that what a loop computes from them stays in the loop.

    XLA moves what does not change from pass to pass out of a loop and keeps it in memory: the keys and places of all
    scores, two copies of the model (JAX 0.10 on a CPU, and on a TPU; `pytest tests/test_selection.py -k copied`). A
    barrier is no help where a program is partitioned for several chips of a TPU, so the first operation on each array
    depends on the pass.

    Args:
      passes: How many the loop has made; not negative, which XLA does not know.
      arrays: What to compute from.
    """
    return tuple(jnp.where(passes < 0, jnp.full_like(array, 1), array) for array in arrays)


def shares_of(largest: Float[Array, ""], *arrays: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """Arrays over the largest of their finite magnitudes, or as they are if that is 0.

    XLA divides by a number by multiplying with its inverse, which is 0 of a number above 2**126, and infinite of one
    below 2**-128 (JAX 0.10 on a CPU; `pytest tests/test_budgets.py -k vanish`). Powers of two bring both near to 1.
    """
    near = jnp.where(largest > 2.0**64, 2.0**-64, jnp.where(largest < 2.0**-64, 2.0**64, 1.0)).astype(largest.dtype)
    divisor = jnp.where(largest > 0, largest * near, jnp.ones_like(largest))
    return tuple(array * near.astype(array.dtype) / divisor.astype(array.dtype) for array in arrays)
