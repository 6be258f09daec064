"""Budgets stated in multiply-accumulates or in seconds."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from jaxprune._arrays import checks
from jaxprune.structured._coupling import Coupling
from jaxprune.typing import Counts


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A budget that removes units, the least score for the cost first, until a cost is met.

    Attributes:
      coupling: Whose groups are to be cut.
      target: The cost to meet.
      cost: From keep-counts to the cost.
      slopes: From keep-counts to what one unit less of each group saves.
    """

    coupling: Coupling
    target: float
    cost: Callable[[Sequence[int]], float]
    slopes: Callable[[Sequence[int]], Sequence[float]]
    sparsity: None = None

    def __call__(
        self,
        scores: Mapping[str, Any],
        sparsity: Any,
        pattern: Any,
        *,
        floors: Sequence[int] = (),
        alike: Sequence[Sequence[int]] = (),
    ) -> Counts:
        """Keep-counts of each group; `sparsity` must be `None`. Groups that are `alike`, by number, keep as many."""
        if sparsity is not None:
            raise ValueError(
                f"This budget meets a cost of {self.target:,.6g}; got sparsity {sparsity} too. Leave it out."
            )
        if any(isinstance(score, Tracer) for score in scores.values()):
            raise TypeError(
                "A budget of multiply-accumulates or seconds is searched for outside `jit`; scores are traced."
            )
        groups = self.coupling.groups
        kept = [group.width for group in groups]
        floors = floors or [1] * len(groups)
        alike = alike or [[i] for i in range(len(groups))]
        ascending = [np.sort(np.asarray(scores[group.name])) for group in groups]
        if self.cost(floors) > self.target:
            raise ValueError(
                f"A cost of {self.target:,.6g} cannot be met: with the fewest units it is {self.cost(floors):,.6g}."
            )
        total = self.cost(kept)
        while total > self.target:
            slopes = self.slopes(kept)
            queue = [
                (sum(float(ascending[i][groups[i].width - kept[i]]) for i in same) / saved, same)
                for same in alike
                if kept[same[0]] > floors[same[0]] and (saved := sum(slopes[i] for i in same)) > 0
            ]
            if not queue:
                raise ValueError(f"No group saves anything more, at a cost of {total:,.6g}. Check the table of costs.")
            heapq.heapify(queue)
            # A slope moves slowly: take about a hundredth of a group before it is computed anew.
            while queue and total > self.target:
                _, chosen = heapq.heappop(queue)
                first = chosen[0]
                step = min(max(1, groups[first].width // 100), kept[first] - floors[first])
                for i in chosen:
                    kept[i] -= step
                total = self.cost(kept)
                if len(queue) < len(alike) * 3 // 4:
                    break
        return {group.name: count for group, count in zip(groups, kept, strict=True)}


def macs(coupling: Coupling, fraction: float) -> Fitted:
    """Keeps at most a fraction of the multiply-accumulates of a call.

    Args:
      coupling: From `couple`; it knows the count as a function of every group's width, exactly.
      fraction: Of the dense count, in (0, 1].

    Raises:
      ValueError: The fraction is out of range, or below what one unit per group leaves.
    """
    if not checks.is_a(coupling, Coupling):
        raise TypeError(f"`coupling` must come from `couple(fun, params, *args)`; got {type(coupling).__name__}.")
    if not 0 < checks.real(fraction, "fraction") <= 1:
        raise ValueError(f"`macs` needs a fraction in (0, 1] of the dense count; got {fraction}.")
    return Fitted(coupling, fraction * coupling.macs(), coupling.macs, coupling.macs_per_unit)


def latency(coupling: Coupling, seconds: float, table: Mapping[str, Sequence[float]], other: float = 0.0) -> Fitted:
    """Keeps at most a latency, as a table of measurements predicts it.

    Args:
      coupling: From `couple`.
      seconds: To be met.
      table: For each group's name, the seconds that its layers take with 0, 1, 2, ... units kept, as measured.
      other: Seconds that no group accounts for.

    Raises:
      ValueError: A group has no row, or one of the wrong length; the message names it. Or the target cannot be met.
    """
    for group in coupling.groups:
        got = len(table[group.name]) if group.name in table else None
        if got != group.width + 1:
            raise ValueError(
                f"`table['{group.name}']` needs {group.width + 1} entries, for 0 to {group.width} units; got {got}."
            )
    rows = [np.asarray(table[group.name], np.float64) for group in coupling.groups]

    def cost(kept: Sequence[int]) -> float:
        return other + float(sum(row[k] for row, k in zip(rows, kept, strict=True)))

    def slopes(kept: Sequence[int]) -> list[float]:
        return [_saving(row[: k + 1]) for row, k in zip(rows, kept, strict=True)]

    return Fitted(coupling, seconds, cost, slopes)


def _saving(row: np.ndarray) -> float:
    """What one unit less saves. Hardware takes widths in steps, so look down to the next step, at least an eighth."""
    last = len(row) - 1
    ahead = max(1, last // 8)
    lower = np.flatnonzero(row < row[-1])
    if not len(lower):
        return 0.0
    ahead = max(ahead, last - int(lower[-1]))
    return float(row[last] - row[max(last - ahead, 0)]) / ahead
