"""How much each leaf keeps. A budget is a function `(scores, sparsity, pattern) -> keep-counts`.

Counts are in groups of the pattern: single weights, blocks, channels. `kept = round(groups * (1 - sparsity))`, half to
even. The sparsity may be traced, as it is under a schedule; it is then read to six decimals, which makes 0.9 the same
number in every precision.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune._arrays import ordering, tree, wide
from jaxprune._arrays.wide import Wide as Wide
from jaxprune._selection import exact, requests
from jaxprune.typing import Budget, Count, Counts, Pattern, Score, Scores, SettlingBudget, Sparsity

_MILLION = 10**6


def keep_count(groups: Count | Wide, sparsity: Sparsity) -> Count | Wide:
    """The number to keep out of `groups`: `round(groups * (1 - sparsity))`, half to even, at least 0.

    Args:
      groups: How many there are; may be traced if they are fewer than 2**31.
      sparsity: In [0, 1]; a Python number, or a scalar array, which may be traced.

    Returns:
      An `int`, or an int32 scalar where the sparsity is an array; that of 2**31 groups or more is `Wide`.

    Raises:
      ValueError: A Python sparsity is outside [0, 1], or groups are `Wide`.

    Examples:
      >>> keep_count(10, 0.75), keep_count(25_000_000, jnp.float32(0.9))
      (2, Array(2500000, dtype=int32))
    """
    if isinstance(groups, Wide):
        raise ValueError(
            "A share of 2**31 groups or more is taken of a Python number of groups; got one that was counted. Exchange "
            "weights in leaves of fewer, or leave this one dense."
        )
    if isinstance(sparsity, float | int):
        if not 0 <= sparsity <= 1:
            raise ValueError(f"`sparsity` is the fraction removed, between 0 and 1; got {sparsity}. For 90 % give 0.9.")
        return round(groups * (1 - sparsity))
    removed = jnp.round(jnp.clip(jnp.asarray(sparsity, jnp.float32), 0, 1) * _MILLION).astype(jnp.int32)
    density = _MILLION - removed
    # groups * density / 10**6 in 32-bit integers: split groups into millions, thousands and units.
    millions, rest = divmod(groups, _MILLION)
    if isinstance(groups, int) and groups >= 2**31:
        # Whether `millions * density` is odd decides, as for smaller numbers, to which side a half is rounded.
        odd = millions % 2 * (density % 2)
        return wide.plus(wide.product(groups // _MILLION, density), wide.of(_share(rest, density, odd)))
    return millions * density + _share(rest, density, millions * density % 2)


def _share(rest: Count, density: Int[Array, ""], odd: Int[Array, ""]) -> Int[Array, ""]:
    """`rest * density / 10**6` rounded; a half goes to the side on which the result plus `odd` is even."""
    thousands, units = divmod(rest, 1000)
    quotient, remainder = jnp.divmod(thousands * density, 1000)
    fraction = remainder * 1000 + units * density
    whole = quotient + fraction // _MILLION
    part = fraction % _MILLION
    up = (part > _MILLION // 2) | ((part == _MILLION // 2) & ((whole + odd) % 2 == 1))
    return whole + up.astype(jnp.int32)


def group_sizes(scores: Scores, pattern: Pattern) -> list[int]:
    """How many groups of the pattern each leaf has."""
    rows, _ = tree.flatten(scores)
    sizes: dict[tuple[Any, ...], int] = {}
    keys = []
    for (path, score), p in zip(rows, requests.by_leaf(pattern, scores), strict=True):
        keys.append((jnp.shape(score), score.dtype, id(p)) if tree.is_array(score) else path)
        if keys[-1] not in sizes:
            sizes[keys[-1]] = requests.fitting(p.pool, path, score, abstract=True).size
    return [sizes[key] for key in keys]


def uniform(scores: Scores, sparsity: Sparsity, pattern: Pattern) -> Counts:
    """Every leaf gets the same sparsity.

    Args:
      scores: Decides the structure and the sizes.
      sparsity: Fraction of each leaf's groups to remove.
      pattern: Defines the groups.

    Returns:
      Keep-counts with the structure of `scores`.
    """
    return _unflatten(scores, [keep_count(size, sparsity) for size in group_sizes(scores, pattern)])


def global_(scores: Scores, sparsity: Sparsity, pattern: Pattern, *, normalize: bool = False) -> Counts:
    """All groups of all leaves compete; a leaf keeps what is left to it.

    Args:
      scores: Must be comparable across leaves.
      sparsity: Fraction of all groups to remove.
      pattern: Defines the groups.
      normalize: Divide each leaf's scores by their root mean square first, so that a leaf with small weights is not
        emptied. Give it as `functools.partial(budgets.global_, normalize=True)`.

    Returns:
      Keep-counts, exactly `keep_count(all groups, sparsity)` in sum.
    """
    if normalize:
        scores = jax.tree.map(_normalized, scores)
    total = keep_count(sum(group_sizes(scores, pattern)), sparsity)
    return exact.counts_of_highest(scores, total, pattern=pattern)


def erk(scores: Scores, sparsity: Sparsity, pattern: Pattern) -> Counts:
    r"""Erdős–Rényi kernel: density in proportion to the sum of a leaf's dimensions over their product.

    A leaf that would pass density 1 is kept whole and the others share what is left.

    Args:
      scores: Decides the structure and the shapes.
      sparsity: Fraction of all groups to remove.
      pattern: Defines the groups.

    Returns:
      Keep-counts, exactly `keep_count(all groups, sparsity)` in sum: fractions go to the leaves with the largest.

    References:
      Evci et al., 2020, "Rigging the Lottery: Making All Tickets Winners", sec. 3.
    """
    leaves = jax.tree.leaves(scores)
    sizes = np.array(group_sizes(scores, pattern), np.float64)
    total = keep_count(int(sizes.sum()), sparsity)
    ratios = np.array([sum(leaf.shape) / max(leaf.size, 1) for leaf in leaves])
    # With the ratios descending, leaf i reaches density 1 when the total kept passes capacity[i].
    order = np.argsort(-ratios, kind="stable")
    weight = (sizes * ratios)[order]
    full_before = np.concatenate([[0.0], np.cumsum(sizes[order])])[:-1]
    weight_from = np.cumsum(weight[::-1])[::-1]
    capacity = full_before + weight_from / np.maximum(ratios[order], 1e-300)
    kept = wide.floating(wide.of(total))
    full = jnp.sum(jnp.asarray(capacity, jnp.float32) <= kept, dtype=jnp.int32)
    index = jnp.minimum(full, len(leaves) - 1)
    scale = (kept - jnp.asarray(full_before, jnp.float32)[index]) / jnp.asarray(weight_from, jnp.float32)[index]
    share = jnp.where(
        jnp.arange(len(leaves)) < full, jnp.asarray(sizes[order], jnp.float32), scale * jnp.asarray(weight, jnp.float32)
    )
    counts = jnp.zeros(len(leaves), jnp.int32).at[order].set(_rounded(share, sizes[order].astype(np.int64), total))
    return _unflatten(scores, list(counts))


def owl(
    scores: Scores,
    sparsity: Sparsity,
    pattern: Pattern,
    *,
    threshold: float = 5.0,
    deviation: float = 0.08,
    layer: Callable[[str], str] | None = None,
) -> Counts:
    r"""Outlier-weighted layerwise sparsity: a layer with more outliers keeps more.

    A layer's outliers are its scores above `threshold` times their mean; their share, brought to [0, 1] over all
    layers, moves the layer's density by up to `2 * deviation`. Close to sparsity 0 and 1 the deviation is narrowed so
    that no layer is emptied or kept whole.

    Args:
      scores: Those of `scores.wanda`, for which this was made, or others that are not negative.
      sparsity: Fraction of all groups to remove.
      pattern: Defines the groups.
      threshold: $M$; the paper takes 5 to 7.
      deviation: $\lambda$; the paper takes 0.08.
      layer: From a path to the name of its layer, which has one density: the paper's layers are transformer blocks.
        `None` takes every leaf as a layer.

    Returns:
      Keep-counts, exactly `keep_count(all groups, sparsity)` in sum.

    Examples:
      >>> scores = {"even": jnp.ones((8, 8)), "outliers": jnp.ones((8, 8)).at[0, 0].set(99.0)}
      >>> counts = owl(scores, 0.5, jaxprune.patterns.Unstructured())
      >>> print(counts["even"], counts["outliers"])
      27 37

    References:
      Yin et al., 2024, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
      Sparsity", sec. 3.2.
    """
    members: dict[str, list[int]] = {}
    for index, path in enumerate(tree.paths(scores)):
        members.setdefault(path if layer is None else layer(path), []).append(index)
    leaves, sizes = jax.tree.leaves(scores), np.array(group_sizes(scores, pattern), np.int64)
    shares = [_outliers([leaves[i] for i in mine], threshold) for mine in members.values()]
    share = jnp.zeros(len(leaves))
    for mine, value in zip(members.values(), shares, strict=True):
        share = share.at[np.array(mine)].set(value)
    spread = jnp.max(share) - jnp.min(share)
    level = (share - jnp.min(share)) / jnp.where(spread > 0, spread, 1)
    mean = jnp.sum(level * jnp.asarray(sizes / max(sizes.sum(), 1), jnp.float32))
    sparse = jnp.asarray(sparsity, jnp.float32)
    step = 2 * jnp.minimum(deviation, jnp.minimum(sparse, 1 - sparse) / 2)
    kept = (1 - sparse + step * (level - mean)) * jnp.asarray(sizes, jnp.float32)
    return _unflatten(scores, list(_rounded(kept, sizes, keep_count(int(sizes.sum()), sparsity))))


def _outliers(scores: list[Any], threshold: float) -> Float[Array, ""]:
    """The share of scores above a multiple of their mean."""
    flat = [score.astype(jnp.float32) for score in scores]
    size = sum(score.size for score in flat)
    mean = jnp.asarray(sum(jnp.sum(score) for score in flat)) / size
    return jnp.asarray(sum(jnp.sum((score > threshold * mean).astype(jnp.float32)) for score in flat)) / size


def cumulative(fraction: float, *, per_leaf: bool = True) -> SettlingBudget:
    """Keeps the fewest groups whose scores add up to a fraction of the total.

    This is where the growth curve, the sum of the scores from the highest down, passes `fraction`. The scores decide
    how sparse that is, so a strategy takes no `sparsity` with this budget.

    Args:
      fraction: Of the total score, between 0 and 1. Scores must not be negative.
      per_leaf: Of each leaf's total; else of the total of all leaves, which then compete.

    Returns:
      A budget.

    Raises:
      ValueError: `fraction` is not between 0 and 1, or the strategy was given a sparsity.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`cumulative` needs a fraction between 0 and 1; got {fraction}. For 90 % give 0.9.")
    return _Cumulative(fraction, per_leaf)


