"""The operands and the result of a product with a parameter, laid out as the parameter is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.roles.parts import NOTHING, Digit, Part
from jaxprune._jaxpr.walker import shape_of

Digits: TypeAlias = tuple[Digit, ...]


class UnsupportedProduct(ValueError):
    """The operands of a product cannot be brought into the leaf's layout; the message says why."""


class AlignedValues(NamedTuple):
    """An operand or the result of a product with a leaf.

    Attributes:
      values: `(samples..., leaf...)`: the axes after the samples' are the leaf's, of size 1 where the values do not
        depend on the position. A grouped convolution's inputs have one position for each group along the output axis.
      samples: How many axes come before the leaf's.
      start: Where the values begin along each of the leaf's axes; an axis of size 1 begins at 0.
    """

    values: Any
    samples: int
    start: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """One product with a leaf.

    Attributes:
      leaf: Its index.
      rank: How many axes it has.
      eqn: A `dot_general` or `conv_general_dilated`.
      side: Which operand the leaf is.
      part: How that operand is made of the leaf.
      operands: Both operands.
      result: Of the product.
    """

    leaf: int
    rank: int
    eqn: JaxprEqn
    side: int
    part: Part
    operands: Sequence[Any]
    result: Any

    def inputs(self) -> AlignedValues:
        """What the leaf is multiplied by, with the leaf's input and stacked axes at their full size.

        Raises:
          UnsupportedProduct: It is not understood; the message gives the reason.
        """
        if self.eqn.primitive.name == "dot_general":
            values, roles = self.operands[1 - self.side], self._roles()
        else:
            values, roles = self._patches()
        return self._arranged(values, roles)

    def outputs(self) -> AlignedValues:
        """The result, with the leaf's output and stacked axes at their full size.

        Raises:
          UnsupportedProduct: It is not understood; the message gives the reason.
        """
        if self.eqn.primitive.name == "dot_general":
            return self._arranged(self.result, self._result_roles())
        numbers = self.eqn.params["dimension_numbers"]
        roles: list[Digits | None] = [None] * self.result.ndim
        roles[numbers.out_spec[1]] = self.part.axes[numbers.rhs_spec[0]]
        return self._arranged(self.result, roles)

    def _roles(self) -> list[Digits | None]:
        """Digits of the leaf behind each axis of the other operand of a `dot_general`; `None` for samples."""
        contracted, batch = self.eqn.params["dimension_numbers"]
        roles: list[Digits | None] = [None] * self.operands[1 - self.side].ndim
        for ours, theirs in zip(contracted[self.side], contracted[1 - self.side], strict=True):
            if not self.part.axes[ours] and self.operands[self.side].shape[ours] > 1:
                raise UnsupportedProduct("it is repeated along an axis that the product sums over")
            roles[theirs] = self.part.axes[ours]
        for ours, theirs in zip(batch[self.side], batch[1 - self.side], strict=True):
            roles[theirs] = self.part.axes[ours] or None
        return roles

    def _result_roles(self) -> list[Digits | None]:
        contracted, batch = self.eqn.params["dimension_numbers"]
        shared = [self.part.axes[a] or None for a in batch[self.side]]
        free: list[list[Digits | None]] = []
        for side, operand in enumerate(self.operands):
            gone = (*contracted[side], *batch[side])
            left = [a for a in range(operand.ndim) if a not in gone]
            free.append([(self.part.axes[a] or None) if side == self.side else None for a in left])
        return [*shared, *free[0], *free[1]]

    def _patches(self) -> tuple[Any, list[Digits | None]]:
        """The input of a convolution under each tap: `(batch, places..., taps..., groups, channels)`."""
        params = self.eqn.params
        numbers, groups = params["dimension_numbers"], params["feature_group_count"]
        if self.side == 0 or params["batch_group_count"] != 1:
            raise UnsupportedProduct("it is the image of a convolution, not its kernel")
        kernel = shape_of(self.eqn.invars[1])
        image = jnp.transpose(self.operands[0], (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
        spacing = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"], strict=True)]
        image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *spacing, (0, 0, 0)])
        taps, places = [kernel[a] for a in numbers.rhs_spec[2:]], [self.result.shape[a] for a in numbers.out_spec[2:]]
        for position, (count, size) in enumerate(zip(taps, places, strict=True)):
            stride, dilation = params["window_strides"][position], params["rhs_dilation"][position]
            cuts = [
                lax.slice_in_dim(image, t * dilation, t * dilation + (size - 1) * stride + 1, stride, 1 + position)
                for t in range(count)
            ]
            image = jnp.stack(cuts, axis=-2)
        patches = image.reshape(*image.shape[:-1], groups, image.shape[-1] // groups)
        samples: list[Digits | None] = [None] * (1 + len(places))
        under = [self.part.axes[a] for a in numbers.rhs_spec[2:]]
        return patches, [*samples, *under, self._group(groups), self.part.axes[numbers.rhs_spec[1]]]

    def _group(self, groups: int) -> Digits:
        """The groups of a convolution as positions along the leaf's output axis."""
        if groups == 1:
            return ()
        produced = self.part.axes[self.eqn.params["dimension_numbers"].rhs_spec[0]]
        if (
            len(produced) != 1
            or produced[0].stride != 1
            or not produced[0].alone
            or self.part.starts.get(produced[0].axis)
        ):
            raise UnsupportedProduct("its groups do not lie along one whole axis")
        return (Digit(produced[0].axis, groups),)

    def _arranged(self, values: Any, roles: Sequence[Digits | None]) -> AlignedValues:
        """Splits the axes into digits and brings these into the leaf's order."""
        if self.part.unplaced:
            raise UnsupportedProduct(self.part.unplaced)
        shape, samples, digits = list[int](), list[int](), list[tuple[int, Digit]]()
        for axis, role in enumerate(roles):
            if role and not role[0].alone:
                values = lax.slice_in_dim(values, role[0].before, role[0].before + role[0].size, axis=axis)
            if role is None or (role and role[0].axis == NOTHING and role[0].size > 1):
                samples.append(len(shape))
                shape.append(values.shape[axis])
            else:
                digits += [(len(shape) + place, digit) for place, digit in enumerate(role)]
                shape += [digit.size for digit in role]
        values = values.reshape(shape)
        values = jnp.flip(values, [place for place, digit in digits if digit.stride < 0])
        digits.sort(key=lambda item: (item[1].axis, -abs(item[1].stride)))
        values = values.transpose(*samples, *(place for place, _ in digits))
        extent, start = self._extents([digit for _, digit in digits])
        return AlignedValues(values.reshape(*values.shape[: len(samples)], *extent), len(samples), start)

    def _extents(self, digits: Sequence[Digit]) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        """Size and start along each axis of the leaf, of digits in the leaf's order."""
        extent, start = [1] * self.rank, [0] * self.rank
        for axis in range(self.rank):
            on_axis = [digit for digit in digits if digit.axis == axis]
            if on_axis or axis in self.part.stacked:
                start[axis] = self.part.starts.get(axis, 0)
            extent[axis] = math.prod(digit.size for digit in on_axis)
            step = extent[axis]
            for digit in on_axis:
                step //= digit.size
                if digit.size > 1 and abs(digit.stride) != step:
                    raise UnsupportedProduct("positions that do not follow each other are multiplied together")
                if digit.stride < 0:
                    start[axis] += digit.stride * (digit.size - 1)
        return tuple(extent), tuple(start)
