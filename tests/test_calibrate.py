"""Statistics of what multiplies each parameter, against forward passes written by hand."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from zoo import equinox_models, haiku_models, linen, nnx_models, plain
from zoo.case import randomised

from jaxprune._arrays import tree
from jaxprune._calibration._calibrate import calibrate
from jaxprune._calibration._layout import layout

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) + 0.3, jnp.float32)


def check(fun, params, batches, seen, statistics=("variance", "gram"), **options):
    """Statistics of the leaves in `seen`: path -> `(x, y)`, `([stacked,] samples, in)` and `(..., out)`."""
    for statistic in statistics:
        got = calibrate(fun, params, batches, statistic=statistic, where=lambda path, _: path in seen, **options)
        rows, _ = tree.flatten(params, got)
        for path, leaf, value in rows:
            if path in seen:
                compare(statistic, value, leaf.shape, *seen[path])
            else:
                assert value is None


def matrix(array, axes, shape, varying):
    """An array that broadcasts against a leaf, as `(stacked, varying)`; it has size 1 along the other axes."""
    others = [a for a in range(len(shape)) if a not in (*axes.stacked, *varying)]
    assert all(array.shape[a] == 1 for a in others)
    assert all(array.shape[a] == shape[a] for a in (*axes.stacked, *varying))
    moved = np.asarray(array, np.float64).transpose(*axes.stacked, *varying, *others)
    return moved.reshape(-1, int(np.prod([shape[a] for a in varying])))


def compare(statistic, got, shape, x, y):
    axes = got.axes
    x, y = (v.reshape(-1, *v.shape[-2:]) for v in (x, y))
    if statistic == "gram":
        expected = np.einsum("lni,lnj->lij", x, x)
        assert got.gram.dtype == jnp.float32
        np.testing.assert_allclose(got.gram.reshape(expected.shape), expected, rtol=2e-5, atol=2e-5)
        assert (got.count == x.shape[1]).all()
        return
    if statistic == "norm":
        np.testing.assert_allclose(matrix(got.norm, axes, shape, axes.inputs), np.linalg.norm(x, axis=1), rtol=1e-5)
        assert (got.count == x.shape[1]).all()
        return
    for moments, values, varying in ((got.inputs, x, axes.inputs), (got.outputs, y, axes.outputs)):
        scale = np.abs(values).max()
        np.testing.assert_allclose(matrix(moments.mean, axes, shape, varying), values.mean(1), atol=1e-5 * scale)
        np.testing.assert_allclose(matrix(moments.variance, axes, shape, varying), values.var(1), atol=1e-5 * scale**2)
        assert (moments.count == values.shape[1]).all()


FRAMEWORKS = {"linen": linen, "nnx": nnx_models, "equinox": equinox_models, "haiku": haiku_models, "plain": plain}
QUICK = {
    "linen": ("grouped", "vit", "scan_12_layers", "recurrent"),
    "nnx": ("conv_eval", "transformer"),
    "equinox": ("conv", "transformer", "recurrent"),
    "haiku": ("transformer", "recurrent"),
    "plain": ("selective_scan", "gqa_outer", "mixture_of_experts", "branches_and_loops", "scanned_remat"),
}
MODELS = [
    pytest.param(name, case, marks=() if case in QUICK[name] else pytest.mark.slow)
    for name, models in FRAMEWORKS.items()
    for case in models.CASES
]


@pytest.mark.parametrize(("framework", "name"), MODELS)
@pytest.mark.dtype_promotion
@pytest.mark.rank_promotion
def test_inputs_and_outputs_agree_in_every_model(framework, name):
    """The outputs that a program computes have the second moments that the Gram matrix of the inputs implies."""
    fun, params, args = FRAMEWORKS[framework].CASES[name].build()
    known = layout(fun, params, *args).axes
    params, args = randomised(params), tuple(example(arg) for arg in args)
    grams, variances = (
        calibrate(fun, params, [args], statistic=statistic, where=lambda path, _: path in known)
        for statistic in ("gram", "variance")
    )
    rows, _ = tree.flatten(params, grams, variances)
    assert known
    for path, leaf, gram, variance in rows:
        if path in known and (path not in ("yes", "no") or int(gram.count) > 0):  # one branch is not taken
            agree(path, np.asarray(leaf, np.float64), gram, variance)


def example(arg):
    if not isinstance(arg, jax.ShapeDtypeStruct):
        return arg
    if np.issubdtype(arg.dtype, np.integer):
        return jnp.asarray(RNG.integers(0, 4, arg.shape), arg.dtype)
    return normal(*arg.shape)


def agree(path, leaf, gram, variance):
    axes, outputs = gram.axes, variance.outputs
    stack = [leaf.shape[a] for a in axes.stacked]
    mean = np.asarray(gram.mean, np.float64)
    groups = mean.shape[len(stack)] if mean.ndim == len(stack) + 3 else 1
    mean = mean.reshape(*stack, groups, *mean.shape[-2:])
    kernel = leaf.transpose(*axes.stacked, *axes.inputs, *axes.outputs).reshape(*stack, mean.shape[-1], groups, -1)
    expected = np.einsum("...igo,...gij,...jgo->...go", kernel, mean, kernel).reshape(*stack, -1)
    second = np.asarray(outputs.variance, np.float64) + np.square(np.asarray(outputs.mean, np.float64))
    second = second.transpose(*axes.stacked, *axes.outputs, *axes.inputs).reshape(*stack, -1)
    np.testing.assert_allclose(second, expected, rtol=1e-4, atol=1e-5 * expected.max(), err_msg=path)
    assert (np.asarray(gram.count) > 1).all()


def test_dense_kernels_laid_out_either_way_and_with_heads():
    def fun(p, x):
        hidden = jax.nn.relu(x @ p["dense"] + p["bias"])
        hidden = jnp.tanh(jnp.einsum("bti,oi->bto", hidden, p["turned"]))
        q = jnp.einsum("btd,dhk->bthk", hidden, p["query"])
        return jnp.einsum("bthk,hkd->btd", q, p["out"]) @ p["flat"].reshape(2, 2, 3).reshape(4, 3)

    params = {
        "dense": normal(3, 5), "bias": normal(5), "turned": normal(4, 5), "query": normal(4, 2, 3),
        "out": normal(2, 3, 4), "flat": normal(4, 3),
    }  # fmt: skip
    x = normal(6, 7, 3)
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    dense = flat @ p["dense"]
    hidden = np.maximum(dense + p["bias"], 0)
    turned = hidden @ p["turned"].T
    query = np.tanh(turned) @ p["query"].reshape(4, 6)
    out = query @ p["out"].reshape(6, 4)
    seen = {
        "dense": (flat, dense), "turned": (hidden, turned), "query": (np.tanh(turned), query), "out": (query, out),
        "flat": (out, out @ p["flat"]),
    }  # fmt: skip
    with jax.numpy_rank_promotion("allow"):
        check(fun, params, [x], seen, ("norm", "variance", "gram"))
        check(jax.jit(jax.checkpoint(fun)), params, [x[:3], x[3:]], seen, ("variance",))
        check(lambda p, x: jax.vmap(fun, (None, 0))(p, x[:, None]), params, [x], seen, ("gram",))


def linen_mlp():
    model = nn.Sequential([nn.Dense(5), nn.tanh, nn.Dense(2)])
    return model.apply, model.init(jax.random.key(0), jnp.ones((1, 3)))


def nnx_mlp():
    model = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(5, 2, rngs=nnx.Rngs(1)))
    graph, state = nnx.split(model)
    return lambda p, x: nnx.merge(graph, p)(x), state


def equinox_mlp():
    model = eqx.nn.MLP(3, 2, 5, 1, jnp.tanh, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_array)
    return lambda p, x: jax.vmap(eqx.combine(p, rest))(x), params


def haiku_mlp():
    def apply(x):
        return hk.nets.MLP((5, 2), activation=jnp.tanh)(x)

    model = hk.without_apply_rng(hk.transform(apply))
    return model.apply, model.init(jax.random.key(0), jnp.ones((1, 3)))


@pytest.mark.parametrize("build", [linen_mlp, nnx_mlp, equinox_mlp, haiku_mlp])
@pytest.mark.dtype_promotion
@pytest.mark.rank_promotion
def test_a_network_of_every_framework_is_that_written_by_hand(build):
    fun, params = build()
    params, batches = randomised(params), [normal(6, 3), normal(4, 3)]
    leaves = {frozenset(leaf.shape): (path, np.asarray(leaf, np.float64)) for path, leaf in tree.flatten(params)[0]}
    (first, up), (second, down) = leaves[frozenset((3, 5))], leaves[frozenset((5, 2))]
    up, down = (kernel if kernel.shape[0] == size else kernel.T for kernel, size in ((up, 3), (down, 5)))
    x = np.concatenate(batches).astype(np.float64)
    hidden = np.tanh(x @ up + leaves[frozenset((5,))][1])
    check(fun, params, batches, {first: (x, x @ up), second: (hidden, hidden @ down)}, ("norm", "variance", "gram"))


def windows(image, taps, strides, dilation, spacing, padding):
    """What each place of a convolution sees: `(batch * places, taps * channels)`, from a channels-last image."""
    batch, height, width, channels = image.shape
    spaced = np.zeros((batch, (height - 1) * spacing[0] + 1, (width - 1) * spacing[1] + 1, channels))
    spaced[:, :: spacing[0], :: spacing[1]] = image
    spaced = np.pad(spaced, ((0, 0), *padding, (0, 0)))
    reach = [(t - 1) * d + 1 for t, d in zip(taps, dilation, strict=True)]
    places = [range(0, spaced.shape[1 + a] - reach[a] + 1, strides[a]) for a in range(2)]
    return np.concatenate(
        [
            spaced[:, i : i + reach[0] : dilation[0], j : j + reach[1] : dilation[1]].reshape(batch, -1)
            for i in places[0]
            for j in places[1]
        ]
    )


CONVOLUTIONS = {
    "plain": {},
    "strided": {"window_strides": (2, 1)},
    "dilated": {"rhs_dilation": (1, 2), "padding": ((1, 0), (2, 2))},
    "transposed": {"lhs_dilation": (2, 2), "padding": ((1, 2), (0, 1))},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")], ids=["flax", "torch"])
def test_convolutions(kind, layout):
    options = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), **CONVOLUTIONS[kind]}
    kernel, image = normal(2, 3, 3, 4), normal(3, 6, 5, 3)
    ours = (kernel, image) if layout[0] == "NHWC" else (kernel.transpose(3, 2, 0, 1), image.transpose(0, 3, 1, 2))

    def fun(p, x):
        return lax.conv_general_dilated(x, p["conv"], dimension_numbers=layout, **options)

    ones = (1, 1)
    x = windows(
        np.asarray(image, np.float64), (2, 3), options["window_strides"], options.get("rhs_dilation", ones),
        options.get("lhs_dilation", ones), options["padding"],
    )  # fmt: skip
    y = x @ np.asarray(kernel, np.float64).reshape(-1, 4)
    assert len(y) == fun({"conv": ours[0]}, ours[1]).size // 4
    check(fun, {"conv": ours[0]}, [ours[1][:2], ours[1][2:]], {"conv": (x, y)}, ("norm", "variance", "gram"))


@pytest.mark.parametrize(("groups", "outputs"), [(2, 4), (6, 6), (6, 12)], ids=["grouped", "depthwise", "multiplied"])
def test_groups_of_a_convolution_have_inputs_of_their_own(groups, outputs):
    def fun(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, p["conv"], (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=groups
        )

    params, image = {"conv": normal(2, 2, 6 // groups, outputs)}, normal(3, 4, 5, 6)
    parts = np.split(np.asarray(image, np.float64), groups, axis=3)
    x = np.stack([windows(part, (2, 2), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))) for part in parts])
    gram = calibrate(fun, params, [image], statistic="gram")["conv"]
    np.testing.assert_allclose(gram.gram, np.einsum("gni,gnj->gij", x, x), rtol=1e-5, atol=1e-5)
    assert gram.count.tolist() == [x.shape[1]] * groups
    norm = calibrate(fun, params, [image])["conv"].norm
    expected = np.repeat(np.linalg.norm(x, axis=1), outputs // groups, axis=0)
    np.testing.assert_allclose(norm.reshape(-1, outputs).T, expected, rtol=1e-5)


def softened(x, kernels):
    """What each of some square layers sees and gives."""
    seen = []
    for kernel in kernels:
        seen.append((x, x @ kernel))
        x = np.tanh(x @ kernel)
    return tuple(np.stack(values) for values in zip(*seen, strict=True)), x


def test_stacks_have_statistics_of_their_own():
    """Scanned, scanned as part of a reshaped stack, indexed in a loop, unrolled, last axis first."""

    def layer(x, w):
        return jnp.tanh(x @ w), None

    def fun(p, x):
        x, _ = lax.scan(jax.checkpoint(layer), x, p["scanned"])
        x, _ = lax.scan(lambda x, ws: lax.scan(layer, x, ws), x, p["nested"])
        x, _ = lax.scan(lambda x, ws: lax.scan(layer, x, ws), x, p["folded"].reshape(2, 2, 4, 4))
        x = lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["looped"][i]), x)
        for i in range(3):
            x = jnp.tanh(x @ p["unrolled"][2 - i])
        x, _ = lax.scan(layer, x, p["backwards"], reverse=True)
        for w in jnp.split(p["last"], 2, axis=2):
            x = jnp.tanh(x @ w[..., 0])
        return x

    shapes = {
        "scanned": (3, 4, 4), "nested": (2, 2, 4, 4), "folded": (4, 4, 4), "looped": (3, 4, 4), "unrolled": (3, 4, 4),
        "backwards": (2, 4, 4), "last": (4, 4, 2),
    }  # fmt: skip
    params = {name: normal(*shape) for name, shape in shapes.items()}
    batches = [normal(5, 4), normal(6, 4)]
    x, seen = np.concatenate([np.asarray(b, np.float64) for b in batches]), {}
    for name in shapes:
        kernels = np.asarray(params[name], np.float64)
        kernels = np.moveaxis(kernels, 2, 0) if name == "last" else kernels.reshape(-1, 4, 4)
        turned = name in ("unrolled", "backwards")
        (xs, ys), x = softened(x, kernels[::-1] if turned else kernels)
        seen[name] = (xs[::-1], ys[::-1]) if turned else (xs, ys)
    check(fun, params, batches, seen)


def test_what_is_used_again_and_again_counts_every_time():
    """A recurrent kernel, one in a `while`, tied tables, a branch, experts, kernels joined with others."""

    def fun(p, tokens):
        x = p["table"][tokens]
        _, h = lax.scan(lambda h, x_t: (jnp.tanh(x_t @ p["in"] + h @ p["again"]),) * 2, x[:, 0] * 0, x.swapaxes(0, 1))
        h = h[-1]
        h = lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1] @ p["while"])), (0, h))[1]
        h = lax.cond(h[0, 0] > h[1, 0], lambda h: h @ p["yes"], lambda h: h @ p["no"], h)
        h = jnp.einsum("ebd,edf->ebf", jnp.stack([h, 2 * h]), p["experts"]).sum(0)
        h = h @ jnp.concatenate([p["more"], p["most"]], axis=1) @ jnp.pad(p["padded"], ((2, 0), (0, 0)))
        h = h @ jnp.concatenate([p["upper"], p["lower"]], axis=0)
        return jax.jit(jax.nn.relu)(h) @ p["table"].T

    shapes = {
        "table": (7, 4), "in": (4, 4), "again": (4, 4), "while": (4, 4), "yes": (4, 4), "no": (4, 4),
        "experts": (2, 4, 4), "more": (4, 1), "most": (4, 3), "padded": (2, 4), "upper": (3, 4), "lower": (1, 4),
    }  # fmt: skip
    params = {name: normal(*shape) for name, shape in shapes.items()}
    tokens = jnp.asarray(RNG.integers(0, 7, (5, 3)))
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    x = p["table"][tokens]
    steps, h = [], np.zeros((5, 4))
    for t in range(3):
        steps.append(h)
        h = np.tanh(x[:, t] @ p["in"] + h @ p["again"])
    seen = {"in": x.swapaxes(0, 1).reshape(-1, 4), "again": np.concatenate(steps)}
    looped = np.sin(h @ p["while"])
    seen["while"] = np.concatenate([h, looped])
    h = np.sin(looped @ p["while"])
    branch = "yes" if h[0, 0] > h[1, 0] else "no"
    seen[branch] = h
    h = h @ p[branch]
    seen["experts"] = np.stack([h, 2 * h])
    h = np.einsum("ebd,edf->bf", seen["experts"], p["experts"])
    seen["more"] = seen["most"] = h
    h = np.concatenate([h @ p["more"], h @ p["most"]], 1)
    seen["padded"] = h[:, 2:]
    h = seen["padded"] @ p["padded"]
    seen["upper"], seen["lower"] = h[:, :3], h[:, 3:]
    seen["table"] = np.maximum(h @ np.concatenate([p["upper"], p["lower"]]), 0)
    results = {name: (v, v @ (p["table"].T if name == "table" else p[name])) for name, v in seen.items()}
    for name in ("upper", "lower"):
        results[name] = (results[name][0], h @ np.concatenate([p["upper"], p["lower"]]))
    check(fun, params, [tokens], results)
    other = calibrate(fun, params, [tokens])["no" if branch == "yes" else "yes"]
    assert int(other.count.max()) == 0
    assert float(other.norm.max()) == 0.0


def test_parts_of_a_kernel_are_put_where_they_belong():
    def fun(p, x):
        q, k = jnp.split(p["fused"], [1], axis=1)
        up, down = p["halves"][:1], p["halves"][1:]
        return x @ q + (x * 2) @ k, x[:, :1] @ up + x[:, 1:] @ down, x @ p["turned"][::-1, ::-1]

    params, x = {"fused": normal(3, 3), "halves": normal(3, 2), "turned": normal(3, 2)}, normal(5, 3)
    got = calibrate(fun, params, [x], statistic="variance")
    wide = np.asarray(x, np.float64)
    assert got["fused"].inputs.count.reshape(-1).tolist() == [10] * 3
    assert got["fused"].outputs.count.reshape(-1).tolist() == [5] * 3
    kernel = np.asarray(params["fused"], np.float64)
    expected = np.concatenate([wide @ kernel[:, :1], 2 * wide @ kernel[:, 1:]], 1)
    np.testing.assert_allclose(got["fused"].outputs.variance[0], expected.var(0), rtol=1e-5)
    np.testing.assert_allclose(got["fused"].inputs.mean[:, 0], 1.5 * wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got["halves"].inputs.mean[:, 0], wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got["turned"].inputs.mean[:, 0], wide.mean(0)[::-1], rtol=1e-5)


@pytest.mark.rank_promotion
@pytest.mark.parametrize("groups", [1, 2])
def test_the_magnitudes_of_weight_normalisation_are_no_kernel(groups):
    """They scale one, by an axis of one that is repeated."""

    def fun(p, x):
        kernel = p["weight_v"] * p["weight_g"] / jnp.linalg.norm(p["weight_v"], axis=(0, 1), keepdims=True)
        numbers = ("NWC", "OIW", "NWC")
        return lax.conv_general_dilated(x, kernel, (1,), "SAME", feature_group_count=groups, dimension_numbers=numbers)

    params = {"weight_v": normal(6, 4 // groups, 3), "weight_g": normal(1, 1, 3)}
    assert layout(fun, params, normal(2, 5, 4)).without == {"weight_g": "an axis of one is stretched"}
    got = calibrate(fun, params, [normal(2, 5, 4)], statistic="gram")
    assert got["weight_g"] is None
    assert got["weight_v"].gram.shape[-1] == 12 // groups


@pytest.mark.parametrize("statistic", ["norm", "variance", "gram"])
def test_samples_that_do_not_count_change_nothing(statistic):
    """Also where the program merges the axes of the samples, and whatever the others hold."""

    def fun(p, x):
        hidden = x @ p["up"]
        return hidden.reshape(-1, 4) @ p["down"]

    rng = np.random.default_rng(0)
    params = {"up": rng.normal(size=(6, 4)).astype(np.float32), "down": rng.normal(size=(4, 2)).astype(np.float32)}
    x, valid = rng.normal(size=(5, 7, 6)).astype(np.float32), rng.random((5, 7)) < 0.6
    got = calibrate(fun, params, [np.where(valid[..., None], x, np.nan)], statistic=statistic, valid=lambda _: valid)
    expected = calibrate(fun, params, [x[valid][None]], statistic=statistic)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"'up': its samples have the axes \(5, 7\), and `valid` gave \(7, 5\)"):
        calibrate(fun, params, [x], statistic=statistic, valid=lambda _: valid.T)


@pytest.mark.wrong_types
def test_a_statistic_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"must be 'norm', 'variance' or 'gram'; got 'median'"):
        calibrate(lambda p, x: x @ p["a"], {"a": normal(2, 2)}, [normal(2, 2)], statistic="median")
