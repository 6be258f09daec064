"""Roles of axes in four frameworks, by each framework's convention, and in programs written to be hard to follow."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import equinox_models, haiku_models, linen, nnx_models
from zoo.case import floats, integers, kernels, randomised

import jaxprune
from jaxprune import patterns
from jaxprune._calibration._layout import Axes, layout
from jaxprune._jaxpr.tracing import arrays


def flax_axes(path, rank):
    """Convolutions (taps..., in, out), dense (in, out), attention (in, heads, width) and (heads, width, out)."""
    stacked = (0,) if "Scan" in path else ()
    if "ttention" in path:
        inputs = (1, 2) if "/out/" in path else (1,)
        return Axes(tuple(a - 1 + len(stacked) for a in inputs), _rest(rank, stacked, inputs), stacked)
    return Axes(tuple(range(len(stacked), rank - 1)), (rank - 1,), stacked)


def _rest(rank, stacked, inputs):
    taken = {a - 1 + len(stacked) for a in inputs} | set(stacked)
    return tuple(a for a in range(rank) if a not in taken)


def equinox_axes(_, rank):
    """(out, in, taps...)."""
    return Axes((*range(2, rank), 1), (0,), ())


_FRAMEWORKS = {
    "linen": (linen, r"/kernel$", flax_axes),
    "nnx": (nnx_models, r"/kernel$", flax_axes),
    "haiku": (haiku_models, r"/w$", flax_axes),
    "equinox": (equinox_models, r"/weight(_ih|_hh)?$", equinox_axes),
}
_MODELS = [(name, case) for name, (models, *_) in _FRAMEWORKS.items() for case in models.CASES]


@pytest.mark.parametrize(("framework", "name"), _MODELS)
@pytest.mark.dtype_promotion
@pytest.mark.rank_promotion
def test_every_kernel_of_every_framework(framework, name):
    models, kernel, expected = _FRAMEWORKS[framework]
    fun, params, args = models.CASES[name].build()
    got = layout(fun, params, *args)
    shapes = {path: leaf.shape for path, leaf in arrays(params).items()}
    named = [path for path, shape in shapes.items() if re.search(kernel, path) and len(shape) > 1]
    assert len(named) >= 2
    assert {path: got.axes.get(path) for path in named} == {path: expected(path, len(shapes[path])) for path in named}
    assert set(got.axes) == set(named)
    assert set(got.axes) | set(got.without) == set(shapes)


def roles(fun, params, *args):
    got = layout(fun, params, *args)
    return {path: (axes.inputs, axes.outputs, axes.stacked) for path, axes in got.axes.items()}, got.without


def test_contractions_of_every_form():
    def fun(p, x):
        y = jnp.einsum("btd,dhk->bthk", x, p["split"])
        y = jnp.einsum("bthk,hkd->btd", y, p["merge"])
        y = y + jnp.einsum("btd,ed->bte", y, p["transposed"])
        y = y + x @ p["flat"].reshape(6, 2, 3).reshape(6, 6)
        y = y + (p["left"] @ y.swapaxes(1, 2)).swapaxes(1, 2)
        return jnp.einsum("btd,edf->ebtf", y, p["members"]), jax.vmap(lambda w: y @ w)(p["mapped"])

    params = kernels(
        split=(6, 2, 3),
        merge=(2, 3, 6),
        transposed=(6, 6),
        flat=(6, 6),
        left=(6, 6),
        members=(4, 6, 5),
        mapped=(4, 6, 5),
    )
    got, without = roles(fun, params, floats(2, 3, 6))
    assert without == {}
    assert got == {
        "split": ((0,), (1, 2), ()),
        "merge": ((0, 1), (2,), ()),
        "transposed": ((1,), (0,), ()),
        "flat": ((0,), (1,), ()),
        "left": ((1,), (0,), ()),
        "members": ((1,), (0, 2), ()),
        "mapped": ((1,), (0, 2), ()),
    }


@pytest.mark.parametrize(("ours", "theirs"), [((0, 1), (2, 3)), ((1, 0), (3, 2))])
def test_inputs_are_in_the_order_of_the_leaf(ours, theirs):
    """Heads before their widths, in whichever order the program lists the axes that it sums over."""

    def fun(p, x):
        return lax.dot_general(x, p["merge"], ((theirs, ours), ((), ())))

    got, _ = roles(fun, kernels(merge=(2, 4, 6)), floats(2, 3, 2, 4))
    assert got["merge"] == ((0, 1), (2,), ())
    params = {"merge": jnp.arange(48.0).reshape(2, 4, 6)}
    x = jnp.arange(48.0).reshape(2, 3, 2, 4)
    rows = x.reshape(6, 8)
    gram = jaxprune.calibrate(fun, params, [x], statistic="gram")["merge"].gram
    np.testing.assert_allclose(gram, rows.T @ rows)
    _, masks = jaxprune.sparsegpt(fun, params, [x], pattern=patterns.NM(2, 4))
    assert (masks["merge"].sum(axis=1) == 2).all()


def test_stacks():
    def fun(p, x):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["scanned"])
        x, _ = lax.scan(lambda x, w: lax.scan(lambda x, w: (x @ w, None), x, w), x, p["nested"])
        x = lax.fori_loop(0, 3, lambda i, x: x @ p["looped"][i], x)
        for i in range(3):
            x = x @ p["unrolled"][i] @ p["last"][:, :, i]
        return jnp.einsum("ebd,edf->ebf", jnp.stack([x, x]), p["experts"])

    params = kernels(
        scanned=(3, 4, 4), nested=(2, 3, 4, 4), looped=(3, 4, 4), unrolled=(3, 4, 4), last=(4, 4, 3), experts=(2, 4, 5)
    )
    got, without = roles(fun, params, floats(2, 4))
    assert without == {}
    assert got == {
        "scanned": ((1,), (2,), (0,)),
        "nested": ((2,), (3,), (0, 1)),
        "looped": ((1,), (2,), (0,)),
        "unrolled": ((1,), (2,), (0,)),
        "last": ((0,), (1,), (2,)),
        "experts": ((1,), (2,), (0,)),
    }


def test_through_what_parameters_are_made_of():
    """Masks, scales, weight normalisation, casts, fused and tied kernels, branches, calls."""

    @jax.custom_vjp
    def rounded(w):
        return w.astype(jnp.bfloat16).astype(jnp.float32)

    rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (g,))

    def fun(p, tokens):
        x = p["table"][tokens]
        x = x @ jnp.where(jnp.eye(4, dtype=bool), 0.0, p["masked"])
        direction = p["direction"] / jnp.sqrt(jnp.sum(jnp.square(p["direction"]), 0, keepdims=True))
        x = x @ (direction * p["length"][None])
        q, k = jnp.split(p["fused"], 2, axis=1)
        x = x @ q + x @ k + x @ jnp.concatenate([p["part"], p["other_part"]], 1)
        x = jax.checkpoint(lambda x: x @ rounded(p["straight"]))(x)
        x = x @ lax.cond(x.sum() > 0, lambda: p["yes"], lambda: p["no"])
        return x @ p["table"].T

    params = kernels(
        table=(9, 4), masked=(4, 4), direction=(4, 4), length=(4,), fused=(4, 8), part=(4, 1), other_part=(4, 3),
        straight=(4, 4), yes=(4, 4), no=(4, 4),
    )  # fmt: skip
    got, without = roles(fun, params, integers(2, 3))
    assert without == {"length": "no product sums over it"}
    assert got.pop("table") == ((1,), (0,), ())
    assert set(got) == set(params) - {"table", "length"}
    assert set(got.values()) == {((0,), (1,), ())}


def test_convolutions():
    def fun(p, x):
        numbers = ("NCHW", "OIHW", "NCHW")
        x = lax.conv_general_dilated(x, p["torch"], (1, 1), "SAME", dimension_numbers=numbers)
        x = lax.conv_general_dilated(x, p["flax"], (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW"))
        return lax.conv_general_dilated(
            x, p["grouped"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2
        )

    params = kernels(torch=(8, 3, 3, 5), flax=(3, 3, 8, 6), grouped=(4, 3, 1, 1))
    got, without = roles(fun, params, floats(2, 3, 7, 7))
    assert without == {}
    assert got == {
        "torch": ((2, 3, 1), (0,), ()),
        "flax": ((0, 1, 2), (3,), ()),
        "grouped": ((2, 3, 1), (0,), ()),
    }


def test_what_has_no_layout_is_said():
    def fun(p, x, i):
        x = x + p["bias"][None] + p["looked_up"][i]
        x = x @ p["tied"] @ p["tied"].T
        x = x @ jnp.sort(p["sorted"], axis=0)
        (x, _), _ = lax.scan(lambda c, _: ((c[0] @ c[1], 2 * c[1]), None), (x, p["carried"]), None, length=2)
        heads = p["crossed"].reshape(2, 2, 4)
        return jnp.einsum("bh,hkd->bkd", x[:, :2], heads), p["given_back"]

    params = kernels(
        bias=(4,), looked_up=(9, 4), tied=(4, 4), sorted=(4, 4), carried=(4, 4), crossed=(4, 4), given_back=(2, 2),
        unused=(2, 2),
    )  # fmt: skip
    got, without = roles(fun, params, floats(2, 4), integers(2))
    assert got == {}
    assert without == {
        "bias": "'add' takes it",
        "looked_up": "it is looked up by index",
        "tied": "it is summed over axes (0,) in one place and (1,) in another",
        "sorted": "'sort' takes it",
        "carried": "a 'scan' carries it",
        "crossed": "its products see axes [0, 0, 1]: parts of one are summed over and put out, or one is summed before",
        "given_back": "the function returns it",
        "unused": "nothing uses it",
    }


@pytest.mark.dtype_promotion
@pytest.mark.rank_promotion
def test_groups_of_nm_lie_along_the_inputs_of_any_framework():
    fun, params, args = equinox_models.CASES["mlp"].build()
    got = layout(fun, params, *args)
    params = randomised(params)
    along = got.summed(params)

    def fits(path, leaf):
        return path in got.axes and leaf.shape[1] % 2 == 0

    masks = jaxprune.magnitude(params, pattern=patterns.NM(1, 2, axis=along), where=fits)
    checked = [mask for mask in jax.tree.leaves(masks) if mask.ndim == 2]
    assert len(checked) >= 2
    for mask in checked:
        assert (mask.reshape(mask.shape[0], -1, 2).sum(axis=2) == 1).all()
