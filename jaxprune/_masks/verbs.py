"""The mask of one leaf: all that is done with it, whichever of its kinds it is.

A mask is a boolean array, a `Spectral`, either of them packed, or `None` for a leaf that stays dense. Only this room
tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxprune._arrays import meshes, tree, wide
from jaxprune._arrays.wide import Wide
from jaxprune._masks import packing
from jaxprune._masks.frequency import Spectral
from jaxprune._masks.packing import Packed
from jaxprune.typing import Mask


def is_mask(node: Any) -> bool:
    """Whether a node of a tree of masks is a mask as a whole: to be passed as `is_leaf`."""
    return node is None or isinstance(node, Spectral | Packed)


def apply(path: str, leaf: Any, mask: Any) -> Any:
    """The leaf with what is pruned set to exactly 0; `path` names it in an error."""
    if mask is None:
        return leaf
    if isinstance(mask, Spectral):
        tree.check_floating(path, leaf)
        return mask.project(jnp.asarray(leaf))
    return jnp.where(meshes.like(checked(path, leaf, mask), leaf), leaf, jnp.zeros_like(leaf))


def constrain(path: str, update: Any, leaf: Any, mask: Any) -> Any:
    """The update after which the leaf is masked: minus the weight where that is pruned."""
    if mask is None:
        return update
    dtype = tree.promote(update.dtype, leaf.dtype)
    update, leaf = update.astype(dtype), leaf.astype(dtype)
    if isinstance(mask, Spectral):
        return mask.project(leaf + update) - leaf
    return jnp.where(meshes.like(checked(path, leaf, mask), leaf), update, -leaf)


def of_weights(path: str, leaf: Any, mask: Any) -> Mask | None:
    """The mask, at the leaf's rank, if it removes single weights; `None` for a dense leaf or a frequency mask."""
    return None if mask is None or isinstance(mask, Spectral) else checked(path, leaf, mask)


def checked(path: str, leaf: Any, mask: Any) -> Mask:
    """The mask of a leaf, at the leaf's rank.

    Raises:
      ValueError: It does not broadcast against the leaf.
      TypeError: It is not a boolean array.
    """
    tree.check_width(path, leaf)
    if isinstance(mask, Packed):
        raise TypeError(f"The mask of '{path}' is packed; call `jaxprune.unpack(masks)` first.")
    check_boolean(path, mask)
    shape = jnp.shape(leaf)
    try:
        fits = mask.shape == shape or jnp.broadcast_shapes(mask.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"'{path}' has shape {shape}; its mask has shape {mask.shape}, which does not broadcast against it. "
            f"Give the mask the parameter's shape, or size 1 along the axes it does not tell apart."
        )
    return mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape)


def check_boolean(path: str, mask: Any) -> None:
    """Raises a `TypeError` that names the path unless a mask is a boolean array."""
    if not tree.is_array(mask) or mask.dtype != jnp.bool_:
        got = f"dtype {mask.dtype}" if tree.is_array(mask) else type(mask).__name__
        raise TypeError(
            f"The mask of '{path}' must be a boolean array, a `Spectral` or `None`; got {got}. "
            f"Compare to get one, e.g. `mask != 0`."
        )


def count(path: str, leaf: Any, mask: Any) -> Int[Array, ""] | Wide | int:
    """How many weights of a leaf its mask keeps: real degrees of freedom for a `Spectral`, all for `None`.

    Where there may be 2**31 or more, the number is `Wide`.
    """
    if mask is None:
        return leaf.size
    if isinstance(mask, Spectral):
        return mask.count(leaf.shape)
    mask = checked(path, leaf, mask)
    if leaf.size >= 2**31:
        return wide.counted(jnp.broadcast_to(mask, leaf.shape))
    repeats = leaf.size // mask.size if mask.size else 0
    return jnp.sum(mask, dtype=jnp.int32) * repeats


def pack(path: str, mask: Any) -> Any:
    """The mask at one bit per entry."""
    if mask is None or isinstance(mask, Packed):
        return mask
    if isinstance(mask, Spectral):
        return mask._replace(keep=pack(path, mask.keep))
    check_boolean(path, mask)
    return packing.packed(mask)


def unpack(mask: Any) -> Any:
    """The mask that `pack` was given."""
    if isinstance(mask, Spectral):
        return mask._replace(keep=unpack(mask.keep))
    return packing.unpacked(mask) if isinstance(mask, Packed) else mask


def sharded_like(leaf: Any, mask: Any) -> Any:
    """The mask, split over devices as its leaf is."""
    return mask if mask is None or isinstance(mask, Spectral) else meshes.like(mask, leaf)


def keep_all(leaf: Any, mask: Any) -> Any:
    """A mask of the same kind and shape, which may be abstract, that keeps everything."""
    if isinstance(mask, Spectral):
        return mask._replace(keep=jnp.ones(mask.keep.shape, jnp.bool_))
    return None if mask is None else meshes.ones(mask.shape, leaf)


def combine(path: str, operation: Callable[..., Any], first: Any, second: Any) -> Any:
    """The operation on two masks of the same kind, neither of them `None`.

    Raises:
      ValueError: They are of different kinds or shapes, or frequency masks of different axes or transforms.
      TypeError: One is packed, or not boolean.
    """
    for mask in (first, second):
        if isinstance(mask, Packed):
            raise TypeError(f"The mask of '{path}' is packed; call `jaxprune.unpack(masks)` first.")
        check_boolean(path, mask.keep if isinstance(mask, Spectral) else mask)
    if isinstance(first, Spectral) != isinstance(second, Spectral):
        raise ValueError("A frequency mask and a weight mask of the same leaf cannot be combined; chain `apply`.")
    if not isinstance(first, Spectral):
        try:
            jnp.broadcast_shapes(first.shape, second.shape)
        except ValueError as error:
            raise ValueError(
                f"The masks of '{path}' have shape {first.shape} and shape {second.shape}, which do not broadcast. "
                f"Make both for the same parameters."
            ) from error
        return operation(first, second)
    if (first.axes, first.transform) != (second.axes, second.transform):
        raise ValueError(
            f"Two frequency masks combine only over the same axes and transform; got {first.axes}, "
            f"{first.transform!r} and {second.axes}, {second.transform!r}. Make both by the same call of `dft`."
        )
    return first._replace(keep=operation(first.keep, second.keep))


def entries(mask: Any) -> Float[Array, ""]:
    """How many entries of the mask, weights or stored coefficients, are kept."""
    return jnp.sum(mask.keep if isinstance(mask, Spectral) else mask, dtype=jnp.float32)
