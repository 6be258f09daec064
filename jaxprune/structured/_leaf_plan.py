"""What one leaf keeps: indices of its axes, and how they are taken from an array."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Int

from jaxprune._arrays import host

Kept: TypeAlias = Int[np.ndarray, "..."]
"""Kept indices in increasing order, `(kept,)`, or `(layers, kept)` where each layer of a stack keeps its own."""


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """What one leaf keeps.

    Attributes:
      shape: Its full shape.
      keep: Kept indices of each axis that shrinks.
      stack: Axis along which the layers are stacked, if an entry of `keep` has one row per layer.
    """

    shape: tuple[int, ...]
    keep: Mapping[int, Kept] = dataclasses.field(default_factory=dict)
    stack: int | None = None

    @property
    def small(self) -> tuple[int, ...]:
        """The shape that is left."""
        return tuple(self.keep[a].shape[-1] if a in self.keep else n for a, n in enumerate(self.shape))


def validate(path: str, leaf: LeafPlan) -> None:
    if leaf.stack is not None and leaf.stack not in range(len(leaf.shape)):
        raise ValueError(f"The plan for '{path}' stacks layers along axis {leaf.stack}; its shape is {leaf.shape}.")
    for axis, kept in leaf.keep.items():
        if not 0 <= axis < len(leaf.shape):
            raise ValueError(f"The plan for '{path}' names axis {axis}; the leaf has shape {leaf.shape}.")
        layers = 1 if leaf.stack is None else leaf.shape[leaf.stack]
        if kept.ndim == 2 and (leaf.stack is None or kept.shape[0] != layers):
            raise ValueError(
                f"The plan for '{path}' axis {axis} has {kept.shape[0]} rows of indices; its stack has {layers} layers."
            )
        if kept.ndim not in (1, 2) or kept.shape[-1] == 0:
            raise ValueError(f"The plan for '{path}' axis {axis} keeps nothing. Keep at least one index.")
        if kept.min() < 0 or kept.max() >= leaf.shape[axis] or (np.diff(kept, axis=-1) <= 0).any():
            raise ValueError(
                f"The plan for '{path}' axis {axis} needs increasing indices below {leaf.shape[axis]}; "
                f"got {kept.tolist()}."
            )


def reduced(path: str, shape: tuple[int, ...], plan: LeafPlan, expected: tuple[int, ...]) -> LeafPlan | None:
    """The plan for a leaf of `shape`: that of its parameter, or with one axis less for a factored moment."""
    if len(shape) == len(expected) and all(n in (1, m) for n, m in zip(shape, expected, strict=True)):
        return plan
    if math.prod(shape) <= 1:
        return None
    if len(shape) == len(expected) - 1:
        gone = [a for a in range(len(expected)) if shape == expected[:a] + expected[a + 1 :]]
        kept_alike = len({tuple(map(str, without(plan, a).keep.items())) for a in gone}) == 1
        if gone and kept_alike:
            return without(plan, gone[0])
    raise ValueError(
        f"'{path}' has shape {shape}; the plan's parameter of that path has shape {expected}. "
        "Give a tree that mirrors the parameters which the plan was made from."
    )


def along(path: str, plan: LeafPlan, axis: int) -> LeafPlan:
    """The plan for a moment of one axis alone, such as SM3's."""
    kept = plan.keep.get(axis)
    if kept is not None and kept.ndim == 2:
        raise ValueError(f"'{path}' has one value for all layers, and these keep different units. Start it anew.")
    return LeafPlan((plan.shape[axis],), {} if kept is None else {0: kept})


def without(plan: LeafPlan, axis: int) -> LeafPlan:
    keep = {a - (a > axis): kept for a, kept in plan.keep.items() if a != axis}
    stack = None if plan.stack is None or plan.stack == axis else plan.stack - (plan.stack > axis)
    return LeafPlan(plan.shape[:axis] + plan.shape[axis + 1 :], keep, stack)


def _take(array: Any, kept: Kept, axis: int, stack: int | None) -> Any:
    if kept.ndim == 1 and isinstance(array, np.ndarray):
        return np.take(array, kept, axis)
    return array[index(kept, axis, stack, array.shape)]


def index(kept: Kept, axis: int, stack: int | None, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Indexes one axis, and the stack axis with it where each layer keeps its own."""
    if kept.ndim == 1:
        return (slice(None),) * axis + (kept,)
    index: list[Any] = []
    for a, n in enumerate(shape):
        if a == axis:
            order = kept if stack is not None and stack < axis else kept.T
            around = [1] * len(shape)
            around[axis], around[int(stack or 0)] = kept.shape[-1], kept.shape[0]
            index.append(order.reshape(around))
        else:
            around = [1] * len(shape)
            around[a] = n
            index.append(np.arange(n).reshape(around))
    return tuple(index)


def taken(leaf: Any, plan: LeafPlan) -> Any:
    keep = {axis: kept for axis, kept in plan.keep.items() if leaf.shape[axis] != 1 or plan.shape[axis] == 1}
    if isinstance(leaf, jax.ShapeDtypeStruct):
        shape = tuple(keep[a].shape[-1] if a in keep else n for a, n in enumerate(leaf.shape))
        return jax.ShapeDtypeStruct(shape, leaf.dtype)
    array = host.view(leaf)
    for axis, kept in keep.items():
        array = _take(array, kept, axis, plan.stack)
    return host.placed(array, leaf)
