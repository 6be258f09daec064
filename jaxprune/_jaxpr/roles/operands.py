"""The operands and the result of a product with a parameter, laid out as the parameter is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.contractions import dot
from jaxprune._jaxpr.roles.parts import LOOKED_UP, Digit, Part, union
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
      chosen: Which samples count, of the samples' shape or of size 1 along some of its axes; `None` for all.
    """

    values: Any
    samples: int
    start: tuple[Any, ...]
    chosen: Any = None


@dataclasses.dataclass(frozen=True)
class Product:
    """One product with a leaf.

    Attributes:
      leaf: Its index.
      rank: How many axes it has.
      eqn: A `dot_general`, `ragged_dot_general` or `conv_general_dilated`.
      side: Which operand the leaf is.
      part: How that operand is made of the leaf.
      operands: Both operands, and the sizes of the groups of a ragged product.
      result: Of the product.
      members: Of what is looked up, which entries the product is restricted to.
    """

    leaf: int
    rank: int
    eqn: JaxprEqn
    side: int
    part: Part
    operands: Sequence[Any]
    result: Any
    members: Any = None

    def inputs(self) -> AlignedValues:
        """What the leaf is multiplied by, with the leaf's input and stacked axes at their full size.

        Raises:
          UnsupportedProduct: It is not understood; the message gives the reason.
        """
        if self.eqn.primitive.name != "conv_general_dilated":
            values, roles = self.operands[1 - self.side], self._roles()
        else:
            values, roles = self._patches()
        return self._arranged(values, roles)

    def outputs(self) -> AlignedValues:
        """The result, with the leaf's output and stacked axes at their full size.

        Raises:
          UnsupportedProduct: It is not understood; the message gives the reason.
        """
        if self.eqn.primitive.name != "conv_general_dilated":
            return self._arranged(self.result, self._result_roles(), summed="it sums over what is looked up")
        numbers = self.eqn.params["dimension_numbers"]
        roles: list[Digits | None] = [None] * self.result.ndim
        roles[numbers.out_spec[1]] = self.part.axes[numbers.rhs_spec[0]]
        return self._arranged(self.result, roles)

    def looked_up(self) -> int | None:
        """The leaf's axis along which each sample has a position that the program computes, if there is one."""
        if self.eqn.primitive.name == "ragged_dot_general":
            (digit,) = self._grouped()
            return digit.axis
        return self.part.looked_up.axis if self.part.looked_up else None

    def at(self, position: Any) -> Product:
        """The product of the samples that have one position along the axis `looked_up()`."""
        axis = self.looked_up()
        assert axis is not None
        starts = {**self.part.starts, axis: position}
        part = dataclasses.replace(self.part, stacked=union(self.part.stacked, (axis,)), starts=starts)
        return dataclasses.replace(self, part=part, members=self._positions() == position)

    def _positions(self) -> Any:
        """The position of each entry of the list that is looked up, or of each row of a ragged product."""
        if self.part.looked_up is not None:
            return self.part.looked_up.positions()
        (digit,), (row,) = self._grouped(), dot(self.eqn).ragged
        if len(self.operands) != 3 or self.operands[2].ndim != 1:
            raise UnsupportedProduct("its groups differ along a batch, or begin with an offset")
        ends = jnp.cumsum(self.operands[2])
        group = jnp.searchsorted(ends, jnp.arange(self.operands[0].shape[row], dtype=ends.dtype), side="right")
        return self.part.starts.get(digit.axis, 0) + digit.stride * group

    def _grouped(self) -> Digits:
        digits = self.part.axes[dot(self.eqn).grouped[0]]
        if len(digits) != 1 or not digits[0].alone or self.part.looked_up is not None:
            raise UnsupportedProduct("its groups do not lie along one whole axis")
        return digits

    def _roles(self) -> list[Digits | None]:
        """Digits of the leaf behind each axis of the other operand of a product of matrices; `None` for samples."""
        axes, other = dot(self.eqn), 1 - self.side
        roles: list[Digits | None] = [None] * self.operands[other].ndim
        for ours, theirs in zip(axes.summed[self.side], axes.summed[other], strict=True):
            if not self.part.axes[ours] and self.operands[self.side].shape[ours] > 1:
                raise UnsupportedProduct("it is repeated along an axis that the product sums over")
            roles[theirs] = self.part.axes[ours]
        for ours, theirs in zip(axes.batched[self.side], axes.batched[other], strict=True):
            roles[theirs] = self.part.axes[ours] or None
        for row in axes.ragged:
            roles[row] = (Digit(LOOKED_UP, self.operands[other].shape[row]),)
        return roles

    def _result_roles(self) -> list[Digits | None]:
        axes = dot(self.eqn)
        of_left: list[Digits | None] = [None] * self.operands[0].ndim
        for row in axes.ragged:
            of_left[row] = (Digit(LOOKED_UP, self.operands[0].shape[row]),)
        ours = [digits or None for digits in self.part.axes]
        sides = [ours, [None] * self.operands[1].ndim] if self.side == 0 else [of_left, ours]
        free = [[sides[side][a] for a in axes.free(side, len(sides[side]))] for side in (0, 1)]
        return [*(ours[a] for a in axes.batched[self.side]), *free[0], *free[1]]

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

    def _arranged(self, values: Any, roles: Sequence[Digits | None], summed: str = "") -> AlignedValues:
        """Splits the axes into digits and brings these into the leaf's order.

        Args:
          values: An operand or the result.
          roles: The digits behind each of its axes.
          summed: Why the values cannot be told apart that lack an axis of what is looked up; "" if they can.
        """
        if self.part.unplaced:
            raise UnsupportedProduct(self.part.unplaced)
        shape, samples, digits = list[int](), list[int](), list[tuple[int, Digit]]()
        listed: dict[int, Digits] = {}
        for axis, role in enumerate(roles):
            if role and not role[0].alone:
                values = lax.slice_in_dim(values, role[0].before, role[0].before + role[0].size, axis=axis)
            if role is None or (role and role[0].axis < 0 and role[0].size > 1):
                if role and role[0].axis == LOOKED_UP:
                    listed[len(samples)] = role
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
        chosen = None if self.members is None else self._chosen(listed, len(samples), summed)
        return AlignedValues(values.reshape(*values.shape[: len(samples)], *extent), len(samples), start, chosen)

    def _chosen(self, listed: Mapping[int, Digits], samples: int, summed: str) -> Any:
        """Which samples are `members`; where one sample has several entries, whether any of them is."""
        seen = {digit for digits in listed.values() for digit in digits}
        absent = [
            d for digits in self.part.axes for d in digits if d.axis == LOOKED_UP and d.size > 1 and d not in seen
        ]
        if absent and summed:
            raise UnsupportedProduct(summed)
        place = np.full((1,) * samples + (1,), self.part.starts.get(LOOKED_UP, 0))
        for axis, digits in listed.items():
            along = _places(digits)
            place = place + along.reshape([-1 if a == axis else 1 for a in range(samples + 1)])
        place = place + _places(absent)
        return self.members[place].any(-1)

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


def _places(digits: Iterable[Digit]) -> np.ndarray:
    """The place in a list of each position along the axes that some digits make one of."""
    place = np.zeros(1, np.int32)
    for digit in digits:
        place = (place[:, None] + digit.stride * np.arange(digit.size)).reshape(-1)
    return place
