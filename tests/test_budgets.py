"""Budgets: counts against exact arithmetic, and what each of them promises."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import budgets, patterns

UNSTRUCTURED = patterns.Unstructured()


def scores():
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 8, 16), "dense": (64, 33), "head": (16, 10), "tiny": (2, 3)}
    scales = {"conv": 1.0, "dense": 0.3, "head": 2.0, "tiny": 0.01}
    return {k: jnp.asarray(scales[k] * np.abs(rng.standard_normal(s)).astype(np.float32)) for k, s in shapes.items()}


def total(counts):
    return sum(int(count) for count in jax.tree.leaves(counts))


@pytest.mark.parametrize("groups", [1, 7, 999, 1_000_000, 25_000_000, 2_000_000_001])
def test_a_traced_sparsity_counts_as_exactly_as_a_number(groups):
    for sparsity in ("0", "0.1", "0.5", "0.625", "0.9", "0.98", "0.999999", "1"):
        exact = groups * (1 - Fraction(sparsity))
        expected = round(exact)  # Python rounds a Fraction half to even
        assert int(budgets.keep_count(groups, jnp.float32(float(sparsity)))) == expected, sparsity
        if abs(exact - expected) != Fraction(1, 2):
            assert budgets.keep_count(groups, float(sparsity)) == expected


def test_half_goes_to_even():
    assert [budgets.keep_count(n, 0.5) for n in (1, 3, 5)] == [0, 2, 2]
    assert [int(budgets.keep_count(n, jnp.float32(0.5))) for n in (1, 3, 5)] == [0, 2, 2]


@pytest.mark.parametrize(
    "budget",
    [budgets.global_, functools.partial(budgets.global_, normalize=True), budgets.erk],
    ids=["global", "normalized", "erk"],
)
@pytest.mark.parametrize("pattern", [UNSTRUCTURED, patterns.Block((2, 4)), patterns.Channel()], ids=str)
def test_totals_are_exact_and_traced_or_not_the_same(budget, pattern):
    groups = sum(budgets.group_sizes(scores(), pattern))
    traced = jax.jit(lambda sparsity: budget(scores(), sparsity, pattern))
    for sparsity in (0.0, 0.3, 0.9, 0.98, 1.0):
        counts = budget(scores(), sparsity, pattern)
        assert total(counts) == round(groups * (1 - sparsity))
        assert all(
            0 <= int(c) <= n
            for c, n in zip(jax.tree.leaves(counts), budgets.group_sizes(scores(), pattern), strict=True)
        )
        assert jax.tree.map(int, traced(jnp.float32(sparsity))) == jax.tree.map(int, counts)


def test_erk_follows_its_formula_and_caps_at_one():
    counts = budgets.erk(scores(), 0.5, UNSTRUCTURED)
    assert int(counts["tiny"]) == 6
    assert int(counts["head"]) == 160
    raw = {k: sum(s.shape) / s.size for k, s in scores().items()}
    densities = {k: int(counts[k]) / scores()[k].size for k in ("conv", "dense")}
    assert densities["conv"] / densities["dense"] == pytest.approx(raw["conv"] / raw["dense"], rel=2e-3)


def test_normalisation_keeps_a_leaf_of_small_weights_alive():
    plain = budgets.global_(scores(), 0.5, UNSTRUCTURED)
    fair = budgets.global_(scores(), 0.5, UNSTRUCTURED, normalize=True)
    assert int(plain["tiny"]) == 0
    assert int(fair["tiny"]) > 0


def test_the_global_strategy_is_the_global_budget():
    params = scores()
    masks = jaxprune.magnitude(params, 0.7, budget=budgets.global_)
    assert jax.tree.map(lambda m: int(m.sum()), masks) == jax.tree.map(int, budgets.global_(params, 0.7, UNSTRUCTURED))


@pytest.mark.parametrize("per_leaf", [True, False])
def test_cumulative_keeps_the_fewest_that_reach_the_fraction(per_leaf):
    tree = scores()
    masks = jaxprune.magnitude(tree, budget=budgets.cumulative(0.9, per_leaf=per_leaf))
    parts = [[k] for k in tree] if per_leaf else [list(tree)]
    for part in parts:
        values = np.sort(np.concatenate([np.asarray(tree[k], np.float64).ravel() for k in part]))[::-1]
        fewest = 1 + int((np.cumsum(values) < 0.9 * values.sum() * (1 - 1e-7)).sum())
        assert sum(int(masks[k].sum()) for k in part) == pytest.approx(fewest, abs=1)


def test_cumulative_counts_ties_and_zeros():
    masks = jaxprune.from_scores(
        {"equal": jnp.full((2, 5), 2.0), "zero": jnp.zeros((2, 5))}, budget=budgets.cumulative(0.55)
    )
    assert int(masks["equal"].sum()) == 6
    assert int(masks["zero"].sum()) == 0
    with pytest.raises(ValueError, match=r"decides the sparsity from the scores; got sparsity 0.5"):
        jaxprune.magnitude(scores(), 0.5, budget=budgets.cumulative(0.9))
    with pytest.raises(ValueError, match=r"fraction between 0 and 1; got 90"):
        budgets.cumulative(90)


def test_by_path_takes_expressions_predicates_and_a_default():
    budget = budgets.by_path({"conv": 0.25, lambda path: path == "head": 1.0}, default=0.5)
    counts = budget(scores(), 0.9, UNSTRUCTURED)
    assert counts == {"conv": 864, "dense": 1056, "head": 0, "tiny": 3}
    assert budgets.by_path({"conv": 0.25})(scores(), 1.0, UNSTRUCTURED)["dense"] == 0


def test_a_sparsity_out_of_range_says_what_it_means():
    with pytest.raises(ValueError, match=r"fraction removed, between 0 and 1; got 90. For 90 % give 0.9"):
        jaxprune.magnitude(scores(), 90)
