"""Targets of `jaxprune.prune_retrain`: each decides, from the rounds so far, what to try next and when to stop.

A target is a value with two methods, `propose` and `best` (see `Target`); write your own class with them to search in
another way. Round 0 is the dense model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxprune.typing import Masks, Params


class Round(NamedTuple):
    """The result of one round.

    Attributes:
      parent: The round that it started from.
      asked: The sparsity asked for.
      sparsity: The sparsity found.
      metric: After retraining, higher is better.
      epochs: For how many epochs it was retrained.
      kept: After how many of these the metric was best; the parameters of that epoch are kept.
    """

    parent: int
    asked: float
    sparsity: float
    metric: float
    epochs: int
    kept: int


class Proposal(NamedTuple):
    """What to try next: prune an earlier round's model to a sparsity."""

    parent: int
    sparsity: float


@runtime_checkable
class Target(Protocol):
    """What `prune_retrain` asks of a target.

    Both methods must depend on nothing but their arguments, so that a run can be resumed.
    """

    def propose(self, rounds: Sequence[Round], cost: Callable[[int, Callable[..., float], float], float]) -> Any:
        """The next `Proposal`, or `None` at the end.

        Args:
          rounds: So far, the dense model first.
          cost: `cost(parent, of, sparsity)` is `of(params, masks)` for that round's model, pruned to that sparsity.
        """
        ...

    def best(self, rounds: Sequence[Round]) -> int:
        """The round whose model is the result."""
        ...


@dataclasses.dataclass(frozen=True)
class AtSparsity:
    """A given sparsity, in rounds that each remove the same fraction of what is left.

    Attributes:
      sparsity: The last round's.
      rounds: How many; with 1, the model is pruned once and retrained.

    Raises:
      ValueError: Not 0 <= sparsity < 1, or rounds < 1.

    Examples:
      >>> target, done = AtSparsity(0.75, rounds=2), [Round(0, 0.0, 0.0, 0.9, 0, 0)]
      >>> target.propose(done, None)
      Proposal(parent=0, sparsity=0.5)
    """

    sparsity: float
    rounds: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1 or self.rounds < 1:
            raise ValueError(f"`AtSparsity` needs 0 <= sparsity < 1 and rounds >= 1; got {self}.")

    def propose(self, rounds: Sequence[Round], cost: Any) -> Proposal | None:
        """Goes on from the last round."""
        del cost
        last = len(rounds) - 1
        if last == self.rounds:
            return None
        if last + 1 == self.rounds:
            return Proposal(last, self.sparsity)
        return Proposal(last, 1 - (1 - self.sparsity) ** ((last + 1) / self.rounds))

    def best(self, rounds: Sequence[Round]) -> int:
        """The last."""
        return len(rounds) - 1


@dataclasses.dataclass(frozen=True)
class AtMost:
    """A budget of multiply-accumulates, bytes or whatever else falls as the sparsity rises.

    Before each round, bisection finds the sparsity that meets the budget, by pruning without retraining; the round then
    goes an equal share of the way there.

    Attributes:
      limit: The highest cost allowed.
      cost: `cost(params, masks)`, such as `jaxprune.nbytes`, or
        `lambda params, masks: jaxprune.macs(fun, params, x, masks=masks).effective`.
      rounds: How many.

    Raises:
      TypeError: The cost is not a function.
      ValueError: rounds < 1; in a run, where no sparsity below 1 meets the budget.
    """

    limit: float
    cost: Callable[[Params, Masks], float]
    rounds: int = 5

    def __post_init__(self) -> None:
        if not callable(self.cost):
            raise TypeError(
                f"`AtMost` needs a cost `(params, masks) -> float`, e.g. `jaxprune.nbytes`; got {self.cost!r}."
            )
        if self.rounds < 1:
            raise ValueError(f"`AtMost` needs rounds >= 1; got {self.rounds}.")

    def propose(self, rounds: Sequence[Round], cost: Any) -> Proposal | None:
        """Goes on from the last round."""
        last = len(rounds) - 1
        left = self.rounds - last
        if left == 0:
            return None
        at = rounds[-1].asked
        final = self._meeting(at, lambda sparsity: float(cost(last, self.cost, sparsity)))
        return Proposal(last, final if left == 1 else 1 - (1 - at) * ((1 - final) / (1 - at)) ** (1 / left))

    def best(self, rounds: Sequence[Round]) -> int:
        """The last."""
        return len(rounds) - 1

    def _meeting(self, low: float, cost: Callable[[float], float]) -> float:
        if cost(low) <= self.limit:
            return low
        high = 1 - 1e-6
        if cost(high) > self.limit:
            raise ValueError(
                f"A cost of at most {self.limit:,.6g} cannot be met: with everything pruned it is {cost(high):,.6g}. "
                f"What is not pruned costs that much; widen `where=`, or raise the limit."
            )
        while high - low > 1e-5:
            middle = (low + high) / 2
            low, high = (low, middle) if cost(middle) <= self.limit else (middle, high)
        return high


@dataclasses.dataclass(frozen=True)
class Within:
    """The smallest model whose metric stays within a tolerance of the dense one's.

    Prunes by the same factor until a round fails, then goes back to the smallest model that passed and bisects the
    densities between.

    Attributes:
      tolerance: How far the metric may fall, in its own units.
      factor: What the density is multiplied by from round to round.
      resolution: Stop when the density that failed is less than this fraction below one that passed.
      rounds: Stop after so many.

    Raises:
      ValueError: The tolerance is negative, infinite or NaN; or not 0 < factor < 1, or resolution <= 0, or rounds < 1.
    """

    tolerance: float
    factor: float = 0.5
    resolution: float = 0.2
    rounds: int = 12

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"`Within` needs a tolerance of 0 or more, finite; got {self.tolerance}.")
        if not 0 < self.factor < 1 or self.resolution <= 0 or self.rounds < 1:
            raise ValueError(f"`Within` needs 0 < factor < 1, resolution > 0 and rounds >= 1; got {self}.")

    def propose(self, rounds: Sequence[Round], cost: Any) -> Proposal | None:
        """Starts from the smallest model that passed."""
        del cost
        if len(rounds) > self.rounds:
            return None
        parent = self.best(rounds)
        density = 1 - rounds[parent].asked
        failed = [1 - round_.asked for round_ in rounds if not self.passes(round_, rounds)]
        if not failed:
            return Proposal(parent, 1 - density * self.factor)
        below = max(failed)
        if below >= density * (1 - self.resolution):
            return None
        return Proposal(parent, 1 - math.sqrt(density * below))

    def best(self, rounds: Sequence[Round]) -> int:
        """The sparsest that passed."""
        passed = [i for i, round_ in enumerate(rounds) if self.passes(round_, rounds)]
        return max(passed, key=lambda i: rounds[i].asked)

    def passes(self, round_: Round, rounds: Sequence[Round]) -> bool:
        """Whether a round is within the tolerance of the dense model, or misses it by rounding alone."""
        least = rounds[0].metric - self.tolerance
        return round_.metric >= least or math.isclose(round_.metric, least, rel_tol=1e-9)
