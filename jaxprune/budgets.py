"""How much each leaf keeps. A budget is a function `(scores, sparsity, pattern) -> keep-counts`.

Counts are in groups of the pattern: single weights, blocks, channels. `kept = round(groups * (1 - sparsity))`, half to
even, by one rule for numbers and for arrays, concrete or traced: see `keep_count`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune._arrays import checks, host, ordering, tree, wide, xla
from jaxprune._arrays.wide import Wide as Wide
from jaxprune._selection import exact, requests
from jaxprune._selection.rounding import keep_count as keep_count
from jaxprune.typing import Budget, Count, Counts, Pattern, Score, Scores, SettlingBudget, Sparsity


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
    sizes = group_sizes(scores, pattern)
    return _unflatten(scores, _counts(sizes, [sparsity] * len(sizes)))


def global_(scores: Scores, sparsity: Sparsity, pattern: Pattern, *, normalize: bool = False) -> Counts:
    """All groups of all leaves compete; a leaf keeps what is left to it.

    Args:
      scores: Must be comparable across leaves.
      sparsity: Fraction of all groups to remove.
      pattern: Defines the groups.
      normalize: Divide each leaf's scores by the root mean square of those that are finite first, so that a leaf with
        small weights is not emptied. Give it as `functools.partial(budgets.global_, normalize=True)`.

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
    sizes = np.array(group_sizes(scores, pattern), np.int64)
    total = keep_count(int(sizes.sum()), sparsity)
    if not sizes.any():
        return _unflatten(scores, [0] * len(sizes))
    ratios = np.array([sum(leaf.shape) / max(leaf.size, 1) for leaf in jax.tree.leaves(scores)])
    # With the ratios descending, leaf i reaches density 1 when the total kept passes capacity[i].
    order = np.argsort(-ratios, kind="stable")
    weight = (sizes * ratios)[order]
    full_before = np.concatenate([[0.0], np.cumsum(sizes[order])])[:-1]
    weight_from = np.cumsum(weight[::-1])[::-1]
    capacity = full_before + weight_from / np.maximum(ratios[order], 1e-300)
    # Concrete totals stay NumPy's and nothing is compiled; the steps round alike in both, so that counts are the same.
    xp: Any = np if isinstance(total, int) else jnp
    capacity, full_before, weight_from, weight = (
        xp.asarray(values, np.float32) for values in (capacity, full_before, weight_from, weight)
    )
    kept = np.float32(total) if isinstance(total, int) else wide.floating(wide.of(total))
    full = (capacity <= kept).sum(dtype=np.int32)
    index = xp.minimum(full, len(sizes) - 1)
    scale = (kept - full_before[index]) / xp.maximum(weight_from[index], np.float32(1e-30))
    is_full = np.arange(len(sizes), dtype=np.int32) < full
    share = xp.where(is_full, xp.asarray(sizes[order], np.float32), scale * weight)
    counts = _rounded(share, sizes[order], total)
    return _unflatten(scores, list(counts[np.argsort(order)]))


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
    that no layer's density passes 0 or 1. Counts are whole numbers: a layer of few groups may still keep none or all.

    Args:
      scores: Those of `scores.wanda`, for which this was made, or others that are not negative. An infinite one is an
        outlier and does not count towards the mean; nor does NaN.
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
    threshold, deviation = checks.positive(threshold, "threshold"), checks.positive(deviation, "deviation", zero=True)
    sizes = np.array(group_sizes(scores, pattern), np.int64)
    total = keep_count(int(sizes.sum()), sparsity)
    if not sizes.any():
        return _unflatten(scores, [0] * len(sizes))
    members: dict[str, list[int]] = {}
    for index, path in enumerate(tree.paths(scores)):
        members.setdefault(path if layer is None else layer(path), []).append(index)
    layers = tuple(map(tuple, members.values()))
    sparse = jnp.asarray(checks.fraction(sparsity, "sparsity"), jnp.float32)
    density = _owl_densities(tuple(jax.tree.leaves(scores)), sparse, sizes, threshold, deviation, layers)
    share = jnp.asarray(density) * jnp.asarray(sizes, jnp.float32)
    return _unflatten(scores, list(_rounded(share, sizes, total)))


@functools.partial(jax.jit, static_argnames=("threshold", "deviation", "layers"))
def _owl_densities(
    scores: tuple[Any, ...],
    sparsity: Float[Array, ""],
    sizes: Any,
    threshold: float,
    deviation: float,
    layers: tuple[tuple[int, ...], ...],
) -> Float[Array, " leaf"]:
    """The density of each leaf: one program, so that an eager call rounds as a traced one does."""
    share = jnp.zeros(len(scores))
    for mine in layers:
        share = share.at[np.array(mine)].set(_outliers([scores[i] for i in mine], threshold))
    spread = jnp.max(share) - jnp.min(share)
    level = (share - jnp.min(share)) / jnp.where(spread > 0, spread, 1)
    weight = sizes.astype(jnp.float32)
    mean = jnp.sum(level * weight) / jnp.sum(weight)
    step = 2 * jnp.minimum(deviation, jnp.minimum(sparsity, 1 - sparsity) / 2)
    return 1 - sparsity + step * (level - mean)


