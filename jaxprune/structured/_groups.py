"""Units that are pruned together, and what the axes of a contraction have of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int

Units: TypeAlias = Int[np.ndarray, "_"]
"""For each position of an axis the number of its unit, 0 where no unit owns it."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One axis of one leaf that a group's units own slices of."""

    path: str
    axis: int
    contracted: bool


@dataclasses.dataclass(frozen=True)
class Group:
    """Units of one kind: the neurons of a layer, the channels of a stage, the heads of an attention.

    Attributes:
      name: Path of the leaf that produces the units, with the axis where it produces several groups.
      start: Number of the first unit; the others follow.
      width: How many units there are.
      members: Every leaf and axis they own slices of.
      stack: Axis of the member leaves along which the layers of a scan are stacked, if each layer may keep its own
        units; the same axis in all of them.
      layers: Length of that axis, else 1.
    """

    name: str
    start: int
    width: int
    members: tuple[Member, ...]
    stack: int | None = None
    layers: int = 1

    def owns(self, units: Units) -> Bool[np.ndarray, "_"]:
        """Which positions of an axis belong to a unit of this group.

        Args:
          units: From `Coupling.units`, of the axis.
        """
        return (units >= self.start) & (units < self.start + self.width)


@dataclasses.dataclass(frozen=True)
class Factor:
    """Width of one axis of a contraction: `fixed` positions, and so many per unit of each group."""

    fixed: int
    per_unit: tuple[tuple[int, float], ...]

    def width(self, kept: Sequence[int]) -> float:
        """The width when each group keeps so many units."""
        return self.fixed + sum(each * kept[group] for group, each in self.per_unit)
