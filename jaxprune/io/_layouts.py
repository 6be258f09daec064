"""Which axis of a kernel in a file is its inputs and which its outputs: a matter of who wrote the file."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxprune import patterns
from jaxprune.typing import Pattern

Layout: TypeAlias = Literal["auto", "flax", "torch"]


class Axes(NamedTuple):
    """Of one kernel, negative.

    Attributes:
      inputs: The axis that products sum over.
      outputs: The one that comes out.
      why: How it is known.
    """

    inputs: int
    outputs: int
    why: str


def axes_of(path: str, shape: tuple[int, ...], layout: Layout) -> Axes | None:
    """The axes of a leaf of two axes or more; `None` where its name does not tell.

    Args:
      path: Of the leaf. A `weight` is `(out, in, ...)`, as in torch and Equinox; a `kernel` or `w` is `(..., in, out)`,
        as in Flax and Haiku, but for the query, key and value of Flax's attention, `(in, heads, width)`.
      shape: Its shape.
      layout: Whose files these are; "auto" goes by the name.
    """
    name = path.rpartition("/")[2]
    if layout == "torch" or (layout == "auto" and re.fullmatch(r"(.*_)?weight(_.*)?", name)):
        return Axes(-1 if len(shape) == 2 else 1 - len(shape), -len(shape), "(out, in)")
    if re.search(r"(^|/)(query|key|value)/kernel$", path) and len(shape) == 3:
        return Axes(-3, -1, "(in, heads, width)")
    if layout == "flax" or re.fullmatch(r"(.*_)?kernel(_.*)?|w", name):
        return Axes(-2, -1, "(in, out)")
    return None


def oriented(pattern: Any, path: str, shape: tuple[int, ...], layout: Layout) -> Pattern:
    """The pattern with the axis of this leaf, if it has one and leaves it open.

    Raises:
      ValueError: The leaf's name does not tell; the message names the path.
    """
    if not isinstance(pattern, patterns.NM | patterns.Along | patterns.Channel) or pattern.axis is not None:
        return pattern
    found = axes_of(path, shape, layout)
    if found is None:
        raise ValueError(
            f"`{pattern}` needs to know which axis of '{path}', {shape}, is summed over, and its name does not tell. "
            f"Say whose layout it is, 'flax' (in, out) or 'torch' (out, in), or leave it out."
        )
    if isinstance(pattern, patterns.Channel):
        return dataclasses.replace(pattern, axis=found.outputs)
    if isinstance(pattern, patterns.Along) and len(shape) > 2 and found.inputs == 1 - len(shape):
        return dataclasses.replace(pattern, axis=tuple(range(1 - len(shape), 0)))
    return dataclasses.replace(pattern, axis=found.inputs)
