"""Boolean masks at one bit per entry."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import checks, meshes, tree
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
      ValueError: The shape is none, or its bits have another.
      TypeError: The bits are not uint8.
    """
    shape = mask.shape
    if not checks.is_a(shape, tuple) or not all(checks.is_a(n, int, np.integer) and n >= 0 for n in shape):
        raise ValueError(
            f"The shape of a packed mask must be a tuple of integers from 0 on; got {shape!r}. Pack it anew."
        )
    axis = _packed_axis(shape)
    expected = (-(-math.prod(shape) // 8),) if axis is None else (*shape[:axis], shape[axis] // 8, *shape[axis + 1 :])
    if not tree.is_array(mask.bits) or mask.bits.dtype != jnp.uint8:
        got = mask.bits.dtype if tree.is_array(mask.bits) else type(mask.bits).__name__
        raise TypeError(f"The bits of a packed mask must be uint8; got {got}. Pack the mask anew.")
    if mask.bits.shape != expected:
        raise ValueError(
            f"The bits of a packed mask of shape {shape} must have shape {expected}; got {mask.bits.shape}. They "
            f"belong to another mask."
        )
    if not math.prod(shape):
        return jnp.zeros(shape, jnp.bool_)
    bits = jnp.unpackbits(jnp.asarray(mask.bits), axis=axis, count=math.prod(shape) if axis is None else shape[axis])
    return bits.reshape(shape).astype(jnp.bool_)


def _packed_axis(shape: tuple[int, ...]) -> int | None:
    multiples = [axis for axis, size in enumerate(shape) if size and size % 8 == 0]
    return max(multiples, key=lambda axis: (shape[axis] & -shape[axis], axis), default=None)