@dataclasses.dataclass(frozen=True)
class _Cumulative:
    """The budget that `cumulative` makes."""

    fraction: float
    per_leaf: bool
    sparsity: None = None

    def __call__(self, scores: Scores, sparsity: Sparsity | None, pattern: Pattern) -> Counts:
        """Keep-counts; `sparsity` must be `None`."""
        if sparsity is not None:
            raise ValueError(
                f"`cumulative({self.fraction})` decides the sparsity from the scores; got sparsity {sparsity}. "
                f"Leave it out."
            )
        pooled = jax.tree.map(
            lambda score, p: p.pool(score), scores, _unflatten(scores, requests.by_leaf(pattern, scores))
        )
        if self.per_leaf:
            return jax.tree.map(lambda score: _growth_count([score], self.fraction), pooled)
        return exact.counts_of_highest(pooled, _growth_count(jax.tree.leaves(pooled), self.fraction))


def by_path(rules: Mapping[str | Callable[[str], bool], float], default: float | None = None) -> Budget:
    r"""A sparsity for each leaf, by its path.

    Args:
      rules: From a regular expression, searched in the path, or a predicate over the path, to a sparsity. The first
        that matches decides.
      default: For leaves that no rule matches; `None` gives them the strategy's sparsity.

    Returns:
      A budget.

    Examples:
      >>> budget = by_path({"conv": 0.5, r"dense_\d+": 0.9})
      >>> budget({"conv": {"kernel": jnp.ones((4, 5))}}, 0.0, jaxprune.patterns.Unstructured())
      {'conv': {'kernel': 10}}
    """

    def matches(rule: str | Callable[[str], bool], path: str) -> bool:
        return re.search(rule, path) is not None if isinstance(rule, str) else rule(path)

    def budget(scores: Scores, sparsity: Sparsity, pattern: Pattern) -> Counts:
        otherwise = sparsity if default is None else default
        chosen = [
            next((value for rule, value in rules.items() if matches(rule, path)), otherwise)
            for path in tree.paths(scores)
        ]
        sizes = group_sizes(scores, pattern)
        return _unflatten(scores, [keep_count(size, s) for size, s in zip(sizes, chosen, strict=True)])

    return budget


