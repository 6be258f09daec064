"""How operations that move axes move those of a leaf's part."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.primitives import factors
from jaxprune._jaxpr.roles.parts import NOTHING, STRETCHED, Digit, Part, distributed
from jaxprune._jaxpr.walker import shape_of


def stretched(part: Part, before: Sequence[int], after: Sequence[int]) -> Part:
    """A part of which an axis of one is repeated is placed nowhere."""
    axes = zip(part.axes, before, after, strict=False)  # a scalar has none
    return part.without_place(STRETCHED) if any(digits and old != new for digits, old, new in axes) else part


def transposed(eqn: JaxprEqn, part: Part) -> Part:
    """Permutes the axes."""
    return part.with_axes(part.axes[a] for a in eqn.params["permutation"])


def squeezed(eqn: JaxprEqn, part: Part) -> Part | None:
    """Drops axes of one."""
    return dropped(part, [a % len(part.axes) for a in eqn.params["dimensions"]])


def dropped(part: Part | None, gone: Sequence[int]) -> Part | None:
    """Without some axes of the value, of each of which one position is left."""
    left = [digits for a, digits in enumerate(part.axes) if a not in gone] if part else []
    return part and part.with_axes(left, [digit for a in gone for digit in part.axes[a]])


def broadcast(eqn: JaxprEqn, part: Part) -> Part:
    """Adds axes."""
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    axes: list[tuple[Digit, ...]] = [()] * len(after)
    kept = eqn.params["broadcast_dimensions"]
    for axis, out in enumerate(kept):
        axes[out] = part.axes[axis]
    return dataclasses.replace(stretched(part, before, [after[out] for out in kept]), axes=tuple(axes))


def reshaped(eqn: JaxprEqn, part: Part) -> Part:
    """Divides and merges axes."""
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if 0 in before:
        return part.with_axes([()] * len(after))
    axes: list[tuple[Digit, ...]] = [()] * len(after)
    gone: tuple[Digit, ...] = ()
    unplaced = part.unplaced
    for left, right in factors(before, after):
        merged = tuple(digit for axis in left for digit in part.axes[axis])
        if not right:
            gone += merged
        elif left:
            split = distributed(
                [part.axes[axis] or (Digit(NOTHING, before[axis]),) for axis in left], [after[a] for a in right]
            )
            if split is None:
                unplaced = unplaced or "a reshape cuts across its axes"
            for axis, digits in zip(right, split or [merged] * len(right), strict=True):
                axes[axis] = tuple(digit for digit in digits if digit.axis != NOTHING or not digit.alone)
    return dataclasses.replace(part.with_axes(axes, gone), unplaced=unplaced)


def turned(eqn: JaxprEqn, part: Part) -> Part | None:
    """Turns axes round."""
    shape = shape_of(eqn.invars[0])
    return cut(part, [(axis, shape[axis] - 1, shape[axis], -1) for axis in eqn.params["dimensions"]])


def sliced(eqn: JaxprEqn, part: Part) -> Part | None:
    """Takes a part of some axes."""
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    starts, strides = eqn.params["start_indices"], eqn.params["strides"] or (1,) * len(before)
    return cut(part, [(a, starts[a], after[a], strides[a]) for a in range(len(before)) if before[a] != after[a]])


def cut(part: Part, cuts: Sequence[tuple[int, Any, int, int]]) -> Part | None:
    """Cuts axes, each from a start on to a size with a step."""
    left: Part | None = part
    for where in cuts:
        left = left and left.sliced(*where)
    return left


def reduced(eqn: JaxprEqn, part: Part) -> Part:
    """Sums axes up."""
    return part.with_axes(digits for a, digits in enumerate(part.axes) if a not in eqn.params["axes"])
