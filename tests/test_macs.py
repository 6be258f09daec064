"""Multiply-accumulates against the compiler's count, closed forms, and the coupling's polynomial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import linen, plain
from zoo.case import floats, kernels, randomised, unit_masks

from jaxprune._evaluation._macs import macs
from jaxprune.structured._coupling import couple
from jaxprune.structured._shrink import shrink


def compiled_flops(fun, *args):
    return jax.jit(fun).lower(*args).compile().cost_analysis()["flops"]


_IMAGES = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    ("fun", "params", "x"),
    [
        (lambda p, x: x @ p["a"], kernels(a=(64, 32)), floats(16, 64)),
        (lambda p, x: jnp.einsum("bec,ecf->bef", x, p["a"]), kernels(a=(4, 32, 16)), floats(8, 4, 32)),
        (
            lambda p, x: lax.conv_general_dilated(x, p["a"], (2, 2), "VALID", dimension_numbers=_IMAGES),
            kernels(a=(3, 3, 8, 16)), floats(2, 9, 9, 8),
        ),
        (
            lambda p, x: lax.conv_general_dilated(
                x, p["a"], (1, 1), "VALID", dimension_numbers=_IMAGES, feature_group_count=4
            ),
            kernels(a=(3, 3, 2, 16)), floats(2, 6, 6, 8),
        ),
    ],
    ids=["matmul", "batched", "strided", "grouped"],
)  # fmt: skip
def test_equal_to_half_of_the_compilers_flops(fun, params, x):
    assert 2 * macs(fun, params, x).dense == compiled_flops(fun, params, x)


def test_near_the_compilers_count_on_a_whole_model():
    """The compiler adds elementwise work and skips taps that fall on padding."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        fun, params, args = linen.CASES["mixer"].build()
        got = 2 * macs(fun, params, *args).dense
        assert 0.5 < got / compiled_flops(fun, params, *args) < 1.0


def test_loops_branches_and_calls():
    def fun(p, x):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stack"])
        x = lax.cond(x.sum() > 0, lambda x: x @ p["wide"] @ p["back"], lambda x: x, x)
        x = jax.checkpoint(lambda x: x @ p["square"])(x)
        return jax.jit(lambda x: x @ x.T)(x)

    params = kernels(stack=(5, 8, 8), wide=(8, 32), back=(32, 8), square=(8, 8))
    got = macs(fun, params, floats(2, 8))
    assert got.by_leaf == {"stack": 5 * 128, "wide": 512, "back": 512, "square": 128, "": 32}
    assert got.dense == sum(got.by_leaf.values())
    assert not got.unbounded
    endless = macs(
        lambda p, x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ p["square"], x), params, floats(2, 8)
    )
    assert endless.unbounded
    assert endless.dense == 128


def test_masks_count_what_they_keep():
    fun, params, args = plain.mlp()
    masks = {"first": jnp.arange(8)[None] < 2, "bias": None, "second": None, "last": jnp.zeros((6, 2), bool)}
    got = macs(fun, params, *args, masks=masks)
    assert got.effective == 2 * (3 * 2 + 8 * 6)


@pytest.mark.parametrize("name", ["glu", "gqa_outer", "scanned", "selective_scan", "pixel_shuffle"])
def test_the_couplings_polynomial_is_the_count_of_the_shrunk_model(name):
    case = plain.CASES[name]
    fun, params, args = case.build()
    coupling = couple(fun, params, *args, **case.options)
    assert coupling.macs() == macs(fun, params, *args).dense
    params = randomised(params)
    small, small_params, _ = shrink(fun, params, unit_masks(coupling, params), coupling)
    kept = [g.width - g.width // 2 for g in coupling.groups]
    np.testing.assert_allclose(coupling.macs(kept), macs(small, small_params, *args).dense)


def test_what_is_not_known_is_not_counted_in_silence():
    params = kernels(a=(4, 4), b=(4, 2))
    with pytest.warns(UserWarning, match="`macs` does not know what is multiplied in 'cholesky'; not"):
        counted = macs(lambda p, x: x @ jnp.linalg.cholesky(p["a"]) @ p["b"], params, floats(6, 4))
    assert counted.uncounted == ("cholesky",)
    assert counted.dense == 6 * 4 * 4 + 6 * 4 * 2


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, lambda f: lambda m: lax.cond(True, f, f, m)], ids=["jit", "remat", "cond"]
)
def test_what_is_not_known_is_found_inside_calls(wrap):
    with pytest.warns(UserWarning, match="'cholesky'"):
        macs(lambda p, x: wrap(jnp.linalg.cholesky)(p["a"]) @ x, kernels(a=(4, 4)), floats(4, 2))


def test_a_call_back_to_the_host_is_not_counted_in_silence():
    def fun(params, x):
        return jax.pure_callback(np.matmul, jax.ShapeDtypeStruct((2, 3), jnp.float32), x, params["a"])

    with pytest.warns(UserWarning, match="'pure_callback'"):
        assert macs(fun, kernels(a=(4, 3)), floats(2, 4)).dense == 0
