"""Integers in the order of floating-point numbers, so that comparing and bisecting are exact.

Comparing floats would not do: a processor may flush denormals to zero, and NaN has no place in the order.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

_INTEGER = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}


def keys(values: Float[Array, "..."] | Int[Array, "..."]) -> Int[Array, "..."]:
    """Signed integers that order as the values do: -0 equals 0, NaN comes below -infinity.

    Args:
      values: Any real floating dtype of two, four or eight bytes. Integers, being keys already, are returned.

    Returns:
      int32, or int64 for float64, of the same shape. Consecutive floats get consecutive integers.
    """
    if jnp.issubdtype(values.dtype, jnp.integer):
        return values
    integer = _INTEGER[values.dtype.itemsize]
    bits = lax.bitcast_convert_type(values, integer)
    if integer is jnp.int16:
        bits = bits.astype(jnp.int32)
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, values.dtype), integer).astype(bits.dtype)
    magnitude = bits & jnp.array(jnp.iinfo(integer).max, bits.dtype)
    ordered = jnp.where(bits < 0, -magnitude, magnitude)
    return jnp.where(magnitude > infinity, jnp.array(jnp.iinfo(bits.dtype).min, bits.dtype), ordered)


def values(keys: Int[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """The floats that have these keys: the inverse of `keys`. What is beyond the largest finite float becomes that.

    Args:
      keys: int32 or int64.
      dtype: Of the floats.
    """
    integer = _INTEGER[jnp.dtype(dtype).itemsize]
    largest = lax.bitcast_convert_type(jnp.array(jnp.finfo(dtype).max, dtype), integer).astype(keys.dtype)
    bounded = jnp.clip(keys, -largest, largest)
    magnitude = jnp.abs(bounded).astype(integer)
    positive = lax.bitcast_convert_type(magnitude, dtype)
    return jnp.where(bounded < 0, -positive, positive)
