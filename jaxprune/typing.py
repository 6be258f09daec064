"""Names for the arrays and pytrees that pass between the modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

Params: TypeAlias = PyTree[Any]
"""Any pytree whose leaves are arrays; leaves that are not arrays are left alone."""

Grads: TypeAlias = PyTree[Any]
"""Gradients with the structure and the shapes of the parameters."""

Scores: TypeAlias = PyTree[Any]
"""One float per weight, higher = more worth keeping; `None` where a leaf is not to be pruned."""

Statistics: TypeAlias = PyTree[Any]
"""What a calibration pass measured for each leaf; `None` where nothing was."""

Masks: TypeAlias = PyTree[Any]
"""`True` = keep, broadcastable against the parameter; or a `Spectral`; or `None` = the leaf stays dense."""

Counts: TypeAlias = PyTree[Any]
"""How many groups (single weights, blocks, channels) each leaf keeps; `None` where there are no scores."""

Kernel: TypeAlias = Float[Array, "in out"]
"""The weights of one layer, inputs first."""

Gram: TypeAlias = Float[Array, "in in"]
"""$X^\\top X$ of a layer's inputs X, one row a sample."""

Mask: TypeAlias = Bool[Any, "..."]
"""The mask of one leaf, `True` = keep."""

Score: TypeAlias = Float[Any, "..."]
"""The scores of one leaf."""

Count: TypeAlias = int | Int[Array, ""]
"""A number of groups; an array where it was computed under `jit`."""

Sparsity: TypeAlias = float | Float[Array, ""] | np.floating[Any] | Float[np.ndarray, ""]
"""The fraction to remove, in [0, 1]; an array where a schedule computes it."""

PRNGKey: TypeAlias = Key[Array, ""]
"""A key that `jax.random.key` made."""

Where: TypeAlias = Callable[[str, Any], bool]
"""Picks leaves by path ("encoder/layer_0/kernel") and by what they are."""


@runtime_checkable
class Pattern(Protocol):
    """The shape of what is removed together.

    A pattern may have two members more: `select`, see `SelectingPattern`, and `by_leaf(scores)`, a list with a pattern
    for each leaf of `scores`, where leaves are not treated alike.
    """

    @property
    def sparsity(self) -> float | None:
        """The sparsity that the pattern itself fixes, or `None` where a budget decides."""
        ...

    def pool(self, scores: Score) -> Score:
        """One score per group."""
        ...

    def expand(self, kept: Shaped[Any, "..."], shape: tuple[int, ...]) -> Shaped[Any, "..."]:
        """From one value per group, such as a decision, to an array that broadcasts against `shape`."""
        ...


@runtime_checkable
class SelectingPattern(Pattern, Protocol):
    """A pattern that chooses within a leaf by itself: its groups do not simply compete with each other."""

    def select(self, scores: Score, keep: Count) -> Mask:
        """The mask of a leaf, in its shape.

        Args:
          scores: Of the leaf, floating.
          keep: How many groups to keep, perhaps traced; meaningless where the pattern fixes its sparsity.
        """
        ...


@runtime_checkable
class Budget(Protocol):
    """Decides how much each leaf keeps; any function of this form is one. See also `SettlingBudget`."""

    def __call__(self, scores: Scores, sparsity: Any, pattern: Pattern) -> Counts:
        """Keep-counts, in groups of the pattern, for a `Sparsity`, or `None` where the budget is to decide."""
        ...


@runtime_checkable
class SettlingBudget(Budget, Protocol):
    """A budget that says what happens where no sparsity is asked for; other budgets then get 0.5."""

    @property
    def sparsity(self) -> float | None:
        """The sparsity to take, or `None`: the scores decide, and the budget refuses any other request."""
        ...


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of one parameter; each is in one of the three.

    Attributes:
      inputs: Those that products sum over, at least one. The taps of a convolution come before its input channels.
      outputs: Those that come out.
      stacked: Those along which separate kernels lie: the layers of a scan, experts.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    stacked: tuple[int, ...]
