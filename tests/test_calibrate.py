"""Statistics of what multiplies each parameter, against forward passes written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import equinox_models, haiku_models, linen, nnx_models, plain
from zoo.case import randomised

from jaxprune import tree
from jaxprune.calibrate import calibrate
from jaxprune.layout import layout

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) + 0.3, jnp.float32)


def check(fun, params, batches, seen, **options):
    """All three statistics of the leaves in `seen`: path -> `(x, y)`, `([stacked,] samples, in)` and `(..., out)`."""
    for statistic in ("norm", "variance", "gram"):
        got = calibrate(fun, params, batches, statistic=statistic, where=lambda path, _: path in seen, **options)
        rows, _ = tree.flatten(params, got)
        for path, leaf, value in rows:
            if path in seen:
                compare(statistic, value, leaf.shape, *seen[path])
            else:
                assert value is None


def matrix(array, axes, shape, told):
    """An array that broadcasts against a leaf, as `(stacked, told)`."""
    others = [a for a in range(len(shape)) if a not in (*axes.stacked, *told)]
    assert all(array.shape[a] == 1 for a in others)
    assert all(array.shape[a] == shape[a] for a in (*axes.stacked, *told))
    moved = np.asarray(array, np.float64).transpose(*axes.stacked, *told, *others)
    return moved.reshape(-1, int(np.prod([shape[a] for a in told])))


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
    for moments, values, told in ((got.inputs, x, axes.inputs), (got.outputs, y, axes.outputs)):
        scale = np.abs(values).max()
        np.testing.assert_allclose(matrix(moments.mean, axes, shape, told), values.mean(1), atol=1e-5 * scale)
        np.testing.assert_allclose(matrix(moments.variance, axes, shape, told), values.var(1), atol=1e-5 * scale**2)
        assert (moments.count == values.shape[1]).all()


FRAMEWORKS = {"linen": linen, "nnx": nnx_models, "equinox": equinox_models, "haiku": haiku_models, "plain": plain}
MODELS = [(name, case) for name, models in FRAMEWORKS.items() for case in models.CASES]


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
        if path in known:
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
        check(fun, params, [x], seen)
        check(jax.jit(jax.checkpoint(fun)), params, [x[:1], x[1:5], x[5:]], seen)
        check(lambda p, x: jax.vmap(fun, (None, 0))(p, x[:, None]), params, [x], seen)
