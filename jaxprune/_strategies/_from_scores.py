"""From scores to masks: what every strategy ends with."""

from __future__ import annotations

from typing import Any

from jaxprune import budgets, patterns
from jaxprune._masks import masking
from jaxprune._selection import exact, requests
from jaxprune._strategies._within import restricted
from jaxprune.typing import Budget, Masks, Pattern, Scores, SelectingPattern, Sparsity

UNSTRUCTURED = patterns.Unstructured()


def from_scores(
    scores: Scores,
    sparsity: Sparsity | None = None,
    *,
    budget: Budget = budgets.uniform,
    pattern: Pattern = UNSTRUCTURED,
    absolute: bool = False,
    within: Masks = None,
) -> Masks:
    """Prunes by any scores: the last step of every strategy here, and the way to use your own criterion.

    Args:
      scores: One floating array per leaf, higher = more worth keeping; `None` leaves stay dense.
      sparsity: Fraction to remove, in [0, 1]. `None` means what the pattern or the budget fixes, else 0.5.
      budget: How the sparsity is spread over the leaves.
      pattern: What is removed together.
      absolute: The absolute values are the scores; see `select`.
      within: Masks of an earlier pruning. What they removed stays removed, and the sparsity is still a fraction of all
        weights; a leaf, line or group that has fewer left than it may keep keeps those. A leaf without scores has the
        mask that it had. Where scores are averaged over a group, as in `Block`, what was removed counts as 0, or as the
        lowest score where that is negative.

    Returns:
      Masks with the structure of `scores`.

    Raises:
      ValueError: The sparsity is out of range or contradicts the pattern or the budget, or a leaf does not fit the
        pattern; the message names its path.

    Examples:
      >>> masks = from_scores({"kernel": jnp.array([[0.1, 3.0], [2.0, 0.2]]), "bias": None}, 0.5)
      >>> print(masks["kernel"])
      [[False  True]
       [ True False]]
    """
    sparsity = requests.settled(pattern, sparsity, budget)
    if within is not None:
        if absolute:
            scores = exact.magnitudes(scores)
        masks = from_scores(restricted(scores, within, pattern), sparsity, budget=budget, pattern=pattern)
        return masking.intersection(masks, within)
    if pattern.sparsity is not None:
        if budget is not budgets.uniform:
            raise ValueError(
                f"`{pattern}` fixes the sparsity of every leaf; a budget has nothing to decide. Leave it out."
            )
        return exact.select(scores, 0, pattern=pattern, absolute=absolute)
    # Most budgets look at shapes only; then nothing computes these values under `jit`.
    sizes = exact.magnitudes(scores) if absolute else scores
    counts = _counts(sizes, sparsity, budget, pattern)
    return exact.select(scores, counts, pattern=pattern, absolute=absolute)


def _counts(scores: Scores, sparsity: Any, budget: Budget, pattern: Pattern) -> Any:
    """Keep-counts; for the plain global budget only their sum, which spares a second search for the threshold."""
    if budget is budgets.global_ and not isinstance(pattern, SelectingPattern):
        return budgets.keep_count(sum(budgets.group_sizes(scores, pattern)), sparsity)
    return budget(scores, sparsity, pattern)
