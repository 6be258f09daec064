"""How many steps a training takes to a given loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Array

Losses: TypeAlias = Sequence[float] | np.ndarray | Array
"""Of every step, in their order."""

_SHARES = (0.5, 0.9, 1.0)


def steps_to(losses: Losses, level: float, *, window: int = 1) -> int | None:
    """How many steps it takes until the loss is down to a level.

    Args:
      losses: Of every step, in their order.
      level: To be reached.
      window: The loss at a step is the mean over so many steps up to it, since the losses of single batches vary much.

    Returns:
      A number of steps, at least `window`; `None` if the loss never gets there.

    Raises:
      ValueError: window < 1, or there are fewer losses.

    Examples:
      >>> steps_to([3.0, 1.0, 2.0, 0.0], 1.5), steps_to([3.0, 1.0, 2.0, 0.0], 1.5, window=2)
      (2, 3)
    """
    reached = np.flatnonzero(averaged(losses, window) <= level)
    return int(reached[0]) + window if len(reached) else None


def averaged(losses: Losses, window: int) -> np.ndarray:
    """The mean of every `window` losses in a row."""
    losses = np.asarray(losses, np.float64)
    if not 1 <= window <= len(losses):
        raise ValueError(
            f"`window` must be from 1 to the number of losses; got {window} for {len(losses)}. Give the loss of every "
            f"step, or a smaller window."
        )
    return np.convolve(losses, np.full(window, 1 / window), mode="valid")


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Two trainings compared by the steps that they take to the same losses.

    Attributes:
      before: The losses of the dense model's training, one a step.
      after: Those of the pruned one's, on the same data.
      levels: Losses to reach. If empty: those at which the loss of the dense model has covered half, nine tenths and
        all of the way from its first to its lowest value.
      window: See `steps_to`.

    Raises:
      ValueError: See `steps_to`.

    Examples:
      >>> found = Convergence([4.0, 2.0, 1.0, 0.0], [4.0, 1.0, 1.0, 1.0], levels=(2.0, 0.5))
      >>> found.steps()
      [(2.0, 2, 2), (0.5, 4, None)]
    """

    before: Losses
    after: Losses
    levels: Sequence[float] = ()
    window: int = 1

    def steps(self) -> list[tuple[float, int | None, int | None]]:
        """Each level, and the steps to it before and after; `None` where it is not reached."""
        return [(level, self._to(self.before, level), self._to(self.after, level)) for level in self._levels()]

    def _to(self, losses: Losses, level: float) -> int | None:
        return steps_to(losses, level, window=self.window)

    def _levels(self) -> list[float]:
        if self.levels:
            return list(self.levels)
        losses = averaged(self.before, self.window)
        start, end = float(losses[0]), float(losses.min())
        return [(1 - share) * start + share * end for share in _SHARES]
