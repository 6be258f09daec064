"""Strategies from statistics, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune import budgets, filters, patterns, scores
from jaxprune._calibration._calibrate import calibrate

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) * np.exp(RNG.normal(size=shape[-1:])), jnp.float32)


def model(p, x):
    x = jnp.tanh(x @ p["first"])
    x = jnp.tanh(jnp.einsum("bi,oi->bo", x, p["turned"]))
    return jnp.einsum("bi,ihk->bhk", x, p["heads"])


PARAMS = {"first": normal(8, 12), "turned": normal(16, 12), "heads": normal(16, 2, 4)}
BATCHES = [normal(5, 8), normal(7, 8)]


def inputs():
    """What each kernel is multiplied by, float64."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in PARAMS.items()}
    x = np.concatenate([np.asarray(batch, np.float64) for batch in BATCHES])
    first = np.tanh(x @ p["first"])
    return {"first": x, "turned": first, "heads": np.tanh(first @ p["turned"].T)}


def oriented():
    """Kernels as `(in, out)`, the norms of their inputs as a column, and how to turn a mask of that form back."""
    norms = {name: np.linalg.norm(x, axis=0)[:, None] for name, x in inputs().items()}
    kernels = {name: np.asarray(leaf, np.float64) for name, leaf in PARAMS.items()}
    return {
        "first": (kernels["first"], norms["first"], lambda m: m),
        "turned": (kernels["turned"].T, norms["turned"], lambda m: m.T),
        "heads": (kernels["heads"].reshape(16, 8), norms["heads"], lambda m: m.reshape(16, 2, 4)),
    }


def kept(ranked, keep):
    """The `keep` highest of each column."""
    order = np.argsort(-ranked, axis=0, kind="stable")
    mask = np.zeros(ranked.shape, bool)
    np.put_along_axis(mask, order[:keep], True, axis=0)
    return mask


@pytest.fixture(scope="module")
def norms():
    return calibrate(model, PARAMS, BATCHES)


