"""Masks: apply them, combine them, store them at one bit per weight."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxprune._arrays import meshes, tree, wide
from jaxprune._arrays.wide import Wide
from jaxprune._masks.frequency import Spectral
from jaxprune.typing import Mask, Masks, Params


@functools.partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class Packed:
    """A boolean mask at one bit per entry.

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


def apply(params: Params, masks: Masks) -> Params:
    """Sets what is pruned to exactly 0.

    A pruned NaN or infinity becomes 0 as well: the value is selected, never multiplied.

    Args:
      params: Any pytree.
      masks: Of the same structure: a boolean array that broadcasts against its parameter, a `Spectral`, or `None`.

    Returns:
      The parameters, pruned, in their own dtypes.

    Raises:
      ValueError: The structures differ, or a mask does not broadcast; the message names the path.
      TypeError: A mask is neither boolean nor `Spectral`.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, -2.0], [jnp.nan, 4.0]]), "bias": jnp.zeros(2)}
      >>> masks = {"kernel": jnp.array([[True, False], [False, True]]), "bias": None}
      >>> print(apply(params, masks)["kernel"])
      [[1. 0.]
       [0. 4.]]
    """
    return tree.map_with_path(apply_leaf, params, masks, names=("masks",))


def apply_leaf(path: str, leaf: Any, mask: Any) -> Any:
    """`apply` for one leaf; `path` names it in an error."""
    if mask is None:
        return leaf
    if isinstance(mask, Spectral):
        return mask.project(leaf)
    return jnp.where(meshes.like(checked(path, leaf, mask), leaf), leaf, jnp.zeros_like(leaf))


def checked(path: str, leaf: Any, mask: Any) -> Mask:
    """The mask of a leaf, at the leaf's rank.

    Raises:
      ValueError: It does not broadcast against the leaf.
      TypeError: It is not a boolean array.
    """
    if isinstance(mask, Packed):
        raise TypeError(f"The mask of '{path}' is packed; call `jaxprune.unpack(masks)` first.")
    if not tree.is_array(mask) or mask.dtype != jnp.bool_:
        got = f"dtype {mask.dtype}" if tree.is_array(mask) else type(mask).__name__
        raise TypeError(
            f"The mask of '{path}' must be a boolean array, a `Spectral` or `None`; got {got}. "
            f"Compare to get one, e.g. `mask != 0`."
        )
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


def pack(masks: Masks) -> Masks:
    """Stores each mask at one bit per entry.

    Returns:
      The same tree with a `Packed` in place of each boolean array, inside each `Spectral` too.

    Examples:
      >>> pack({"kernel": jnp.ones((4, 16), bool), "bias": None})["kernel"].nbytes
      8
    """
    return _map(_pack, masks)


def unpack(packed: Masks) -> Masks:
    """The masks that `pack` was given."""
    return _map(_unpack, packed)


def intersection(first: Masks, second: Masks) -> Masks:
    """Keeps what both keep. `None` keeps everything.

    Raises:
      ValueError: The trees differ in structure, or two frequency masks in axes or transform.
    """
    return _combine(jnp.logical_and, lambda mask: mask, first, second)


def union(first: Masks, second: Masks) -> Masks:
    """Keeps what either keeps; `None`, which keeps everything, wins. Errors as in `intersection`."""
    return _combine(jnp.logical_or, lambda mask: None, first, second)


def overlap(first: Masks, second: Masks) -> Float[Array, ""]:
    """The share of entries that both keep among those that either keeps (Jaccard index), 1 where neither keeps any.

    Leaves that are dense in either tree do not count.

    Examples:
      >>> a, b = jnp.array([[True, True, False]]), jnp.array([[True, False, True]])
      >>> print(f"{overlap([a], [b]):.3f}")
      0.333
    """
    both, either = intersection(first, second), union(first, second)
    pairs = jax.tree.leaves(_map(lambda b, e: None if e is None else (_total(b), _total(e)), both, either))
    shared, all_ = sum(pairs[0::2], jnp.float32(0)), sum(pairs[1::2], jnp.float32(0))
    return jnp.where(all_ > 0, shared / jnp.maximum(all_, 1), jnp.ones_like(all_))


def is_mask(node: Any) -> bool:
    """Whether a node of a tree of masks is a mask as a whole: to be passed as `is_leaf`."""
    return node is None or isinstance(node, Spectral | Packed)


def _map(function: Callable[..., Any], *trees: Masks) -> Any:
    return jax.tree.map(function, *trees, is_leaf=is_mask)


def _pack(mask: Any) -> Any:
    if mask is None or isinstance(mask, Packed):
        return mask
    if isinstance(mask, Spectral):
        return dataclasses.replace(mask, keep=_pack(mask.keep))
    axis = _packed_axis(mask.shape)
    if axis is None:
        return Packed(jnp.packbits(meshes.whole(mask, *range(mask.ndim))), mask.shape)
    groups = meshes.grouped(mask, axis, 8)
    return Packed(jnp.squeeze(jnp.packbits(groups, axis=axis + 1), axis + 1), mask.shape)


def _unpack(packed: Any) -> Any:
    if isinstance(packed, Spectral):
        return dataclasses.replace(packed, keep=_unpack(packed.keep))
    if not isinstance(packed, Packed):
        return packed
    axis = _packed_axis(packed.shape)
    size = math.prod(packed.shape) if axis is None else packed.shape[axis]
    bits = jnp.unpackbits(packed.bits, axis=axis, count=size)
    return bits.reshape(packed.shape).astype(jnp.bool_)


def _packed_axis(shape: tuple[int, ...]) -> int | None:
    multiples = [axis for axis, size in enumerate(shape) if size and size % 8 == 0]
    return max(multiples, key=lambda axis: (shape[axis] & -shape[axis], axis), default=None)


def _combine(operation: Callable[..., Any], with_dense: Callable[[Any], Any], first: Masks, second: Masks) -> Masks:
    def leaf(a: Any, b: Any) -> Any:
        if a is None or b is None:
            return with_dense(b if a is None else a)
        if isinstance(a, Spectral) != isinstance(b, Spectral):
            raise ValueError("A frequency mask and a weight mask of the same leaf cannot be combined; chain `apply`.")
        if isinstance(a, Spectral):
            if (a.axes, a.transform) != (b.axes, b.transform):
                raise ValueError(
                    f"Two frequency masks combine only over the same axes and transform; got {a.axes}, "
                    f"{a.transform!r} and {b.axes}, {b.transform!r}. Make both by the same call of `dft`."
                )
            return dataclasses.replace(a, keep=operation(a.keep, b.keep))
        return operation(a, b)

    return _map(leaf, first, second)


def _total(mask: Any) -> Float[Array, ""]:
    return jnp.sum(mask.keep if isinstance(mask, Spectral) else mask, dtype=jnp.float32)