def _unflatten(scores: Scores, values: list[Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(scores), values)


def _normalized(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    wide = scores.astype(tree.promote(scores.dtype, jnp.float32))
    return wide / jnp.sqrt(jnp.mean(jnp.square(wide)) + jnp.finfo(wide.dtype).tiny)


def _rounded(share: Float[Array, " leaf"], sizes: np.ndarray, total: Count | Wide) -> Int[Array, " leaf"]:
    """Integers near `share`, at most `sizes`, that sum to `total`: the largest fractions are rounded up.

    Float error can leave the floors off by more than one a leaf, so what is missing is dealt out by room, in order.
    """

    def missing_from(base: Int[Array, " leaf"]) -> Int[Array, ""]:
        return wide.clipped(wide.minus(wide.of(total), wide.total(base)))

    if sizes.max() >= 2**31:
        raise ValueError(
            f"This budget shares groups out between leaves of fewer than 2**31; got one of {sizes.max()}. "
            f"Use `uniform`, `global_` or `by_path`."
        )
    limit = jnp.asarray(sizes, jnp.int32)
    # The largest float below 2**31 is far from it.
    base = jnp.minimum(jnp.clip(jnp.floor(share), 0, 2.0**31 - 128).astype(jnp.int32), limit)
    missing = missing_from(base)
    order = jnp.argsort(-(share - jnp.floor(share)))
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(sizes), dtype=order.dtype))
    base = base + ((place < missing) & (base < limit)).astype(jnp.int32)
    missing = missing_from(base)
    room = jnp.where(missing >= 0, limit - base, base)
    left = wide.clipped(wide.minus(wide.of(jnp.abs(missing)), wide.before(room)))
    return base + jnp.sign(missing) * jnp.clip(left, 0, room)