def _outliers(scores: list[Any], threshold: float) -> Float[Array, ""]:
    """The share of scores above a multiple of the mean of the finite ones; 0 where there are no scores."""
    flat = [score.astype(jnp.float32) for score in scores]
    finite = [jnp.where(jnp.isfinite(score), score, jnp.zeros_like(score)) for score in flat]
    number = jnp.asarray(sum(jnp.sum(jnp.isfinite(score), dtype=jnp.float32) for score in flat))
    mean = jnp.asarray(sum(jnp.sum(score / jnp.maximum(number, 1)) for score in finite))
    outliers = jnp.asarray(sum(jnp.sum((score > threshold * mean).astype(jnp.float32)) for score in flat))
    return outliers / max(sum(score.size for score in flat), 1)


def cumulative(fraction: float, *, per_leaf: bool = True) -> SettlingBudget:
    """Keeps the fewest groups whose scores add up to a fraction of the total.

    This is where the growth curve, the sum of the scores from the highest down, passes `fraction`. The scores decide
    how sparse that is, so a strategy takes no `sparsity` with this budget.

    Args:
      fraction: Of the total score, between 0 and 1. Scores must not be negative: traced ones that are count as 0, as
        NaN does. Infinite ones are kept, and the fraction is of the others.
      per_leaf: Of each leaf's total; else of the total of all leaves, which then compete.

    Returns:
      A budget.

    Raises:
      ValueError: `fraction` is not between 0 and 1; or when it is called, scores are negative, or the strategy was
        given a sparsity.
    """
    return _Cumulative(checks.fraction(fraction, "fraction"), per_leaf)


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
        rows, treedef = tree.flatten(scores)
        for path, score in rows:
            tree.check_floating(path, score)
            if checks.is_concrete(score) and bool((host.view(score) < 0).any()):
                raise ValueError(
                    f"`cumulative` adds up scores, which must not be negative; those of '{path}' are. Take magnitudes."
                )
        patterns = requests.by_leaf(pattern, scores)
        pooled = treedef.unflatten([requests.fitting(p.pool, *row) for p, row in zip(patterns, rows, strict=True)])
        if not rows:
            return pooled
        if self.per_leaf:
            return jax.tree.map(lambda score: _growth_count([score], self.fraction), pooled)
        return exact.counts_of_highest(pooled, _growth_count(jax.tree.leaves(pooled), self.fraction))


def by_path(rules: Mapping[str | Callable[[str], bool], float], default: float | None = None) -> Budget:
    r"""A sparsity for each leaf, by its path.

    Args:
      rules: From a regular expression, searched in the path, or a predicate over the path, to a sparsity. The first
        that matches decides; each has to match a leaf.
      default: For leaves that no rule matches; `None` gives them the strategy's sparsity.

    Returns:
      A budget.

    Raises:
      ValueError: A sparsity is not between 0 and 1, or an expression is not regular; or when the budget is called, a
        rule matches no leaf.
      TypeError: `rules` are not a mapping of this form.

    Examples:
      >>> budget = by_path({"conv": 0.5, r"dense_\d+": 0.9})
      >>> budget({"conv": jnp.ones((4, 5)), "dense_0": jnp.ones(20)}, 0.0, jaxprune.patterns.Unstructured())
      {'conv': 10, 'dense_0': 2}
    """
    if not checks.is_a(rules, Mapping):
        raise TypeError(f"`rules` must map paths to sparsities; got {rules!r}. Give, for example, {{'conv': 0.5}}.")
    matches = {rule: tree.matcher(rule) for rule in rules}
    values = {rule: checks.fraction(value, f"rules[{rule!r}]") for rule, value in rules.items()}
    if default is not None:
        default = checks.fraction(default, "default")

    def budget(scores: Scores, sparsity: Sparsity, pattern: Pattern) -> Counts:
        paths = tree.paths(scores)
        for rule, matcher in matches.items():
            if not any(map(matcher, paths)):
                raise ValueError(f"The rule {rule!r} of `by_path` matches no leaf; there are {tree.kinds(scores)}.")
        otherwise = sparsity if default is None else default
        chosen = [next((values[rule] for rule in rules if matches[rule](path)), otherwise) for path in paths]
        sizes = group_sizes(scores, pattern)
        return _unflatten(scores, _counts(sizes, chosen))

    return budget


def _counts(sizes: list[int], sparsities: list[Sparsity]) -> list[Count | Wide]:
    """The keep-count of each leaf.

    It is made once for equal leaves: under a traced sparsity it is a hundred operations, all to be traced and compiled.
    """
    made: dict[tuple[int, int], Count | Wide] = {}
    counts = list[Count | Wide]()
    for size, sparsity in zip(sizes, sparsities, strict=True):
        key = size, id(sparsity)
        if key not in made:
            made[key] = keep_count(size, sparsity)
        counts.append(made[key])
    return counts


