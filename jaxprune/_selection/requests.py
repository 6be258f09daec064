"""What a call asks for: the sparsity that pattern, budget and caller come to, and the pattern of each leaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import checks, tree
from jaxprune.typing import Budget, Pattern, Scores, SettlingBudget, Sparsity


def settled(pattern: Pattern, sparsity: Sparsity | None, budget: Budget) -> Sparsity | None:
    """The sparsity that a call comes to, or `None` where the budget decides by the scores.

    In this order: what the pattern fixes, what is asked for, what the budget takes by itself, 0.5. Errors as in
    `without_budget`.
    """
    checked_pattern(pattern)
    if not callable(budget) or not tree.takes(budget, 3):
        raise TypeError(
            f"`budget` must be a function `(scores, sparsity, pattern) -> counts`; got {budget!r}. Give, for example, "
            f"`budgets.erk` or `budgets.cumulative(0.9)`."
        )
    if pattern.sparsity is None and sparsity is None and isinstance(budget, SettlingBudget):
        return budget.sparsity
    return without_budget(pattern, sparsity)


def without_budget(pattern: Pattern, sparsity: Sparsity | None) -> Sparsity:
    """What the pattern fixes, else what is asked for, else 0.5.

    Raises:
      ValueError: The request is out of range, or contradicts what the pattern fixes.
      TypeError: The request is no number, or is traced while the pattern fixes the sparsity; or the pattern is none.
    """
    fixed = checked_pattern(pattern).sparsity
    sparsity = None if sparsity is None else checks.fraction(sparsity, "sparsity")
    if fixed is None:
        return 0.5 if sparsity is None else sparsity
    if not isinstance(sparsity, float | None):
        raise TypeError(f"`{pattern}` fixes the sparsity at {fixed}; it cannot follow a traced one. Pass `None`.")
    if sparsity is not None and abs(sparsity - fixed) > 1e-6:
        raise ValueError(f"`{pattern}` fixes the sparsity at {fixed}; got {sparsity}. Leave the sparsity out.")
    return fixed


def checked_pattern(pattern: Pattern) -> Pattern:
    """The pattern. A `TypeError` is raised for anything else, a class in place of its value included."""
    if checks.is_a(pattern, type) or not checks.is_a(pattern, Pattern):
        raise TypeError(
            f"`pattern` must be a value with `sparsity`, `pool` and `expand`; got {pattern!r}. Give, for example, "
            f"`patterns.NM(2, 4)`."
        )
    return pattern


def by_leaf(pattern: Pattern, scores: Scores) -> list[Pattern]:
    """The pattern of each leaf of `scores`, in order; `None` leaves have none."""
    method: Callable[[Scores], list[Pattern]] | None = getattr(checked_pattern(pattern), "by_leaf", None)
    if method is not None:
        return method(scores)
    return [pattern] * len(jax.tree.leaves(scores))


def fitting(method: Callable[[Any], Any], path: str, score: Any, *, abstract: bool = False) -> Any:
    """Applies a pattern's method to a leaf's scores, or only finds the result's shape.

    Raises:
      ValueError: The leaf does not fit the pattern; the message names the path.
      TypeError: The scores are not floating.
    """
    tree.check_floating(path, score)
    try:
        return (
            jax.eval_shape(method, score)
            if abstract
            else method(score if isinstance(score, np.ndarray) else jnp.asarray(score))
        )
    except ValueError as error:
        raise ValueError(f"{error}; '{path}' has shape {score.shape}. Leave it out with `where=`.") from error
