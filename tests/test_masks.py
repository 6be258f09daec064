"""Masks: applying, combining, packing, and the errors that name the path."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxprune
from jaxprune import filters
from jaxprune._arrays import tree as trees
from jaxprune._arrays.wide import Wide
from jaxprune._evaluation import _metrics
from jaxprune._masks import verbs


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


def test_counts_are_wide_where_they_may_pass_32_bits():
    def counted(*shape):
        leaf, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.float32, jnp.bool_))
        return jax.eval_shape(lambda leaf, mask: verbs.count("kernel", leaf, mask), leaf, mask)

    assert counted(2**16, 2**15 - 1) == jax.ShapeDtypeStruct((), jnp.int32)
    assert isinstance(counted(2**16, 2**15), Wide)


def test_a_mask_that_broadcasts_is_counted_as_it_is():
    count = functools.partial(verbs.count, "kernel")
    leaf, mask = jnp.ones((50, 3)), jnp.array([[True, False, True]])
    assert int(count(leaf, mask)) == 100
    assert "broadcast" not in str(jax.make_jaxpr(count)(leaf, mask))


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


@pytest.mark.parametrize("combine", [jaxprune.intersection, jaxprune.union, jaxprune.overlap])
def test_only_boolean_masks_combine(combine):
    masks = {"x": jnp.array([True, False])}
    for pair in ((masks, jaxprune.pack(masks)), (jaxprune.pack(masks), masks)):
        with pytest.raises(TypeError, match=r"mask of 'x' is packed; call `jaxprune.unpack"):
            combine(*pair)
    for pair in ((masks, {"x": jnp.ones(2)}), ({"x": jnp.ones(2)}, masks)):
        with pytest.raises(TypeError, match=r"mask of 'x' must be a boolean array.*got dtype float32"):
            combine(*pair)


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


def _packed(bits, shape):
    return {"a": jaxprune.Packed(bits, shape)}


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("bits", "shape", "error", "words"),
    [
        (jnp.zeros((1, 4), jnp.uint8), (16, 4), ValueError, r"shape \(16, 4\) must have shape \(2, 4\); got \(1, 4\)"),
        (jnp.zeros((2, 4, 1), jnp.uint8), (16, 4), ValueError, r"must have shape \(2, 4\)"),
        (jnp.zeros(1, jnp.uint8), (3, 3), ValueError, r"must have shape \(2,\); got \(1,\)"),
        (jnp.zeros((2, 4), jnp.int32), (16, 4), TypeError, r"must be uint8; got int32"),
        (None, (16, 4), TypeError, r"must be uint8; got NoneType"),
        (jnp.zeros((2, 4), jnp.uint8), (-16, 4), ValueError, r"integers from 0 on; got \(-16, 4\)"),
        (jnp.zeros((2, 4), jnp.uint8), (16.0, 4), ValueError, r"integers from 0 on"),
        (jnp.zeros((2, 4), jnp.uint8), [16, 4], ValueError, r"must be a tuple of integers"),
    ],
)
def test_bits_that_do_not_fit_their_shape_are_refused(bits, shape, error, words):
    with pytest.raises(error, match=words):
        jaxprune.unpack(_packed(bits, shape))


@pytest.mark.parametrize("shape", [(0,), (0, 8), (8, 0), (0, 4), (16, 0, 8)])
def test_an_empty_mask_packs_and_comes_back(shape):
    back = jaxprune.unpack(jaxprune.pack({"a": jnp.ones(shape, bool)}))["a"]
    assert (back.shape, back.dtype) == (shape, jnp.bool_)


NARROW = [name for name in dir(ml_dtypes) if name.startswith(("float8", "float4", "int4", "uint4", "int2", "uint2"))]


@pytest.mark.parametrize("name", NARROW)
def test_narrow_dtypes_are_refused_by_path(name):
    tree = {"dense": {"kernel": jnp.ones((4, 4), getattr(ml_dtypes, name)), "bias": jnp.ones(4)}}
    masks = {"dense": {"kernel": jnp.ones((4, 4), bool), "bias": None}}
    calls = [lambda: jaxprune.apply(tree, masks), lambda: jaxprune.sparsity(tree, masks)]
    if name.startswith("float"):
        picking = (jaxprune.magnitude, jaxprune.lamp, jaxprune.dft, jaxprune.slim, jaxprune.from_scores)
        calls += [lambda f=f: f(tree, 0.5) for f in picking] + [lambda: jaxprune.sparsity(tree)]
    for call in calls:
        with pytest.raises(TypeError, match=rf"'dense/kernel' .*dtype {name}.*[Ll]eave it out with `where="):
            call()
    everything_else = {"dense": {"kernel": None, "bias": None}}
    assert jaxprune.apply(tree, everything_else)["dense"]["kernel"].dtype == name


def test_measures_of_nothing_are_numbers():
    for tree in ({}, {"a": None}, {"step": jnp.int32(3)}, {"a": jnp.zeros((0, 4))}):
        got = [f(tree) for f in (jaxprune.sparsity, jaxprune.compression_ratio, jaxprune.relative_size_change)]
        assert [float(value) for value in got] == [0.0, 1.0, 0.0]


KERNELS = {
    "kernel": (64, 1), "w": (3, 3), "dense/kernel": (1, 1), "conv/kernel": (1, 1, 1, 16), "0": (1, 8),
    "layers/0/weight": (8, 1, 1, 1), "embedding": (100, 8), "stack/w1": (4, 8, 8), "wte": (5, 6), "1/2": (3, 3, 4, 5),
    "lora_b": (4, 8), "B": (4, 8), "attention/query/kernel": (8, 2, 4), "bias.kernel": (4, 8), "w/data_array": (4, 8),
}  # fmt: skip
BIASES = {
    "bias": (8, 1, 1), "b": (2, 4), "layers/bias": (12, 8), "attention/query/bias": (2, 4), "b1": (3, 8),
    "0/1": (8, 1, 1), "in_proj_bias": (3, 24), "bias_ih": (2, 8), "norm/scale": (12, 8), "norm/offset": (12, 8),
    "gamma": (4, 8), "k": (1, 8, 1), "attention.query.bias": (2, 4), "query/AddBias.bias/data_array": (2, 8),
}  # fmt: skip


def test_biases_are_left_alone_whatever_their_rank():
    assert [path for path, shape in KERNELS.items() if not filters.is_kernel(path, jnp.ones(shape))] == []
    assert [path for path, shape in BIASES.items() if filters.is_kernel(path, jnp.ones(shape))] == []


def test_b_is_a_bias_beside_a_kernel_only():
    row, matrix = jnp.ones((4, 8)), jnp.ones((4, 8))
    masks = jaxprune.magnitude(
        {"layers": {"w": jnp.ones((4, 8, 8)), "b": row}, "pair": {"a": matrix, "b": matrix}}, 0.5
    )
    assert masks["layers"]["b"] is None
    assert masks["pair"]["b"] is not None


def test_a_summary_says_what_was_picked():
    tree = params()
    rows = jaxprune.summary(tree, jaxprune.magnitude(tree, 0.5, where=filters.named("dense/kernel")), dense=True)
    assert [(row.path, row.picked, row.kept) for row in rows] == [
        ("dense/bias", False, 16), ("dense/kernel", True, 48), ("stack/0", False, 60)
    ]  # fmt: skip
    assert [row.path for row in jaxprune.summary(tree, dense=True) if not row.picked] == ["dense/bias"]


def test_a_layout_is_a_filter():
    tree = {"kernel": jnp.ones((4, 3)), "table": jnp.ones((5, 4)), "shift": jnp.ones((2, 3))}
    layout = jaxprune.layout(lambda p, i: p["table"][i] @ p["kernel"] + p["shift"], tree, jnp.array([0, 1]))
    masks = jaxprune.magnitude(tree, 0.5, where=layout.is_kernel)
    assert [path for path, mask in masks.items() if mask is not None] == ["kernel"]


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("tree", "options", "error", "words"),
    [
        ({"w": jnp.ones((2, 2))}, {"where": filters.named("kernel")}, ValueError, r"picks no leaf; there are 'w' \(f"),
        ({f"b{i}": jnp.ones(2) for i in range(9)}, {}, ValueError, r"'b4' \(float32 \(2,\)\) and 4 more"),
        ([[1.0, 2.0], [3.0, 4.0]], {}, ValueError, r"there are '0/0' \(float\)"),
        ({"w": np.array([[None, 1]], object)}, {}, ValueError, r"'w' \(object \(1, 2\)\)"),
        ({"w": jnp.ones((2, 2), int)}, {}, ValueError, r"'w' \(int32 \(2, 2\)\)"),
        (0.5, {}, TypeError, r"must be a pytree of arrays; got 0.5"),
        ("params", {}, TypeError, r"must be a pytree of arrays; got 'params'"),
        (len, {}, TypeError, r"must be a pytree of arrays"),
        ({"w": jnp.ones((2, 2))}, {"where": "w"}, TypeError, r"`where` must be a function .* got 'w'.*filters.named"),
        ({"w": jnp.ones((2, 2))}, {"where": lambda path: True}, TypeError, r"`where` must be a function `\(path"),
    ],
)  # fmt: skip
def test_nothing_picked_is_an_error(tree, options, error, words):
    strategies = [
        lambda: jaxprune.magnitude(tree, 0.5, **options),
        lambda: jaxprune.magnitude(tree, 0.5, norm="l2", **options),
        lambda: jaxprune.lamp(tree, 0.5, **options),
        lambda: jaxprune.random(jax.random.key(0), tree, 0.5, **options),
        lambda: jaxprune.taylor(tree, tree, 0.5, **options),
        lambda: jaxprune.snip(tree, tree, 0.5, **options),
        lambda: jaxprune.slim(tree, 0.5, **options),
        lambda: jaxprune.dft(tree, 0.5, **options),
    ]
    for call in strategies:
        with pytest.raises(error, match=words):
            call()
