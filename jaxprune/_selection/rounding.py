"""From a sparsity to a whole number: one rule for numbers and arrays, concrete or traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import checks, wide
from jaxprune._arrays.wide import Wide
from jaxprune.typing import Count, Sparsity

_MILLION = 10**6
_READ = 2**24  # sparsities are multiples of its inverse, as float32 has them from 0.5 on


def keep_count(groups: Count | Wide, sparsity: Sparsity) -> Count | Wide:
    """The number to keep out of `groups`: `round(groups * (1 - sparsity))`, half to even.

    The sparsity is read as a float32, to 24 binary digits. Where that is what a decimal of six digits rounds to, the
    decimal is meant, so that 0.9 is the same number in every precision. All else is done in whole numbers. So a number,
    an array and a traced array give the same count, and of up to six million groups `1 - k / groups` keeps k.

    Args:
      groups: How many there are; may be traced if they are fewer than 2**31.
      sparsity: In [0, 1]: a number of Python, NumPy or JAX. A traced one is clipped to [0, 1], and NaN counts as 0.

    Returns:
      An `int`; where one of the two is traced, an int32 scalar, or `Wide` of 2**31 groups or more.

    Raises:
      ValueError: The sparsity is concrete and outside [0, 1] or NaN, or groups are negative or `Wide`.
      TypeError: The sparsity is not a number.

    Examples:
      >>> keep_count(10, 0.75), keep_count(25_000_000, jnp.float32(0.9))
      (2, 2500000)
    """
    if isinstance(groups, Wide):
        raise ValueError(
            "A share of 2**31 groups or more is taken of a Python number of groups; got one that was counted. Exchange "
            "weights in leaves of fewer, or leave this one dense."
        )
    share: Any = checks.fraction(sparsity, "sparsity")
    if not isinstance(groups, jax.Array):
        groups = checks.whole(groups, "groups", least=0)
    if isinstance(share, float):
        number = round(float(np.float32(share)) * _READ)
        removed, whole = _read(number, lambda is_decimal, a, b: a if is_decimal else b)
        if isinstance(groups, int):
            kept, rest = divmod(groups * (whole - removed), whole)
            return kept + (2 * rest > whole or (2 * rest == whole and kept % 2 == 1))
    else:
        number = share.astype(jnp.float32)
        clipped = jnp.clip(jnp.where(jnp.isnan(number), 0, number), 0, 1)
        removed, whole = _read(jnp.round(clipped * _READ).astype(jnp.int32), jnp.where)
    kept = wide.share(groups, jnp.int32(whole - removed), jnp.int32(whole))
    return kept if isinstance(groups, int) and groups >= 2**31 else wide.clipped(kept)


def _read(number: Any, choose: Callable[..., Any]) -> tuple[Any, Any]:
    """`number / 2**24` as a fraction, in 32-bit integers: of a million, if a decimal of six digits was rounded to it.

    `number * 15625 / 2**18` are the millionths. Float32 is finer than 2**-24 below 0.5 and a decimal is then rounded
    twice, by up to three quarters of 2**-24.
    """
    upper = (number >> 12) * 15625
    lower = ((upper & 63) << 12) + (number & 4095) * 15625 + 2**17
    millionths, error = (upper >> 6) + (lower >> 18), (lower & (2**18 - 1)) - 2**17
    is_decimal = abs(error) <= 15625 * 3 // 4
    return choose(is_decimal, millionths, number), choose(is_decimal, _MILLION, _READ)
