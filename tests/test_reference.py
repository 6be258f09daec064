"""Scores and patterns against plain NumPy, written from the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import patterns, scores


def two_layers(seed=0):
    rng = np.random.default_rng(seed)
    return {"a": rng.standard_normal((5, 4)), "b": rng.standard_normal((4, 3))}


def jaxed(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def linear(tree, x):
    return x @ tree["a"] @ tree["b"]


def test_lamp():
    weights = np.array([[0.5, -1.0, 2.0], [0.25, 3.0, -0.1]])
    got = scores.lamp([jnp.asarray(weights, jnp.float32)])[0]
    squares = weights**2
    expected = [w / squares[squares >= w].sum() for w in squares.ravel()]
    np.testing.assert_allclose(np.asarray(got).ravel(), expected, rtol=1e-6)


def test_lamp_ranks_the_first_of_equal_weights_higher():
    got = np.asarray(scores.lamp([jnp.full((1, 3), 2.0)])[0])[0]
    np.testing.assert_allclose(got, [1.0, 1 / 2, 1 / 3], rtol=1e-6)


def test_taylor_and_snip():
    tree, grads = two_layers(0), two_layers(1)
    got = scores.taylor(jaxed(tree), jaxed(grads))
    np.testing.assert_allclose(got["a"], np.abs(tree["a"] * grads["a"]), rtol=1e-6)
    total = sum(np.abs(tree[k] * grads[k]).sum() for k in tree)
    np.testing.assert_allclose(
        scores.snip(jaxed(tree), jaxed(grads))["b"], np.abs(tree["b"] * grads["b"]) / total, rtol=1e-5
    )


def test_grasp_predicts_what_removal_does_to_the_gradient_norm():
    """The score is half the first-order fall of the squared gradient norm as a weight goes to zero."""
    tree, x = jaxed(two_layers()), jnp.asarray(np.random.default_rng(2).standard_normal((6, 5)), jnp.float32)

    def loss(tree):
        return jnp.mean(jnp.tanh(linear(tree, x)) ** 2)

    def flow(tree):
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(tree)))

    got = scores.grasp(loss, tree)["a"]
    step = 1e-2
    for i, j in ((0, 0), (2, 3), (4, 1)):
        up, down = ({**tree, "a": tree["a"].at[i, j].multiply(1 + sign * step)} for sign in (1, -1))
        slope = (flow(up) - flow(down)) / (2 * step)
        assert float(got[i, j]) == pytest.approx(float(slope) / 2, rel=2e-2, abs=1e-5)


def test_synflow_of_a_linear_network_counts_paths():
    tree = two_layers()
    got = scores.synflow(linear, jaxed(tree), jax.ShapeDtypeStruct((1, 5), jnp.float32))
    a, b = np.abs(tree["a"]), np.abs(tree["b"])
    np.testing.assert_allclose(got["a"], a * b.sum(1)[None, :], rtol=1e-5)
    np.testing.assert_allclose(got["b"], b * a.sum(0)[:, None], rtol=1e-5)
    flow = np.ones((1, 5)) @ a @ b
    assert float(got["a"].sum()) == pytest.approx(flow.sum(), rel=1e-5)  # what a layer conserves


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_slim_keeps_the_columns_of_largest_norm(norm):
    weights = np.random.default_rng(3).standard_normal((7, 9))
    mask = jaxprune.slim([jnp.asarray(weights, jnp.float32)], 0.5, norm=norm)[0]
    size = np.linalg.norm(weights, ord={"l1": 1, "l2": 2}[norm], axis=0)
    expected = np.zeros(9, bool)
    expected[np.argsort(-size)[:4]] = True
    assert mask.shape == (1, 9)
    assert np.array_equal(mask[0], expected)


def test_slim_rounds_to_what_hardware_likes_and_takes_other_axes():
    weights = jax.random.normal(jax.random.key(0), (40, 24))
    assert int(jaxprune.slim([weights], 0.5, round_to=8)[0].sum()) == 16
    assert int(jaxprune.slim([weights], 0.99, round_to=8)[0].sum()) == 8
    assert jaxprune.slim([weights], 0.5, axis=0)[0].shape == (40, 1)


def test_ragged_blocks_average_over_their_own_area():
    weights = jnp.arange(1.0, 36.0).reshape(5, 7)
    pooled = patterns.Block((2, 3)).pool(weights)
    values = np.arange(1.0, 36.0).reshape(5, 7)
    expected = [[values[i : i + 2, j : j + 3].mean() for j in (0, 3, 6)] for i in (0, 2, 4)]
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)


def test_nm_along_each_axis_and_by_leaf():
    kernel = jnp.asarray(np.random.default_rng(4).standard_normal((8, 8)), jnp.float32)
    tree = {"flax": kernel, "equinox": kernel}
    masks = jaxprune.magnitude(tree, pattern=patterns.NM(2, 4, axis={"flax": -2, "equinox": -1}))
    assert np.all(np.asarray(masks["flax"]).reshape(2, 4, 8).sum(1) == 2)
    assert np.all(np.asarray(masks["equinox"]).reshape(8, 2, 4).sum(2) == 2)
    wide = jaxprune.magnitude([jnp.tile(kernel, (8, 1))], pattern=patterns.NM(7, 32))[0]  # ranked in a loop
    assert np.all(np.asarray(wide).reshape(2, 32, 8).sum(1) == 7)


def test_contradictions_are_refused():
    kernel = [jnp.ones((8, 8))]
    with pytest.raises(ValueError, match=r"`NM\(2, 4\)` fixes the sparsity at 0.5; got 0.9"):
        jaxprune.magnitude(kernel, 0.9, pattern=patterns.NM(2, 4))
    with pytest.raises(ValueError, match="a budget has nothing to decide"):
        jaxprune.magnitude(kernel, budget=jaxprune.budgets.erk, pattern=patterns.NM(2, 4))
    with pytest.raises(ValueError, match=r"needs 0 <= n <= m, m >= 1; got NM\(5, 4\)"):
        patterns.NM(5, 4)
    with pytest.raises(ValueError, match="two positive sizes"):
        patterns.Block((0, 4))
    with pytest.raises(ValueError, match=r"`Channel\(axis=2\)` needs that axis; '0' has shape \(8, 8\)"):
        jaxprune.magnitude(kernel, 0.5, pattern=patterns.Channel(2))
    with pytest.raises(ValueError, match="at least one round"):
        jaxprune.synflow(linear, jaxed(two_layers()), jnp.ones((1, 5)), 0.5, rounds=0)
    with pytest.raises(ValueError, match=r"'a' has shape \(5, 4\); its gradient has \(4, 3\)"):
        jaxprune.taylor(jaxed(two_layers()), {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 3))}, 0.5)
    with pytest.raises(TypeError, match="'0' must be a floating-point array to be pruned; got dtype int32"):
        jaxprune.magnitude([jnp.ones((4, 4), jnp.int32)], 0.5, where=lambda path, leaf: True)
