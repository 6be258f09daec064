"""Boolean masks at one bit per entry."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import meshes
from jaxprune.typing import Mask


class Packed(NamedTuple):
    """A boolean mask at one bit per entry. A `NamedTuple`, so that Flax serialises it as any other state.

    Attributes:
      bits: uint8, eight entries to the byte, first entry in the highest bit. Along the axis whose size has the most
        factors of two, the last of several, so that devices between which it is split hold whole bytes; the other axes
        keep their layout and sharding. Over the flattened mask where eight divides no axis.
      shape: The shape of the mask.
    """

    bits: Any
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size in memory, in bytes."""
        return self.bits.size


jax.tree_util.register_pytree_with_keys(
    Packed,
    lambda mask: (((jax.tree_util.GetAttrKey("bits"), mask.bits),), mask.shape),
    lambda shape, children: Packed(next(iter(children)), shape),
)


def packed(mask: Mask) -> Packed:
    """The mask at one bit per entry; on an explicit mesh only an axis that bytes would cut through is gathered."""
    axis = _packed_axis(mask.shape)
    if axis is None:
        return Packed(jnp.packbits(meshes.gather(mask, *range(mask.ndim))), mask.shape)
    groups = meshes.grouped(mask, axis, 8)
    return Packed(jnp.squeeze(jnp.packbits(groups, axis=axis + 1), axis + 1), mask.shape)


def unpacked(mask: Packed) -> Mask:
    """The boolean mask.

    Raises:
      ValueError: The bits do not fit the shape.
      TypeError: The bits are not bytes, or the shape no sizes.
    """
    _check(mask)
    axis = _packed_axis(mask.shape)
    size = math.prod(mask.shape) if axis is None else mask.shape[axis]
    if not math.prod(mask.shape):
        return jnp.zeros(mask.shape, jnp.bool_)
    bits = jnp.unpackbits(jnp.asarray(mask.bits), axis=axis, count=size)
    return bits.reshape(mask.shape).astype(jnp.bool_)


def _check(mask: Packed) -> None:
    shape: Any = mask.shape
    if not isinstance(shape, tuple) or not all(isinstance(n, int | np.integer) and n >= 0 for n in shape):
        raise TypeError(
            f"The shape of a `Packed` must be a tuple of sizes, 0 or more; got {shape!r}. Pack the mask anew."
        )
    if not isinstance(mask.bits, jax.Array | np.ndarray) or mask.bits.dtype != np.uint8:
        got = getattr(mask.bits, "dtype", type(mask.bits).__name__)
        raise TypeError(f"The bits of a `Packed` must be a uint8 array; got {got}. Pack the mask anew.")
    axis = _packed_axis(shape)
    expected = (-(-math.prod(shape) // 8),) if axis is None else (*shape[:axis], shape[axis] // 8, *shape[axis + 1 :])
    if mask.bits.shape != expected:
        raise ValueError(
            f"The bits of a `Packed` of shape {shape} must have shape {expected}; got {mask.bits.shape}. Pack the mask "
            "anew."
        )


def _packed_axis(shape: tuple[int, ...]) -> int | None:
    multiples = [axis for axis, size in enumerate(shape) if size and size % 8 == 0]
    return max(multiples, key=lambda axis: (shape[axis] & -shape[axis], axis), default=None)
