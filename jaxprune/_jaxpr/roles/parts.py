"""How the axes of a value that is made of a parameter correspond to the parameter's axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

Axes: TypeAlias = tuple[int, ...]


NOTHING = -1
"""The axis of a digit along which the leaf is repeated."""
LOOKED_UP = -2
"""The axis of a digit of a position in a list of positions, which the program looks up along an axis of the leaf."""
STRETCHED = "an axis of one is stretched"
"""Why a leaf such as the magnitudes of weight normalisation, which scales a kernel, is not itself a kernel."""


class Digit(NamedTuple):
    """One of the digits that a position along a leaf's axis is written in: it takes `size` values, `stride` apart.

    A reshape splits an axis of 6 into the digits `(2, stride 3)` and `(3, stride 1)`, or gives one axis the digits of
    two. A reversed axis has a negative stride. Where the leaf was concatenated with others or padded, an axis of the
    value has `before` positions ahead of the leaf's and `after` behind them; such an axis has no other digit.
    """

    axis: int
    size: int
    stride: int = 1
    before: int = 0
    after: int = 0

    @property
    def alone(self) -> bool:
        """Whether every position is the leaf's."""
        return self.before == self.after == 0


class LookUp(NamedTuple):
    """Positions along an axis of the leaf that the program computes, as in `experts[chosen]`.

    Attributes:
      axis: Of the leaf.
      start: The position that index 0 stands for.
      stride: From one index to the next.
      indices: `(..., coordinates)`; an array, or what stands for it where the program is not evaluated.
      place: Which of the coordinates it is.
    """

    axis: int
    start: Any
    stride: int
    indices: Any
    place: int

    def positions(self) -> Any:
        """One position for each entry of the list."""
        return self.start + self.stride * self.indices[..., self.place].reshape(-1)


@dataclasses.dataclass(frozen=True)
class Part:
    """A leaf inside a value.

    Attributes:
      axes: For each axis of the value the digits of the position in the leaf, the most significant first.
      stacked: The leaf's axes of which the value holds one position.
      starts: By axis of the leaf, the position where all digits are 0, if it is not 0; a number, or an array where the
        program computes it. Only an evaluation knows those: otherwise they count as 0.
      unplaced: Why digits and starts do not give the position, in words; "" where they do.
      looked_up: Where the program looks up the leaf, which is then one of its `stacked` axes.
    """

    axes: tuple[tuple[Digit, ...], ...]
    stacked: Axes = ()
    starts: Mapping[int, Any] = dataclasses.field(default_factory=dict)
    unplaced: str = ""
    looked_up: LookUp | None = None

    def with_axes(self, axes: Iterable[tuple[Digit, ...]], dropped: Iterable[Digit] = ()) -> Part:
        """The same leaf with other axes; along the digits `dropped` the value holds one position."""
        return dataclasses.replace(self, axes=tuple(axes), stacked=union(self.stacked, axes_of(dropped)))

    def without_place(self, reason: str) -> Part:
        """The same leaf at an unknown place."""
        return dataclasses.replace(self, unplaced=self.unplaced or reason)

    def with_digits(self, axis: int, digits: Iterable[Digit]) -> Part:
        """The same leaf with other digits on one axis of the value."""
        axes = tuple(tuple(digits) if a == axis else kept for a, kept in enumerate(self.axes))
        return dataclasses.replace(self, axes=axes)

    def joined(self, axis: int, size: int, before: int, after: int) -> Part:
        """The same leaf in a value with more positions along an axis, which had `size`."""
        digits = self.axes[axis]
        if len(digits) > 1 or min(before, after) < 0:
            return self.without_place("it is a part of something larger")
        digit = digits[0] if digits else Digit(NOTHING, size)
        return self.with_digits(axis, [digit._replace(before=digit.before + before, after=digit.after + after)])

    def sliced(self, axis: int, start: Any, size: int, step: int = 1) -> Part | None:
        """Cuts an axis of the value to `size` positions, from `start` on; `None` if nothing of the leaf is left."""
        digits, starts = self.axes[axis], dict(self.starts)
        if len(digits) == 1 and not digits[0].alone:
            return self._between(axis, start, size, step)
        if size != 1 and len(digits) > 1:
            return self.without_place("a slice cuts an axis that a reshape has merged")
        cut, rest = list[Digit](), math.prod(digit.size for digit in digits)
        for digit in digits:
            rest //= digit.size
            place = start // rest % digit.size if len(digits) > 1 else start
            starts[digit.axis] = starts.get(digit.axis, 0) + digit.stride * place
            cut.append(Digit(digit.axis, size, digit.stride * step))
        return dataclasses.replace(self.with_digits(axis, cut), starts=starts)

    def _between(self, axis: int, start: Any, size: int, step: int) -> Part | None:
        """Cuts an axis on which others lie before and after the leaf."""
        (digit,) = self.axes[axis]
        if step != 1 or not isinstance(start, int):
            return self.without_place("it is a part of something larger, which is cut")
        first, last = max(start, digit.before), min(start + size, digit.before + digit.size)
        if first >= last:
            return None
        skipped = first - digit.before
        starts = {**self.starts, digit.axis: self.starts.get(digit.axis, 0) + digit.stride * skipped}
        left = digit._replace(size=last - first, before=first - start, after=start + size - last)
        return dataclasses.replace(self.with_digits(axis, [left]), starts=starts)


def axes_of(digits: Iterable[Digit]) -> Axes:
    """The leaf's axes that some digits belong to."""
    return tuple(dict.fromkeys(digit.axis for digit in digits if digit.axis >= 0))


def united(first: Part, second: Part) -> Part:
    """The part of a leaf that two values of one shape are both made of."""
    axes = [union(a, b) for a, b in zip(first.axes, second.axes, strict=True)]
    alike = all(a == b or not (a and b) for a, b in zip(first.axes, second.axes, strict=True))
    starts = {**first.starts, **second.starts}
    alike &= all(_equal(first.starts.get(a, 0), second.starts.get(a, 0)) for a in starts)
    unplaced = first.unplaced or second.unplaced or ("" if alike else "parts of it are combined")
    looked_up = first.looked_up or second.looked_up
    if first.looked_up is not second.looked_up:
        unplaced = unplaced or "parts of it that are looked up are combined"
    return Part(tuple(axes), union(first.stacked, second.stacked), starts, unplaced, looked_up)


def _equal(first: Any, second: Any) -> bool:
    return first is second or (isinstance(first, int) and isinstance(second, int) and first == second)


def union(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    """Each once, in order."""
    return tuple(dict.fromkeys(first + second))


def distributed(digits: Sequence[tuple[Digit, ...]], sizes: Sequence[int]) -> list[tuple[Digit, ...]] | None:
    """The digits of merged axes, distributed over axes of these sizes; `None` if they do not fit."""
    queue = [digit for axis in digits for digit in axis]
    if not all(digit.alone for digit in queue):
        return [tuple(queue)] if len(queue) == len(sizes) == 1 else None
    result = list[tuple[Digit, ...]]()
    for size in sizes:
        taken, left = list[Digit](), size
        while left > 1:
            if not queue:
                return None
            axis, width, stride, *_ = queue.pop(0)
            if width > left and width % left == 0:
                queue.insert(0, Digit(axis, width // left, stride))
                width, stride = left, stride * (width // left)
            if left % width:
                return None
            taken.append(Digit(axis, width, stride))
            left //= width
        result.append(tuple(taken))
    return [*result[:-1], (*result[-1], *queue)]  # axes of one may be left over