def _growth_count(scores: list[Score], fraction: float) -> Int[Array, ""] | Wide:
    """The fewest scores that sum to the fraction: bisects their keys, since a prefix sum would need a sort."""
    floats = [jnp.where(jnp.isnan(score), jnp.zeros_like(score), score).astype(jnp.float32) for score in scores]
    keys = [ordering.keys(values) for values in floats]

    def above(key: Any) -> Float[Array, ""]:
        kept = [jnp.where(k >= key, v, jnp.zeros_like(v)) for k, v in zip(keys, floats, strict=True)]
        return functools.reduce(jnp.add, [jnp.sum(values) for values in kept])

    wanted = fraction * above(jnp.iinfo(jnp.int32).min)

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = low + (high - low) // 2
        enough = above(middle) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = ordering.keys(jnp.array(jnp.inf, jnp.float32))
    low, _ = lax.fori_loop(0, 32, halve, (jnp.zeros_like(top), top + 1))
    more = wide.added([wide.counted(k > low) for k in keys])
    value = lax.bitcast_convert_type(low, jnp.float32)
    short = jnp.maximum(wanted - above(low + 1), 0)
    ties = jnp.where(value > 0, jnp.ceil(short / jnp.where(value > 0, value, jnp.ones_like(value))), 0)
    size = sum(score.size for score in scores)
    count = wide.at_most(wide.plus(more, wide.rounded(ties)), wide.of(size))
    return count if size >= 2**31 else wide.clipped(count)
