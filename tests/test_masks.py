"""Masks: applying, combining, packing, and the errors that name the path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import filters
from jaxprune._arrays import tree as trees
from jaxprune._evaluation import _metrics


def params():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.standard_normal((6, 16)), jnp.float32)
    return {"dense": {"kernel": kernel, "bias": jnp.ones(16)}, "stack": [kernel[:, :10].astype(jnp.bfloat16)]}


def test_apply_selects_and_never_multiplies():
    tree = {"kernel": jnp.array([[jnp.nan, jnp.inf], [-jnp.inf, 2.0]])}
    pruned = jaxprune.apply(tree, {"kernel": jnp.array([[False, False], [False, True]])})
    assert pruned["kernel"].tolist() == [[0.0, 0.0], [0.0, 2.0]]


def test_apply_keeps_dtypes_and_leaves_without_a_mask():
    tree = params()
    pruned = jaxprune.apply(tree, jaxprune.magnitude(tree, 0.5))
    assert pruned["stack"][0].dtype == jnp.bfloat16
    assert pruned["dense"]["bias"] is tree["dense"]["bias"]
    assert int((pruned["dense"]["kernel"] != 0).sum()) == 48


def test_a_mask_broadcasts():
    tree = params()
    masks = {"dense": {"kernel": jnp.arange(16)[None] < 4, "bias": None}, "stack": [None]}
    assert float(jaxprune.sparsity(tree, masks)) == 0.75
    assert int((jaxprune.apply(tree, masks)["dense"]["kernel"] != 0).sum()) == 24


@pytest.mark.parametrize("shape", [(), (3,), (8,), (5, 16), (3, 3, 7), (0, 4), (1, 1)])
def test_pack_is_one_bit_an_entry_and_comes_back(shape):
    mask = jnp.asarray(np.random.default_rng(1).random(shape) > 0.5)
    packed = jaxprune.pack({"a": mask, "b": None})
    assert packed["a"].nbytes == -(-mask.size // 8)
    back = jax.jit(jaxprune.unpack)(packed)
    assert back["b"] is None
    assert back["a"].shape == shape
    assert np.array_equal(back["a"], mask)


def test_pack_reaches_into_frequency_masks():
    masks = jaxprune.dft({"kernel": params()["dense"]["kernel"]}, 0.5)
    back = jaxprune.unpack(jaxprune.pack(masks))
    assert back["kernel"].axes == masks["kernel"].axes
    assert np.array_equal(back["kernel"].keep, masks["kernel"].keep)


def test_combining():
    a = {"x": jnp.array([True, True, False]), "y": None}
    b = {"x": jnp.array([True, False, True]), "y": jnp.array([False])}
    assert jaxprune.intersection(a, b)["x"].tolist() == [True, False, False]
    assert jaxprune.intersection(a, b)["y"].tolist() == [False]
    assert jaxprune.union(a, b)["x"].tolist() == [True, True, True]
    assert jaxprune.union(a, b)["y"] is None
    assert float(jaxprune.overlap(a, b)) == pytest.approx(1 / 3)
    assert float(jaxprune.overlap(a, a)) == 1.0


def test_combining_frequency_masks_needs_the_same_basis():
    tree = {"kernel": params()["dense"]["kernel"]}
    low, high = jaxprune.dft(tree, 0.5, keep="low"), jaxprune.dft(tree, 0.5, keep="high")
    both = jaxprune.intersection(low, high)["kernel"]
    assert int(both.count((6, 16))) < 48
    with pytest.raises(ValueError, match="only over the same axes and transform"):
        jaxprune.union(low, jaxprune.dft(tree, 0.5, transform="dct"))
    with pytest.raises(ValueError, match="cannot be combined"):
        jaxprune.union(low, jaxprune.magnitude(tree, 0.5))


def test_errors_name_the_path_and_the_fix():
    tree = params()
    good = jaxprune.magnitude(tree, 0.5)
    with pytest.raises(ValueError, match=r"it has nothing at 'dense/bias'.*Build them from the same tree"):
        jaxprune.apply(tree, {"dense": {"kernel": None}, "stack": [None]})
    with pytest.raises(ValueError, match=r"it has 'extra', which the parameters do not"):
        jaxprune.apply(tree, {**good, "extra": None})
    wrong = {**good, "stack": [jnp.ones((10, 6), bool)]}
    with pytest.raises(ValueError, match=r"'stack/0' has shape \(6, 10\); its mask has shape \(10, 6\)"):
        jaxprune.apply(tree, wrong)
    with pytest.raises(TypeError, match=r"mask of 'stack/0' must be a boolean array.*got dtype float32"):
        jaxprune.apply(tree, {**good, "stack": [jnp.ones((6, 10))]})
    with pytest.raises(TypeError, match=r"'dense/kernel' is packed; call `jaxprune.unpack"):
        jaxprune.apply(tree, jaxprune.pack(good))


def test_filters_compose():
    tree = params()
    where = filters.is_kernel & ~filters.named("stack") | filters.named("bias$")
    picked = trees.choose(where, tree)
    assert picked["dense"]["kernel"] is not None
    assert picked["dense"]["bias"] is not None
    assert picked["stack"] == [None]
    assert trees.choose(filters.at_least(61), tree)["stack"] == [None]
    assert trees.choose(filters.share_at_least(tree, 0.4), tree)["dense"]["bias"] is None
    with pytest.raises(ValueError, match="share between 0 and 1; got 40"):
        filters.share_at_least(tree, 40)


def test_measures_and_the_article():
    tree = params()  # 96 + 16 + 60 weights, of which 78 are pruned at one half
    masks = jaxprune.magnitude(tree, 0.5)
    assert float(jaxprune.sparsity(tree, masks)) == 0.5
    assert float(jaxprune.density(tree, masks)) == 0.5
    assert float(jaxprune.compression_ratio(tree, masks)) == pytest.approx(172 / 94)
    assert float(jaxprune.relative_size_change(tree, masks)) == pytest.approx(-78 / 172)
    assert float(jaxprune.sparsity(jaxprune.apply(tree, masks))) == 0.5
    assert jaxprune.nbytes(tree) == 96 * 4 + 16 * 4 + 60 * 2
    assert jaxprune.nbytes(tree, masks) == 48 * 4 + 16 * 4 + 30 * 2 + 12 + 8
    assert [(r.path, r.kept) for r in _metrics.summary(tree, masks)] == [("dense/kernel", 48), ("stack/0", 30)]
