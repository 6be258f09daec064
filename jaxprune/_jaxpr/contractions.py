"""Shapes of contractions: which axes are summed over, and which widths multiply."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.walker import shape_of


@dataclasses.dataclass(frozen=True)
class Product:
    """Multiply-accumulates as `times` the product of the widths of `axes`, each (operand, axis)."""

    times: int
    axes: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Dot:
    """Axes of the operands of a `dot_general` or a `ragged_dot_general`; the others are in the result.

    Attributes:
      summed: Axes summed over, on each side.
      batched: Axes of which equal positions are multiplied, on each side.
      ragged: Of the left side: axes whose positions belong to groups, one after the other.
      grouped: Of the right side: axes of which the position is the group's.
    """

    summed: tuple[tuple[int, ...], tuple[int, ...]]
    batched: tuple[tuple[int, ...], tuple[int, ...]]
    ragged: tuple[int, ...] = ()
    grouped: tuple[int, ...] = ()

    def free(self, side: int, rank: int) -> list[int]:
        """The axes of a side that the result has and that are not batched."""
        gone = (*self.summed[side], *self.batched[side], *(self.grouped if side else ()))
        return [axis for axis in range(rank) if axis not in gone]


def dot(eqn: JaxprEqn) -> Dot:
    """Which axes a product of matrices sums over, batches and divides into groups."""
    if eqn.primitive.name == "dot_general":
        summed, batched = eqn.params["dimension_numbers"]
        return Dot(_pair(*summed), _pair(*batched))
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    summed, batched = numbers.dot_dimension_numbers
    return Dot(_pair(*summed), _pair(*batched), *_pair(numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions))


def _pair(left: Sequence[Any], right: Sequence[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The rules of `vmap` make axes of NumPy's integers."""
    return tuple(map(int, left)), tuple(map(int, right))


def grouping(eqn: JaxprEqn) -> Literal["plain", "depthwise", "grouped"]:
    """The kind of a convolution. One output channel is not depthwise: the input decides."""
    groups = eqn.params["feature_group_count"]
    if groups == 1:
        return "plain"
    channel = eqn.params["dimension_numbers"].lhs_spec[1]
    return "depthwise" if shape_of(eqn.invars[0])[channel] == groups else "grouped"


def contraction(eqn: JaxprEqn) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], Product]:
    """Axes summed over on each side, and the widths whose product is the number of multiply-accumulates."""
    if eqn.primitive.name != "conv_general_dilated":
        axes = dot(eqn)
        gone = {*axes.summed[1], *axes.batched[1], *axes.grouped}
        left = tuple((0, a) for a in range(len(shape_of(eqn.invars[0]))))
        right = tuple((1, a) for a in range(len(shape_of(eqn.invars[1]))) if a not in gone)
        return axes.summed, Product(1, left + right)
    numbers = eqn.params["dimension_numbers"]
    produced, consumed, *taps = numbers.rhs_spec
    # Taps and output positions are never pruned, so their numbers are constants; batch, outputs and inputs vary.
    positions = math.prod(shape_of(eqn.outvars[0])[a] for a in numbers.out_spec[2:])
    window = math.prod(shape_of(eqn.invars[1])[a] for a in taps)
    axes = ((0, numbers.lhs_spec[0]), (1, produced), (1, consumed))
    return ((numbers.lhs_spec[1],), (consumed,)), Product(positions * window, axes)
