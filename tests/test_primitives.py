"""Primitives that code written elsewhere is full of: what they tie together, shrink, count and multiply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo.case import compare, floats, kernels, randomised, size, unit_masks

import jaxprune
from jaxprune._masks import masking
from jaxprune.structured._coupling import couple
from jaxprune.structured._shrink import shrink

pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]


def data(*shape, seed=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(argument):
    """Random numbers for a shape; arrays as they are."""
    return data(*argument.shape) if isinstance(argument, jax.ShapeDtypeStruct) else argument


def shrunk_groups(fun, params, *args, **options):
    """The slices of each group by its width, once the shrunk model has been found equal to the masked one."""
    coupling = couple(fun, params, *args, **options)
    params, args = randomised(params), tuple(map(filled, args))
    masks = unit_masks(coupling, params)
    small, small_params, _ = shrink(fun, params, masks, coupling)
    assert size(small_params) < size(params)
    compare(jax.jit(small)(small_params, *args), fun(masking.apply(params, masks), *args), 1e-5)
    return [(group.width, {f"{m.path}[{m.axis}]" for m in group.members}) for group in coupling.groups]


def attention(q, k, v, out):
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k))
    return jnp.einsum("bhqs,bshk,hkd->bqd", weights, v, out)


def with_stacked_kernels(p, x):
    return attention(*jnp.unstack(jnp.einsum("btd,ndhk->nbthk", x, jnp.stack([p["q"], p["k"], p["v"]]))), p["o"])


def with_an_unstacked_kernel(p, x):
    return attention(*(jnp.einsum("btd,dhk->bthk", x, kernel) for kernel in jnp.unstack(p["qkv"])), p["o"])


SEPARATE = kernels(q=(6, 4, 2), k=(6, 4, 2), v=(6, 4, 2), o=(4, 2, 6))
FUSED = kernels(qkv=(3, 6, 4, 2), o=(4, 2, 6))


@pytest.mark.parametrize(
    ("fun", "params", "members"),
    [(with_stacked_kernels, SEPARATE, ("q", "k", "v")), (with_an_unstacked_kernel, FUSED, ("qkv",))],
    ids=["stack", "unstack"],
)
def test_attention_keeps_its_units_behind_stack_and_unstack(fun, params, members):
    heads, widths = shrunk_groups(fun, params, floats(2, 3, 6))
    first = len(params["q"].shape if "q" in params else params["qkv"].shape) - 2
    assert heads == (4, {*(f"{name}[{first}]" for name in members), "o[0]"})
    assert widths == (2, {*(f"{name}[{first + 1}]" for name in members), "o[1]"})


def test_stacked_kernels_have_their_layouts_products_and_statistics():
    x = data(2, 3, 6)
    gram = jnp.einsum("bti,btj->ij", x, x) / 6
    got = jaxprune.layout(with_stacked_kernels, SEPARATE, x)
    assert {path: axes.inputs for path, axes in got.axes.items()} == {"q": (0,), "k": (0,), "v": (0,), "o": (0, 1)}
    assert jaxprune.layout(with_an_unstacked_kernel, FUSED, x).axes["qkv"].stacked == (0,)
    each = 2 * 3 * 6 * 8
    by_leaf = {"q": each, "k": each, "v": each, "o": each, "": 2 * 2 * 3 * 3 * 8}
    assert jaxprune.macs(with_stacked_kernels, SEPARATE, x).by_leaf == by_leaf
    by_leaf = {"qkv": 3 * each, "o": each, "": 2 * 2 * 3 * 3 * 8}
    assert jaxprune.macs(with_an_unstacked_kernel, FUSED, x).by_leaf == by_leaf
    measured = jaxprune.calibrate(with_stacked_kernels, randomised(SEPARATE), [x], statistic="gram")
    for name in "qkv":
        np.testing.assert_allclose(measured[name].mean, gram, rtol=1e-5)
    measured = jaxprune.calibrate(with_an_unstacked_kernel, randomised(FUSED), [x], statistic="gram")
    np.testing.assert_allclose(measured["qkv"].mean, jnp.stack([gram] * 3), rtol=1e-5)


def test_kernels_that_are_pruned_in_order_may_be_stacked_and_unstacked():
    x = [data(2, 3, 6)]
    for fun, params in ((with_stacked_kernels, SEPARATE), (with_an_unstacked_kernel, FUSED)):
        _, masks = jaxprune.sparsegpt(fun, randomised(params), x, 0.5)
        assert [float(mask.mean()) for mask in jax.tree.leaves(masks)] == [0.5] * len(params)


def test_products_are_shared_among_the_leaves_of_a_concatenation_and_go_to_a_kernel_before_its_scale():
    def fun(p, x):
        both = jnp.concatenate([p["narrow"], p["wide"]], 1)
        return (x @ both) @ (p["scale"] * p["last"])

    params = kernels(narrow=(4, 2), wide=(4, 6), last=(8, 3), scale=(8, 1))
    assert jaxprune.macs(fun, params, floats(5, 4)).by_leaf == {"narrow": 40, "wide": 120, "last": 120}
