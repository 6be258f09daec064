"""Shapes of contractions: which axes are summed over, and which widths multiply."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.walker import shape_of


@dataclasses.dataclass(frozen=True)
class Product:
    """Multiply-accumulates as `times` the product of the widths of `axes`, each (operand, axis)."""

    times: int
    axes: tuple[tuple[int, int], ...]


def grouping(eqn: JaxprEqn) -> Literal["plain", "depthwise", "grouped"]:
    """The kind of a convolution. One output channel is not depthwise: the input decides."""
    groups = eqn.params["feature_group_count"]
    if groups == 1:
        return "plain"
    channel = eqn.params["dimension_numbers"].lhs_spec[1]
    return "depthwise" if shape_of(eqn.invars[0])[channel] == groups else "grouped"


def contraction(eqn: JaxprEqn) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], Product]:
    """Axes summed over on each side, and the widths whose product is the number of multiply-accumulates."""
    if eqn.primitive.name == "dot_general":
        (left_in, right_in), (_, right_batch) = eqn.params["dimension_numbers"]
        gone = {*right_in, *right_batch}
        left = tuple((0, a) for a in range(len(shape_of(eqn.invars[0]))))
        right = tuple((1, a) for a in range(len(shape_of(eqn.invars[1]))) if a not in gone)
        return (tuple(left_in), tuple(right_in)), Product(1, left + right)
    numbers = eqn.params["dimension_numbers"]
    produced, consumed, *taps = numbers.rhs_spec
    # Taps and output positions are never pruned, so their numbers are constants; batch, outputs and inputs vary.
    positions = math.prod(shape_of(eqn.outvars[0])[a] for a in numbers.out_spec[2:])
    window = math.prod(shape_of(eqn.invars[1])[a] for a in taps)
    axes = ((0, numbers.lhs_spec[0]), (1, produced), (1, consumed))
    return ((numbers.lhs_spec[1],), (consumed,)), Product(positions * window, axes)