def _unflatten(scores: Scores, values: list[Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(scores), values)


@jax.jit
def _normalized(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """The scores over the root mean square of the finite ones; at first over the largest, whose square may overflow."""
    wide = scores.astype(tree.promote(scores.dtype, jnp.float32))
    is_finite = jnp.isfinite(wide)
    finite = jnp.where(is_finite, wide, jnp.zeros_like(wide))
    largest = jnp.max(jnp.abs(finite), initial=0)
    (unit,) = xla.shares_of(largest, wide)
    squares = jnp.where(is_finite, jnp.square(unit), jnp.zeros_like(unit))
    mean = jnp.sum(squares) / jnp.sum(is_finite, dtype=wide.dtype)  # NaN where none is finite
    return unit / jnp.sqrt(jnp.where(mean > 0, mean, jnp.ones_like(mean)))


def _rounded(share: Any, sizes: np.ndarray, total: Count | Wide) -> Any:
    """Integers near `share`, at most `sizes`, that sum to `total`: the largest fractions are rounded up.

    Float error can leave the floors off by more than one a leaf, so what is missing is dealt out by room, in order.

    Args:
      share: float32, one number a leaf: NumPy's only where `total` is an `int`.
      sizes: Of the leaves.
      total: What they are to sum to.
    """
    xp: Any = np if isinstance(share, np.ndarray) else jnp

    def missing_from(base: Any) -> Any:
        if xp is np:
            return total - base.sum(dtype=np.int64)
        return wide.clipped(wide.minus(wide.of(total), wide.total(base)))

    def left_before(room: Any, missing: Any) -> Any:
        if xp is np:
            return abs(missing) - (np.cumsum(room, dtype=np.int64) - room)
        return wide.clipped(wide.minus(wide.of(jnp.abs(missing)), wide.before(room)))

    if sizes.max() >= 2**31:
        raise ValueError(
            f"This budget shares groups out between leaves of fewer than 2**31; got one of {sizes.max()}. "
            f"Use `uniform`, `global_` or `by_path`."
        )
    if xp is jnp:
        # Else `share - floor(share)` is fused with the product before it, and rounds otherwise than an eager call.
        share = lax.optimization_barrier(share)
    limit = xp.asarray(sizes, np.int32)
    # The largest float below 2**31 is far from it.
    base = xp.minimum(xp.clip(xp.floor(share), 0, np.float32(2.0**31 - 128)).astype(np.int32), limit)
    place = xp.argsort(xp.argsort(xp.floor(share) - share, stable=True))
    base = base + ((place < missing_from(base)) & (base < limit)).astype(np.int32)
    missing = missing_from(base)
    room = xp.where(missing >= 0, limit - base, base)
    return base + (xp.sign(missing) * xp.clip(left_before(room, missing), 0, room)).astype(np.int32)


@jax.jit
def _growth_count(scores: list[Score], fraction: Any) -> Int[Array, ""] | Wide:
    """The fewest scores that sum to the fraction: bisects their keys, since a prefix sum would need a sort."""
    wides = [score.astype(jnp.float32) for score in scores]
    is_finite = [jnp.isfinite(values) for values in wides]
    floats = [jnp.where(f, jnp.maximum(v, 0), jnp.zeros_like(v)) for f, v in zip(is_finite, wides, strict=True)]
    infinite = wide.added([wide.counted(values == jnp.inf) for values in wides])
    # Shares of the largest sum up without overflow.
    largest = functools.reduce(jnp.maximum, [jnp.max(values, initial=0) for values in floats])
    floats = xla.shares_of(largest, *floats)
    keys = [ordering.keys(values) for values in floats]

    def above(key: Any) -> Float[Array, ""]:
        kept = [jnp.where(k >= key, v, jnp.zeros_like(v)) for k, v in zip(keys, floats, strict=True)]
        return functools.reduce(jnp.add, [jnp.sum(values) for values in kept])

    wanted = jnp.asarray(fraction, jnp.float32) * above(jnp.iinfo(jnp.int32).min)

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = low + (high - low) // 2
        enough = above(middle) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = ordering.keys(jnp.array(jnp.inf, jnp.float32))
    low, _ = lax.fori_loop(0, 32, halve, (jnp.zeros_like(top), top + 1))
    more = wide.plus(infinite, wide.added([wide.counted(k > low) for k in keys]))
    value = lax.bitcast_convert_type(low, jnp.float32)
    short = jnp.maximum(wanted - above(low + 1), 0)
    ties = jnp.ceil(short / value)  # the key found is above that of 0
    size = sum(score.size for score in scores)
    count = wide.at_most(wide.plus(more, wide.rounded(ties)), wide.of(size))
    return count if size >= 2**31 else wide.clipped(count)
