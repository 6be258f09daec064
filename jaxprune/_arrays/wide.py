"""Whole numbers beyond 32 bits: a model may have more weights than that, and JAX no 64-bit integers unless enabled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

_DIGIT = 16  # bits
_LARGEST = 2**31 - 1
END = 2**40
"""Numbers are below it."""


class Wide(NamedTuple):
    """Whole numbers in two digits.

    Attributes:
      high: Multiples of 2**16; of a negative number, negative.
      low: What is left, from 0 to 2**16 - 1.
    """

    high: Int[Array, "..."]
    low: Int[Array, "..."]

    def indexed(self, index: Any) -> Wide:
        """The numbers at these places."""
        return Wide(self.high[index], self.low[index])


def of(count: int | np.ndarray | Int[Array, "..."] | Wide) -> Wide:
    """Numbers as digits."""
    if isinstance(count, Wide):
        return count
    return Wide(jnp.asarray(count >> _DIGIT, jnp.int32), jnp.asarray(count & ((1 << _DIGIT) - 1), jnp.int32))


def carried(high: Int[Array, "..."], low: Int[Array, "..."]) -> Wide:
    """The number `high * 2**16 + low`, where `low` may have grown to 31 bits or below 0."""
    return Wide(high + (low >> _DIGIT), low & ((1 << _DIGIT) - 1))


def plus(first: Wide, second: Wide) -> Wide:
    """The sum."""
    return carried(first.high + second.high, first.low + second.low)


def minus(first: Wide, second: Wide) -> Wide:
    """The difference, which may be negative."""
    return carried(first.high - second.high, first.low - second.low)


def before(counts: Int[Array, " place"]) -> Wide:
    """For each place the sum of those before it; up to 2**15 of them."""
    digits = of(counts)
    high, low = (jnp.cumsum(digit, dtype=jnp.int32) - digit for digit in digits)
    return carried(high, low)


def total(counts: Int[Array, " place"]) -> Wide:
    """The sum of up to 2**15 numbers."""
    high, low = (jnp.sum(digit, dtype=jnp.int32) for digit in of(counts))
    return carried(high, low)


def counted(hits: Bool[Array, "..."]) -> Int[Array, ""] | Wide:
    """How many are true: int32, or `Wide` of 2**31 entries or more, in up to 2**15 slices along the first axis."""
    if hits.size < 2**31:
        return jnp.sum(hits, dtype=jnp.int32)
    return total(jnp.sum(hits, axis=tuple(range(1, hits.ndim)), dtype=jnp.int32))


def added(counts: Sequence[Int[Array, ""] | Wide]) -> Wide:
    """The sum of counts of both kinds."""
    narrow = [count for count in counts if not isinstance(count, Wide)]
    start = total(jnp.stack(narrow)) if narrow else of(0)
    return functools.reduce(plus, (count for count in counts if isinstance(count, Wide)), start)


def clipped(number: Wide) -> Int[Array, "..."]:
    """The number in 32 bits, or what comes nearest to it; never the lowest integer, so that its negative is one too."""
    fits = (number.high < 1 << (31 - _DIGIT)) & (number.high >= -(1 << (31 - _DIGIT)))
    bound = jnp.where(number.high < 0, -_LARGEST, _LARGEST)
    return jnp.where(fits, jnp.maximum((number.high << _DIGIT) + number.low, -_LARGEST), bound)


def floating(count: Int[Array, "..."] | Wide) -> Float[Array, "..."]:
    """The number rounded to float32."""
    digits = of(count)
    return digits.high.astype(jnp.float32) * (1 << _DIGIT) + digits.low.astype(jnp.float32)


def rounded(number: Float[Array, "..."]) -> Wide:
    """The whole number nearest to a float from 0 to `END`."""
    whole = jnp.round(number)
    high = jnp.floor(whole / (1 << _DIGIT))
    return Wide(high.astype(jnp.int32), (whole - high * (1 << _DIGIT)).astype(jnp.int32))


def share(count: int | Int[Array, ""], part: Int[Array, ""], whole: Int[Array, ""]) -> Wide:
    """`count * part / whole` rounded, half to even, in 32-bit integers: a long division, six bits of `count` a step.

    Args:
      count: Below `END`, or below 2**31 if it is traced.
      part: From 0 to `whole`.
      whole: From 1 to 2**24.
    """
    bits = max(count.bit_length(), 1) if isinstance(count, int) else 31
    quotient, remainder = of(0), jnp.int32(0)
    for shift in reversed(range(0, bits, 6)):
        dividend = remainder * 64 + part * ((count >> shift) & 63)
        quotient = carried(quotient.high << 6, (quotient.low << 6) + lax.div(dividend, whole))
        remainder = lax.rem(dividend, whole)
    is_above = (2 * remainder > whole) | ((2 * remainder == whole) & (quotient.low % 2 == 1))
    return plus(quotient, of(is_above.astype(jnp.int32)))


def at_most(first: Wide, bound: Wide) -> Wide:
    """The smaller of both."""
    is_less = minus(first, bound).high < 0
    return Wide(*(lax.select(is_less, a, b) for a, b in zip(first, bound, strict=True)))


def exact(count: int | Int[Array, ""] | Wide) -> int:
    """The number in Python, which knows no bound; not for traced ones."""
    return (int(count.high) << _DIGIT) + int(count.low) if isinstance(count, Wide) else int(count)
