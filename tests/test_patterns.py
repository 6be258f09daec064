"""Patterns against NumPy, block by block and group by group: ragged edges, any axis, ties, NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import patterns
from jaxprune.patterns import NM, Block, Channel


def whole_numbers(*shape):
    """Few values, so that there are ties, whose means are exact."""
    return np.random.default_rng(0).integers(0, 5, shape).astype(np.float32)


def best(scores, n, m):
    """The n best of each m neighbours along the last axis: ties to the lowest index, NaN last."""
    groups = scores.reshape(-1, m)
    order = np.argsort(-groups, axis=1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[:, :n], True, axis=1)
    return mask.reshape(scores.shape)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 2), (8, 8)])
def test_blocks_are_scored_by_their_mean_ragged_edges_too(rows, columns):
    scores = whole_numbers(2, 5, 7)
    expected = np.stack([
        [[part[i : i + rows, j : j + columns].mean() for j in range(0, 7, columns)] for i in range(0, 5, rows)]
        for part in scores
    ])  # fmt: skip
    pattern = Block((rows, columns))
    found = pattern.pool(jnp.asarray(scores))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    places = np.arange(5)[:, None] // rows, np.arange(7)[None] // columns
    np.testing.assert_array_equal(pattern.expand(found, scores.shape), np.asarray(found)[:, places[0], places[1]])


def test_balanced_blocks_rank_within_their_column():
    scores = whole_numbers(3, 4, 5)
    scores[1, 2, 3] = np.nan
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = -np.argsort(order, axis=1) / np.float32(4)
    np.testing.assert_array_equal(Block((1, 1), balanced=True).pool(jnp.asarray(scores)), expected)


@pytest.mark.parametrize("axis", [-2, 2, 0])
@pytest.mark.parametrize("group", [2, 1])
def test_outputs_that_share_a_choice_keep_the_best_by_their_mean(axis, group):
    scores = whole_numbers(8, 4, 12)
    outputs = 1 if axis % 3 == 2 else 2
    means = np.moveaxis(scores, outputs, -1)
    means = np.moveaxis(means.reshape(*means.shape[:-1], -1, group).mean(-1), -1, outputs)
    chosen = np.moveaxis(best(np.moveaxis(means, axis, -1), 1, 4), -1, axis)
    expected = np.repeat(chosen, group, axis=outputs)
    pattern = NM(1, 4, axis=axis, group=group)
    np.testing.assert_array_equal(pattern.select(scores, 0), expected)
    np.testing.assert_array_equal(jax.jit(lambda scores: pattern.select(scores, 0))(scores), expected)


@pytest.mark.parametrize(("m", "loops"), [(16, False), (17, True)])
def test_large_groups_are_searched_in_a_loop(m, loops):
    scores = whole_numbers(2 * m, 3)
    select = jax.jit(lambda scores: NM(m // 2, m).select(scores, 0))
    assert ("while[" in str(jax.make_jaxpr(select)(scores))) == loops
    np.testing.assert_array_equal(select(scores), best(scores.T, m // 2, m).T)


@pytest.mark.parametrize("axis", [1, -1, -3])
def test_channels_are_scored_by_their_mean(axis):
    scores = whole_numbers(2, 3, 4)
    others = tuple({0, 1, 2} - {axis % 3})
    pooled = Channel(axis=axis).pool(jnp.asarray(scores))
    np.testing.assert_allclose(pooled, scores.mean(axis=others), rtol=1e-6)
    expanded = Channel(axis=axis).expand(pooled, scores.shape)
    np.testing.assert_allclose(expanded, scores.mean(axis=others, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("make", [lambda axis: NM(2, 4, axis=axis), lambda axis: patterns.Along(axis=axis)])
def test_each_leaf_has_its_own_axis(make):
    """Whatever axis there is for what is not picked, or none."""
    scores = {"a": jnp.ones((4, 4)), "b": None, "c": jnp.ones((4, 4)), "d": None}
    found = make({"a": 0, "b": 1, "c": -1, "d": None}).by_leaf(scores)
    assert [pattern.axis for pattern in found] == [0, -1]
    assert [pattern.axis for pattern in make(1).by_leaf(scores)] == [1, 1]


@pytest.mark.parametrize(
    ("name", "is_torch"),
    [("weight", True), ("in_proj_weight", True), ("weight_ih", True), ("weights", False), ("kernel", False)],
)
def test_kernels_called_weight_have_their_outputs_first(name, is_torch):
    for path in (name, f"layers/0/{name}", f"weight/{name}"):
        assert patterns._is_torch(path) == is_torch


def test_patterns_say_what_they_remove():
    for n, m in ((0, 3), (1, 2), (2, 4), (3, 4), (4, 4)):
        assert NM(n, m).sparsity == pytest.approx((m - n) / m)
        assert str(NM(n, m)) == f"NM({n}, {m})"


@pytest.mark.parametrize(("n", "m"), [(-1, 4), (5, 4), (0, 0), (0, -1)])
def test_n_of_m_is_a_part_of_it(n, m):
    with pytest.raises(ValueError, match=r"needs 0 <= n <= m, m >= 1"):
        NM(n, m)
