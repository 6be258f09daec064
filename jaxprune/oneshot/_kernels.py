"""Converts parameters, whatever the order of their axes, to matrices (in, out), and back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

from jaxprune import patterns
from jaxprune._arrays import tree
from jaxprune._jaxpr.roles.rules import Use
from jaxprune.typing import Mask, Masks, Params


def matrices(leaf: Any, use: Use) -> Shaped[Array, "stack in out"]:
    """The kernels in a leaf, inputs first: one for each position of its stack and each group of a convolution."""
    order, _, (stack, inputs, outputs) = _arranged(leaf.shape, use)
    split = _split(leaf.shape, use)
    return jnp.reshape(leaf, split).transpose(order).reshape(stack, inputs, outputs)


def restored(kernels: Shaped[Array, "stack in out"], shape: Sequence[int], use: Use) -> Any:
    """The leaf of this shape that holds these kernels."""
    order, sizes, _ = _arranged(shape, use)
    return kernels.reshape(sizes).transpose(tuple(np.argsort(order))).reshape(shape)


def _split(shape: Sequence[int], use: Use) -> tuple[int, ...]:
    """The shape with one more axis, the groups of a convolution: before the outputs, or last where there is but one."""
    axis = use.outputs[0] if use.groups > 1 else len(shape)
    groups = (use.groups, shape[axis] // use.groups) if use.groups > 1 else (1,)
    return (*shape[:axis], *groups, *shape[axis + 1 :])


def _arranged(shape: Sequence[int], use: Use) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int]]:
    """How to bring the axes of the split shape into the order stack, group, inputs, outputs.

    Returns:
      The axes in that order, their sizes in that order, and the sizes of all kernels, all inputs and all outputs.
    """
    split = _split(shape, use)
    group = use.outputs[0] if use.groups > 1 else len(shape)

    def moved(axis: int) -> int:
        return axis + (use.groups > 1 and axis >= group)

    stack = (*map(moved, use.stacked), group)
    inputs, outputs = tuple(map(moved, use.inputs)), tuple(map(moved, use.outputs))
    order = (*stack, *inputs, *outputs)
    sizes = [math.prod(split[a] for a in axes) for axes in (stack, inputs, outputs)]
    return order, tuple(split[a] for a in order), (sizes[0], sizes[1], sizes[2])


def place(shape: Sequence[int], use: Use, starts: Sequence[int], index: int) -> tuple[int, ...]:
    """The indices of a kernel along the stacked axes of its leaf.

    Args:
      shape: Of a part of the leaf.
      use: Of the leaf.
      starts: Where the part begins along each axis of the leaf.
      index: Of the kernel among the `matrices` of the part.
    """
    if not use.stacked:
        return ()
    sizes = [shape[axis] for axis in use.stacked]
    inside = np.unravel_index(index // use.groups, sizes)
    return tuple(int(starts[axis] + i) for axis, i in zip(use.stacked, inside, strict=True))


def part(leaf: Any, starts: Sequence[int], shape: tuple[int, ...]) -> Any:
    """The part of a leaf that begins at `starts`."""
    return leaf if leaf.shape == shape else _part(leaf, [np.int32(start) for start in starts], shape)


def replaced(leaf: Any, new: Any, starts: Sequence[int]) -> Any:
    """The leaf with the part that begins at `starts` replaced by `new`.

    A leaf that is replaced in part is donated: its memory is used for the result.
    """
    return new if leaf.shape == new.shape else _replaced(leaf, new, [np.int32(start) for start in starts])


@functools.partial(jax.jit, static_argnums=2)
def _part(leaf: Any, starts: Sequence[Any], shape: tuple[int, ...]) -> Any:
    return lax.dynamic_slice(leaf, starts, shape)


@functools.partial(jax.jit, donate_argnums=0)
def _replaced(leaf: Any, new: Any, starts: Sequence[Any]) -> Any:
    return lax.dynamic_update_slice(leaf, new, starts)


def along_inputs(pattern: Any) -> Any:
    """The pattern for matrices (in, out): whichever axes of the leaf the inputs are, they come first there."""
    return dataclasses.replace(pattern, axis=None) if isinstance(pattern, patterns.NM) else pattern


def full_masks(params: Params, masks: Masks) -> Masks:
    """Masks of weights in the full shape of their leaves; `None` stays."""
    if masks is None:
        return None
    return tree.map_with_path(
        lambda path, leaf, mask: None if mask is None else full_mask(path, leaf, mask), params, masks, names=("masks",)
    )


def full_mask(path: str, leaf: Any, given: Any) -> Mask:
    """A mask in the full shape of its leaf."""
    got = f"{given.dtype} {given.shape}" if tree.is_array(given) else type(given).__name__
    if not tree.is_array(given) or given.dtype != bool or not _broadcasts(given.shape, leaf.shape):
        raise ValueError(
            f"The mask of '{path}' must be a boolean array that broadcasts against {leaf.shape}; got {got}. Leave it "
            "out with `where=`, or unpack it."
        )
    return jnp.broadcast_to(given, leaf.shape)


def _broadcasts(shape: tuple[int, ...], against: tuple[int, ...]) -> bool:
    return len(shape) == len(against) and all(size in (1, wide) for size, wide in zip(shape, against, strict=True))