def test_wanda_keeps_the_best_inputs_of_every_output_in_any_layout(norms):
    masks = jaxprune.wanda(PARAMS, norms, 0.75)
    for name, (kernel, norm, back) in oriented().items():
        expected = kept(np.abs(kernel) * norm, len(kernel) // 4)
        assert (back(expected) == masks[name]).all()
        assert (masks[name] != jaxprune.magnitude(PARAMS, 0.75)[name]).any()
    jitted = jax.jit(lambda s: jaxprune.wanda(PARAMS, norms, s))(jnp.float32(0.75))
    assert float(jaxprune.overlap(masks, jitted)) == 1.0


def test_wanda_in_groups_of_four_inputs(norms):
    masks = jaxprune.wanda(PARAMS, norms, pattern=patterns.NM(2, 4))
    for name, (kernel, norm, back) in oriented().items():
        ranked = np.abs(kernel) * norm
        expected = np.concatenate([kept(group, 2) for group in ranked.reshape(-1, 4, ranked.shape[1])])
        assert (back(expected) == masks[name]).all()


@pytest.mark.parametrize("pattern", [patterns.Along(), patterns.NM(2, 4), patterns.Unstructured()])
def test_only_the_picked_leaves_are_pruned(norms, pattern):
    masks = jaxprune.wanda(PARAMS, norms, 0.5, where=filters.named("turned"), pattern=pattern)
    assert masks["first"] is masks["heads"] is None
    assert int(masks["turned"].sum()) == 96


def test_ria(norms):
    masks = jaxprune.ria(PARAMS, norms, 0.6)
    for name, (kernel, norm, back) in oriented().items():
        size = np.abs(kernel)
        ranked = (size / size.sum(0) + size / size.sum(1, keepdims=True)) * np.sqrt(norm)
        got = scores.ria(PARAMS, norms)[name]
        np.testing.assert_allclose(got, back(ranked), rtol=1e-5)
        threshold = np.sort(ranked.ravel())[-round(0.4 * ranked.size)]
        assert (back(ranked >= threshold) == masks[name]).all()


@pytest.mark.parametrize("remove", ["smallest", "largest"])
def test_variance_removes_whole_outputs(remove):
    statistics = calibrate(model, PARAMS, BATCHES, statistic="variance")
    masks = jaxprune.variance(PARAMS, statistics, 0.25, remove=remove)
    for name, (kernel, _, _) in oriented().items():
        varies = (inputs()[name] @ kernel).var(0)
        order = np.argsort(varies if remove == "smallest" else -varies)
        expected = np.ones(len(varies), bool)
        expected[order[: len(varies) // 4]] = False
        assert (np.asarray(masks[name]).reshape(-1) == expected).all()
    shapes = {name: mask.shape for name, mask in masks.items()}
    assert shapes == {"first": (1, 12), "turned": (16, 1), "heads": (1, 2, 4)}


def stack(p, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])[0]


def test_layers_of_a_stack_are_pruned_alike():
    params = {"layers": normal(3, 8, 8) * jnp.array([0.1, 1.0, 3.0])[:, None, None]}
    masks = jaxprune.wanda(params, calibrate(stack, params, BATCHES), 0.5)
    assert (masks["layers"].sum(1) == 4).all()
    masks = jaxprune.variance(params, calibrate(stack, params, BATCHES, statistic="variance"), 0.25)
    assert masks["layers"].shape == (3, 1, 8)
    assert (masks["layers"].sum(2) == 6).all()


def test_a_grouped_convolution_has_a_norm_for_each_group():
    def fun(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, p["conv"], (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=2)

    params, x = {"conv": normal(2, 2, 3, 4)}, normal(5, 4, 4, 6)
    masks = jaxprune.wanda(params, calibrate(fun, params, [x]), 0.5)
    image = np.asarray(x, np.float64)
    for out in range(4):
        mine = image[..., :3] if out < 2 else image[..., 3:]
        norm = np.array(
            [[np.linalg.norm(mine[:, i : i + 3, j : j + 3], axis=(1, 2)) for j in range(2)] for i in range(2)]
        )
        ranked = np.abs(np.asarray(params["conv"][..., out], np.float64)) * np.linalg.norm(norm, axis=2)
        assert (np.asarray(masks["conv"][..., out]) == (ranked >= np.sort(ranked.ravel())[6])).all()


def test_owl_gives_layers_with_outliers_more(norms):
    ranked = scores.wanda(PARAMS, norms)
    wide = {name: np.asarray(score, np.float64) for name, score in ranked.items()}
    shares = {name: (score > 2 * score.mean()).mean() for name, score in wide.items()}
    assert len(set(shares.values())) == 3
    low, high = min(shares.values()), max(shares.values())
    level = {name: (share - low) / (high - low) for name, share in shares.items()}
    total = sum(score.size for score in wide.values())
    mean = sum(level[name] * wide[name].size for name in wide) / total
    expected = {name: wide[name].size * (0.4 + 0.16 * (level[name] - mean)) for name in wide}
    owl = functools.partial(budgets.owl, threshold=2.0)
    counts = owl(ranked, 0.6, patterns.Unstructured())
    assert sum(int(count) for count in counts.values()) == round(0.4 * total)
    for name, count in counts.items():
        assert abs(int(count) - expected[name]) < 1
    masks = jaxprune.wanda(PARAMS, norms, 0.6, budget=owl)
    for name, mask in masks.items():
        assert int(mask.sum()) == int(counts[name])


def test_owl_gives_the_kernels_of_a_layer_one_density():
    tree = {name: {"a": normal(8, 8), "b": normal(8, 16)} for name in "xyz"}
    tree = jax.tree.map(jnp.abs, tree)
    counts = budgets.owl(tree, 0.5, patterns.Unstructured(), layer=lambda path: path[0])
    densities = {name: (int(leaf["a"]) / 64, int(leaf["b"]) / 128) for name, leaf in counts.items()}
    assert len({round(a, 2) for a, _ in densities.values()}) > 1
    for a, b in densities.values():
        assert abs(a - b) < 0.02
    edge = budgets.owl(tree, 0.99, patterns.Unstructured())
    assert sum(int(c) for c in jax.tree.leaves(edge)) == round(0.01 * 576)


def test_along_is_exact_with_ties_and_remainders():
    tied = {"a": jnp.zeros((4, 3)), "b": jnp.array([[1.0, jnp.nan, 0.0], [2.0, 0.0, jnp.nan]])}
    masks = jaxprune.from_scores(tied, 0.5, pattern=patterns.Along({"a": 0, "b": 1}))
    assert masks["a"].tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
    assert masks["b"].tolist() == [[True, False, True], [True, False, False]]
    wide = jnp.arange(24.0).reshape(2, 3, 4)
    mask = jaxprune.from_scores(wide, 0.5, pattern=patterns.Along((0, 1)))
    assert (mask.sum((0, 1)) == 3).all()
    assert mask[1].all()
    jointly = jaxprune.from_scores(tied | {"c": wide}, 0.5, budget=budgets.global_, pattern=patterns.Along(-2))
    assert sum(int(m.sum()) for m in jax.tree.leaves(jointly)) == 21
    assert jointly["c"].sum() > 18


def test_what_is_wrong_is_named(norms):
    with pytest.raises(ValueError, match=r"'first' needs a statistic .*statistic='variance'\)`; got Norm"):
        jaxprune.variance(PARAMS, norms)
    with pytest.raises(ValueError, match=r"'turned' needs a statistic .*statistic='norm'\)`; got NoneType"):
        jaxprune.wanda(PARAMS, {**norms, "turned": None}, where=jaxprune.filters.is_kernel)
    with pytest.raises(ValueError, match=r"`Along\(axis=3\)` needs that axis; 'first' has shape \(8, 12\)"):
        jaxprune.wanda(PARAMS, norms, pattern=patterns.Along(3))


def test_lamp_scores_the_largest_of_every_leaf_1_whatever_its_size():
    leaf = jnp.array([[1.0, -3.0], [2.0, 3.0]])
    tree = {
        "a": leaf,
        "huge": leaf * 1e30,
        "tiny": leaf * 1e-22,
        "zeros": jnp.zeros((2, 2)),
        "half": leaf.astype(jnp.bfloat16),
    }
    for found in (scores.lamp(tree), jax.jit(scores.lamp)(tree)):
        expected = np.array([[1 / 23, 1], [4 / 22, 9 / 18]])
        for name in ("a", "huge", "tiny", "half"):
            np.testing.assert_allclose(found[name], expected, rtol=1e-6)
        np.testing.assert_array_equal(found["zeros"], [[1, 0], [0, 0]])
    odd = scores.lamp({"a": leaf.at[0, 0].set(jnp.inf).at[1, 0].set(jnp.nan)})["a"]
    np.testing.assert_allclose(odd, [[1, 1], [np.nan, 0.5]], rtol=1e-6)


def test_lamp_empties_no_leaf_before_all_are_down_to_one_weight():
    leaves = [normal(4, 4) * scale for scale in (1e-30, 1e-3, 1, 1e30, 0)]
    for keep in (5, 6, 20):
        kept = [int(mask.sum()) for mask in jaxprune.lamp(leaves, 1 - keep / 80)]
        assert (sum(kept), min(kept) >= 1) == (keep, True), keep
    assert sorted(int(mask.sum()) for mask in jaxprune.lamp(leaves, 1 - 3 / 80)) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_snip_sums_to_1(scale):
    tree = {"a": normal(4, 4) * scale, "b": normal(3, 4) * scale}
    total = sum(float(jnp.sum(score)) for score in jax.tree.leaves(scores.snip(tree, tree)))
    assert total == pytest.approx(1, rel=1e-5)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    assert all(not leaf.any() for leaf in jax.tree.leaves(scores.snip(tree, zeros)))
    odd = scores.snip(tree, {**tree, "a": tree["a"].at[0, 0].set(jnp.inf)})
    assert bool(jnp.isinf(odd["a"][0, 0]))
    assert bool(jnp.isfinite(odd["b"]).all())
