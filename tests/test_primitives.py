"""Primitives that code written elsewhere is full of: what they tie together, shrink, count and multiply."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.custom_partitioning import custom_partitioning
from zoo.case import compare, floats, kernels, randomised, size, unit_masks

import jaxprune
from jaxprune._jaxpr.coupling import labels
from jaxprune._jaxpr.primitives import FROZEN
from jaxprune._masks import masking
from jaxprune.structured._coupling import couple
from jaxprune.structured._plan import LeafPlan, Plan
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
    def fun(p, x):
        first, second = jnp.unstack(p["both"])
        return jnp.einsum("bi,nij->bj", jnp.tanh(x @ first) @ second, jnp.stack([p["left"], p["right"]]))

    params = randomised(kernels(both=(2, 4, 4), left=(4, 4), right=(4, 4)))
    _, masks = jaxprune.sparsegpt(fun, params, [data(3, 4)], 0.5)
    assert {name: float(mask.mean()) for name, mask in masks.items()} == dict.fromkeys(params, 0.5)


def test_products_are_shared_among_the_leaves_of_a_concatenation_and_go_to_a_kernel_before_its_scale():
    def fun(p, x):
        both = jnp.concatenate([p["narrow"], p["wide"]], 1)
        return (x @ both) @ (p["scale"] * p["last"])

    params = kernels(narrow=(4, 2), wide=(4, 6), last=(8, 3), scale=(8, 1))
    assert jaxprune.macs(fun, params, floats(5, 4)).by_leaf == {"narrow": 40, "wide": 120, "last": 120}


def angles(x, repeat=1):
    """Cosines and sines for pairs of `(batch, time, heads, width)`."""
    width = x.shape[-1] // 2
    turns = jnp.arange(x.shape[1])[:, None] / 100 ** (jnp.arange(width) / width)
    return [jnp.repeat(f(turns)[None, :, None], repeat, -1) for f in (jnp.cos, jnp.sin)]


def turned(a, b, cos, sin):
    return a * cos - b * sin, b * cos + a * sin


def by_stack(x):
    cos, sin = angles(x, 2)
    return x * cos + jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape) * sin


def by_reshape_and_stack(x):
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return jnp.stack(turned(pairs[..., 0], pairs[..., 1], *angles(x)), -1).reshape(x.shape)


def by_new_axes(x):
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    parts = turned(pairs[..., 0], pairs[..., 1], *angles(x))
    return jnp.concatenate([part[..., None] for part in parts], -1).reshape(x.shape)


def by_strided_sets(x):
    even, odd = turned(x[..., ::2], x[..., 1::2], *angles(x))
    return jnp.zeros_like(x).at[..., ::2].set(even).at[..., 1::2].set(odd)


def by_complex_numbers(x):
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    z = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * jax.lax.complex(*angles(x))
    return jnp.stack([jnp.real(z), jnp.imag(z)], -1).reshape(x.shape)


def by_a_complex_view(x):
    return (x.view(jnp.complex64) * jax.lax.complex(*angles(x))).view(jnp.float32)


def by_halves(x):
    return jnp.concatenate(turned(*jnp.split(x, 2, -1), *angles(x)), -1)


def by_halves_of_a_reshape(x):
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return jnp.stack(turned(halves[..., 0, :], halves[..., 1, :], *angles(x)), -2).reshape(x.shape)


ROTATIONS = {f.__name__: f for f in (by_stack, by_reshape_and_stack, by_new_axes, by_strided_sets, by_complex_numbers,
                                     by_a_complex_view, by_halves, by_halves_of_a_reshape)}  # fmt: skip


@pytest.mark.parametrize(("split", "widths"), [("outer", [4]), ("inner", [3, 6])])
def test_rotated_attention_has_its_heads_and_its_pairs(split, widths):
    """All ways to rotate in one program, which compiles once."""

    def fun(p, x):
        total = 0.0
        for name, rotate in ROTATIONS.items():
            q, k, v = ((x @ p[name][part]).reshape(2, 3, 4, 6) for part in "qkv")
            total = total + attention(rotate(q), rotate(k), v, p[name]["o"].reshape(4, 6, 5))
        return total

    params = {name: kernels(q=(5, 24), k=(5, 24), v=(5, 24), o=(24, 5)) for name in ROTATIONS}
    members = [["q[1]", "k[1]", "v[1]", "o[0]"]] if split == "outer" else [["q[1]", "k[1]"], ["v[1]", "o[0]"]]
    expected = [
        (width, {f"{name}/{member}" for member in group})
        for name in ROTATIONS
        for width, group in zip(widths, members, strict=True)
    ]
    assert shrunk_groups(fun, params, floats(2, 3, 5), split=split) == expected


def test_positions_that_the_program_knows_are_no_obstacle():
    """Each kind of index reads or writes some channels of a layer, position i beside i + 4."""
    swap = np.array([4, 5, 6, 7, 0, 1, 2, 3])

    def fun(p, x):
        y = jnp.tanh(x @ p["up"])
        y = y + y[:, swap] * jnp.take(y, jnp.asarray(swap), axis=1)
        y = y.at[:, 1:3].add(jax.lax.dynamic_slice_in_dim(y, 5, 2, 1)).at[:, ::3].set(y[:, ::3] * 2.0)
        y = jax.lax.dynamic_update_slice_in_dim(y, y[:, :4] * y[:, 4:], 4, 1)
        return y @ p["down"]

    assert shrunk_groups(fun, kernels(up=(3, 8), down=(8, 3)), floats(2, 3)) == [(4, {"up[1]", "down[0]"})]


def test_positions_of_another_order_in_each_layer_of_a_scan():
    def layer(x, p):
        y = jnp.tanh(x @ p["up"])
        return x + (y[:, ::-1] * y[:, np.array([3, 2, 1, 0])]).at[:, jnp.arange(4)].set(y) @ p["down"], None

    def fun(p, x):
        return jax.lax.scan(layer, x, p)[0]

    params = kernels(up=(3, 3, 4), down=(3, 4, 3))
    assert couple(fun, params, floats(2, 3)).groups[0].layers == 3
    assert shrunk_groups(fun, params, floats(2, 3)) == [(4, {"up[2]", "down[1]"})]


CUTS = {
    "slice": lambda y: jnp.concatenate([y[:, :4], 2.0 * y[:, 4:]], 1),
    "stride": lambda y: jnp.concatenate([y[:, ::2], jnp.sin(y[:, 1::2])], 1),
    "pad": lambda y: y + jnp.pad(y[:, 2:5], ((0, 0), (2, 3))),
    "write": lambda y: y.at[:, 1:4].multiply(2.0 + y[:, 1:4]),
    "sum": lambda y: y + y[:, :3].sum(1, keepdims=True),
}


def test_functions_of_some_channels_or_of_all_that_an_index_picks():
    def fun(p, x):
        y = jnp.tanh(x @ p["up"])
        y = y.at[:, 1:3].multiply(2.0).at[:, :2].max(y[:, 6:]).at[:, 4:].min(0.5).at[:, 3:5].subtract(y[:, :2])
        z = (x @ p["left"]).at[:, jnp.array([1, 2])].apply(jnp.cos) @ p["right"]
        return y @ p["down"], z, (x @ p["wide"]).at[1].apply(jnp.cos).sum(1)

    params = kernels(up=(5, 8), down=(8, 3), left=(5, 4), right=(4, 3), wide=(5, 4))
    assert shrunk_groups(fun, params, floats(2, 5)) == [(2, {"up[1]", "down[0]"})] * 2
    frozen = couple(fun, params, floats(2, 5)).frozen
    assert frozen["left", 1] == "'scatter' indexes it"
    assert frozen["wide", 1].startswith("'reduce_sum' at test_primitives.py")


def test_layers_of_a_scan_that_cut_their_channels_keep_as_many_of_each_part():
    """Each keeps its own of either part, with their gradients; the last kind is padded by its own derivative rule."""
    padded = jax.custom_vjp(lambda y: jnp.tanh(y[:, 3:6]))
    padded.defvjp(lambda y: (padded(y), y), lambda y, g: (jnp.pad(g * jnp.cos(y[:, 3:6]), ((0, 0), (3, 2))),))
    kinds = {**CUTS, "rule": lambda y: y + jnp.pad(padded(y), ((0, 0), (3, 2)))}

    def layer(x, p):
        return x + sum(cut(jnp.tanh(x @ p[name]["up"])) @ p[name]["down"] for name, cut in kinds.items()), None

    def fun(p, x):
        return jax.lax.scan(layer, x, p)[0]

    params, x = randomised({name: kernels(up=(3, 3, 8), down=(3, 8, 3)) for name in kinds}), data(2, 3)
    coupling = couple(fun, params, x)
    assert {group.layers for group in coupling.groups} == {3}
    widths = {name: [g.width for g in coupling.groups if g.name.startswith(name)] for name in kinds}
    assert widths == {"slice": [4, 4], "stride": [4, 4], "pad": [5, 3], "write": [5, 3], "sum": [3, 5], "rule": [5, 3]}
    masks = unit_masks(coupling, params)
    small, small_params, plan = shrink(fun, params, masks, coupling)
    masked = masking.apply(params, masks)
    compare(jax.jit(small)(small_params, x), fun(masked, x), 1e-5)
    gradients = [jax.jit(jax.grad(lambda p, f=f: jnp.square(f(p, x)).sum())) for f in (small, fun)]
    compare(gradients[0](small_params), plan.take(gradients[1](masked)), 1e-4)


def test_a_plan_that_keeps_other_numbers_of_a_part_in_each_layer_says_so():
    def fun(p, x):
        return jax.lax.scan(lambda x, p: (x + CUTS["slice"](x @ p["up"]) @ p["down"], None), x, p)[0]

    kept = np.array([[0, 1, 4], [0, 4, 5]])
    plan = Plan({"up": LeafPlan((2, 3, 8), {2: kept}, 0), "down": LeafPlan((2, 8, 3), {1: kept}, 0)})
    with pytest.raises(ValueError, match="The plan keeps 1 to 2 of an axis of 4 in the layers of a scan, whose shapes"):
        jaxprune.shrink_fun(fun, plan)({"up": jnp.ones((2, 3, 3)), "down": jnp.ones((2, 3, 3))}, jnp.ones((1, 3)))


WHERE = jnp.array([0, 2])
INDEXED = {
    "looked_up": lambda p, x: jax.vmap(lambda i: p["up"][i])(WHERE)[:, None],
    "dynamically": lambda p, x: jax.vmap(lambda i: jax.lax.dynamic_index_in_dim(p["up"], i))(WHERE),
    "layers_of_each": lambda p, x: jax.vmap(lambda row, i: row @ p["stack"][i])(x, WHERE),
    "sliced": lambda p, x: jax.vmap(lambda y, i: jax.lax.dynamic_slice_in_dim(y, i, 2))(x @ p["up"], WHERE),
    "written": lambda p, x: jax.vmap(lambda y, i: jnp.zeros((4, 8)).at[i].set(y[0]))(x @ p["up"], WHERE),
    "added": lambda p, x: jax.vmap(lambda y, i: jnp.zeros((4, 8)).at[i].add(y[0]))(x @ p["up"], WHERE),
    "updated": lambda p, x: jax.vmap(lambda y, i: jax.lax.dynamic_update_index_in_dim(jnp.ones((4, 8)), y[0], i, 0))(
        x @ p["up"], WHERE
    ),
}


def test_indices_that_vmap_batches_let_channels_pass():
    def fun(p, x):
        return [jnp.tanh(layer(p[name], x)) @ p[name]["down"] for name, layer in INDEXED.items()]

    params = {name: kernels(up=(5, 8), down=(8, 3)) for name in INDEXED}
    params["layers_of_each"] = kernels(stack=(3, 5, 8), down=(8, 3))
    expected = [(8, {f"{name}/down[0]", f"{name}/up[1]"}) for name in INDEXED if name != "layers_of_each"]
    expected.insert(2, (8, {"layers_of_each/down[0]", "layers_of_each/stack[2]"}))
    assert shrunk_groups(fun, params, floats(2, 3, 5)) == expected


def test_heads_pass_a_cache_that_is_written_under_vmap():
    def fun(p, x):
        keys = (x @ p["k"]).reshape(2, 4, 2)

        def one(cache, key, i):
            return jax.vmap(lambda c, k: jax.lax.dynamic_update_slice(c, k[None], (i, 0)))(cache, key)

        cache = jax.vmap(one)(jnp.zeros((2, 4, 5, 2)), keys, WHERE)
        return jnp.einsum("bhtk,hkd->btd", jnp.tanh(cache), p["o"])

    assert shrunk_groups(fun, kernels(k=(5, 8), o=(4, 2, 3)), floats(2, 5)) == [(4, {"k[1]", "o[0]"})]


EXPERTS, WIDTH, HIDDEN, TOKENS, EACH = 4, 6, 8, 10, 2
MIXTURE = kernels(router=(WIDTH, EXPERTS), up=(EXPERTS, WIDTH, HIDDEN), down=(EXPERTS, HIDDEN, WIDTH))


def routed(p, x):
    return jax.lax.top_k(jax.nn.softmax(x @ p["router"]), EACH)


def by_ragged_products(p, x):
    weights, experts = routed(p, x)
    order = jnp.argsort(experts.reshape(-1))
    sizes = jnp.bincount(experts.reshape(-1), length=EXPERTS)
    hidden = jnp.tanh(jax.lax.ragged_dot(x[order // EACH], p["up"], sizes))
    out = jax.lax.ragged_dot(hidden, p["down"], sizes)
    return (jnp.zeros_like(out).at[order].set(out).reshape(TOKENS, EACH, WIDTH) * weights[..., None]).sum(1)


def by_gathered_kernels(p, x):
    weights, experts = routed(p, x)
    hidden = jnp.tanh(jnp.einsum("td,tkdh->tkh", x, p["up"][experts]))
    return jnp.einsum("tkd,tk->td", jnp.einsum("tkh,tkhd->tkd", hidden, p["down"][experts]), weights)


def by_kernels_of_each_token(p, x):
    weights, experts = routed(p, x)

    def token(x, chosen, weights):
        return sum(weights[i] * (jnp.tanh(x @ p["up"][chosen[i]]) @ p["down"][chosen[i]]) for i in range(EACH))

    return jax.vmap(token)(x, experts, weights)


def by_one_hot_vectors(p, x):
    weights, experts = routed(p, x)
    dispatch = jax.nn.one_hot(experts, EXPERTS)
    hidden = jnp.tanh(jnp.einsum("etd,edh->eth", jnp.einsum("tke,td->etd", dispatch, x), p["up"]))
    out = jnp.einsum("eth,ehd->etd", hidden, p["down"])
    return jnp.einsum("etd,tke,tk->td", out, dispatch, weights)


def by_a_loop(p, x):
    weights, experts = routed(p, x)
    out = jnp.zeros_like(x)
    for i in range(EXPERTS):
        share = jnp.where(experts == i, weights, 0.0).sum(1)
        out = out + share[:, None] * (jnp.tanh(x @ p["up"][i]) @ p["down"][i])
    return out


def by_buckets(p, x):
    weights, experts = routed(p, x)
    flat = experts.reshape(-1)
    marks = jax.nn.one_hot(flat, EXPERTS, dtype=jnp.int32)
    slot = (jnp.cumsum(marks, 0) * marks).sum(1) - 1
    buckets = jnp.zeros((EXPERTS, TOKENS, WIDTH)).at[flat, slot].set(jnp.repeat(x, EACH, 0))
    hidden = jnp.tanh(jnp.einsum("ecd,edh->ech", buckets, p["up"]))
    out = jnp.einsum("ech,ehd->ecd", hidden, p["down"])[flat, slot].reshape(TOKENS, EACH, WIDTH)
    return (out * weights[..., None]).sum(1)


SPARSE = (by_ragged_products, by_gathered_kernels, by_kernels_of_each_token)
DENSE = (by_one_hot_vectors, by_a_loop, by_buckets)


@pytest.mark.parametrize("fun", SPARSE + DENSE, ids=lambda fun: fun.__name__)
def test_hidden_widths_of_experts_are_units(fun):
    assert (HIDDEN, {"up[2]", "down[1]"}) in shrunk_groups(fun, MIXTURE, floats(TOKENS, WIDTH))


@pytest.mark.parametrize("fun", SPARSE + DENSE, ids=lambda fun: fun.__name__)
def test_experts_have_their_layouts_and_products(fun):
    x = floats(TOKENS, WIDTH)
    axes = jaxprune.layout(fun, MIXTURE, x).axes
    assert {(path, axes[path].inputs, axes[path].stacked) for path in ("up", "down")} == {
        ("up", (1,), (0,)),
        ("down", (1,), (0,)),
    }
    rows = TOKENS * EACH if fun in SPARSE else TOKENS * EXPERTS
    by_leaf = jaxprune.macs(fun, MIXTURE, x).by_leaf
    assert [by_leaf[path] for path in ("router", "up", "down")] == [
        TOKENS * WIDTH * EXPERTS,
        rows * WIDTH * HIDDEN,
        rows * WIDTH * HIDDEN,
    ]


@pytest.mark.parametrize("fun", SPARSE, ids=lambda fun: fun.__name__)
def test_experts_are_measured_by_the_tokens_that_they_see(fun):
    params, batches = randomised(MIXTURE), [data(TOKENS, WIDTH, seed=seed) for seed in (1, 2)]
    x = jnp.concatenate(batches)
    sees = (routed(params, x)[1][..., None] == jnp.arange(EXPERTS)).any(1)
    hidden = jnp.tanh(jnp.einsum("td,edh->eth", x, params["up"]))
    counts = sees.sum(0)
    assert len(set(counts.tolist())) > 1
    got = jaxprune.calibrate(fun, params, batches, statistic="gram")
    assert got["up"].count.tolist() == got["down"].count.tolist() == counts.tolist()
    expected = jnp.einsum("te,ti,tj->eij", sees.astype(x.dtype), x, x) / counts[:, None, None]
    np.testing.assert_allclose(got["up"].mean, expected, atol=1e-5)
    expected = jnp.einsum("te,eti,etj->eij", sees.astype(x.dtype), hidden, hidden) / counts[:, None, None]
    np.testing.assert_allclose(got["down"].mean, expected, atol=1e-5)
    norms = jaxprune.calibrate(fun, params, batches)
    expected = jnp.einsum("te,eti->ei", sees.astype(x.dtype), hidden**2) / counts[:, None]
    np.testing.assert_allclose(norms["down"].mean_square[..., 0], expected, atol=1e-5)


def test_experts_in_the_order_of_their_groups_do_not_take_valid():
    with pytest.raises(ValueError, match="'up': its samples are in the order of their groups"):
        jaxprune.calibrate(
            by_ragged_products, randomised(MIXTURE), [data(TOKENS, WIDTH)], valid=lambda x: x[:, 0] > 0,
            where=lambda path, _: path == "up",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("fun", "options"),
    [(by_ragged_products, {}), (by_gathered_kernels, {"damping": 0.01, "correction": 0.0})],
    ids=["corrected", "uncorrected"],
)
def test_experts_are_pruned_one_by_one(fun, options):
    params, batches = randomised(MIXTURE), [data(TOKENS, WIDTH)]
    _, masks = jaxprune.sparsegpt(fun, params, batches, 0.5, where=lambda path, _: path != "router", **options)
    assert masks["up"].mean((1, 2)).tolist() == masks["down"].mean((1, 2)).tolist() == [0.5] * EXPERTS
    if options:
        gram = jaxprune.calibrate(fun, params, batches, statistic="gram")["up"].gram[1]
        assert masks["up"][1].tolist() == jaxprune.layerwise.sparsegpt(params["up"][1], gram, 0.5)[1].tolist()


def test_statistics_that_are_shared_over_a_named_axis_let_channels_pass():
    """Batch normalisation over a named axis, with its gradient once masked and once shrunk."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=False, axis_name="batch")(nn.Dense(8, use_bias=False)(x)))
            return nn.Dense(3)(x)

    def fun(variables, x):
        return Block().apply(variables, x, mutable="batch_stats")

    def over_devices(variables, x):
        return jax.vmap(lambda x: fun(variables, x), axis_name="batch")(x)

    variables = jax.eval_shape(jax.vmap(lambda x: Block().init(jax.random.key(0), x), axis_name="batch"), data(2, 4, 5))
    variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), variables)
    x = data(2, 4, 5)
    coupling = couple(over_devices, variables, x)
    assert [group.width for group in coupling.groups] == [8]
    params = randomised(variables)
    masks = unit_masks(coupling, params)
    small, small_params, plan = shrink(over_devices, params, masks, coupling)
    compare(jax.jit(small)(small_params, x)[0], over_devices(masking.apply(params, masks), x)[0], 1e-5)

    def gradients(model, variables):
        def on_one(x):
            def loss(trained):
                return jax.lax.pmean(jnp.square(model({**variables, "params": trained}, x)[0]).sum(), "batch")

            return jax.lax.pmean(jax.grad(loss)(variables["params"]), "batch")

        return jax.tree.map(lambda leaf: leaf[0], jax.jit(jax.vmap(on_one, axis_name="batch"))(x))

    expected = gradients(fun, masking.apply(params, masks))
    compare(gradients(jaxprune.shrink_fun(fun, plan), small_params), plan.take(expected), 1e-4)


def test_a_model_under_pmap_has_units_and_says_why_it_has_no_layout():
    def fun(p, x):
        return jax.pmap(lambda x: jax.lax.pmean(jnp.tanh(x @ p["up"]), "devices") @ p["down"], "devices")(x)

    params, x = kernels(up=(5, 8), down=(8, 3)), floats(1, 2, 5)
    assert shrunk_groups(fun, params, x) == [(8, {"up[1]", "down[0]"})]
    assert jaxprune.macs(fun, params, x).by_leaf == {"up": 80, "down": 48}
    assert jaxprune.layout(fun, params, x).without["up"] == "'shard_map' takes it"


PRIMITIVES = """
import gc, jax, jax.lax, jax.nn, jax.numpy, jax.random, jax.scipy
from jax.extend.core import Primitive
print(*{found.name for found in gc.get_objects() if isinstance(found, Primitive)})
"""


@pytest.fixture(scope="module")
def primitives():
    """Every primitive that JAX itself makes: those of a process that has imported nothing else."""
    done = subprocess.run([sys.executable, "-c", PRIMITIVES], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_primitive_has_a_rule_or_a_reason_why_it_has_none(primitives):
    """A primitive that a new JAX brings is named here; give it a rule, or a line in the tables of `FROZEN`."""
    assert {"add", "ragged_dot_general", "psum", "qr", "scan", "jit"} <= primitives
    ruled = primitives & set(labels.RULES)
    print(f"\n{len(ruled)} of {len(primitives)} primitives of JAX {jax.__version__} have rules")
    for name in sorted(primitives & set(FROZEN)):
        print(f"  '{name}' has none: {FROZEN[name]}")
    assert primitives - ruled == primitives & set(FROZEN)
    assert not set(labels.RULES) & set(FROZEN)


def test_what_is_named_tiled_placed_printed_or_checked_passes():
    def fun(p, x):
        y = checkpoint_name(jnp.tanh(x @ p["up"]), "hidden")
        jax.debug.print("{}", y)
        y = jax.device_put(jnp.tile(y, (1, 2)))
        y = jax.lax.composite(lambda y: y * 2.0, "tests.double")(y) * jnp.tile(jnp.arange(8.0), 2)
        return jax.nn.softmax(y + 1.0) @ jnp.tile(p["down"], (2, 1))

    params, x = kernels(up=(5, 8), down=(8, 3)), floats(2, 5)
    assert shrunk_groups(fun, params, x) == [(8, {"up[1]", "down[0]"})]


def test_units_pass_branches_for_platforms_and_functions_with_a_batching_or_a_partitioning_of_their_own():
    @jax.custom_batching.custom_vmap
    def doubled(y):
        return y * 2.0

    doubled.def_vmap(lambda size, batched, y: (doubled(y), batched[0]))

    @custom_partitioning
    def halved(y):
        return y / 2.0

    halved.def_partition(lambda mesh, args, out: (mesh, halved, out, args), sharding_rule="i j -> i j")

    def fun(p, x):
        y = jax.lax.platform_dependent(x @ p["up"], tpu=jnp.sin, cpu=jnp.tanh, default=jnp.cos)
        return halved(doubled(y)) @ p["down"]

    assert shrunk_groups(fun, kernels(up=(5, 8), down=(8, 3)), floats(2, 5)) == [(8, {"up[1]", "down[0]"})]


def test_axes_before_those_of_matrices_pass():
    """One covariance for each unit: factors of it, solutions by them, and their eigenvalues."""

    def fun(p, x):
        y = jnp.einsum("ti,ihd->htd", x, p["up"])
        covariance = jnp.einsum("htd,hte->hde", y, y) + 10.0 * jnp.eye(3)
        lower = jnp.linalg.cholesky(covariance)
        solved = jax.scipy.linalg.solve_triangular(lower, y.mT, lower=True)
        total = solved * jnp.linalg.eigvalsh(covariance)[..., None] + jnp.linalg.svd(covariance)[1][..., None]
        total = total + jnp.linalg.qr(covariance)[1].sum(-1, keepdims=True) ** 2
        permutation = jax.lax.linalg.lu_pivots_to_permutation(jax.lax.linalg.lu(covariance)[1], 3)
        total = total * (1.0 + permutation[..., None])
        return jnp.einsum("hdt,hdo->to", total, p["down"])

    params = kernels(up=(5, 4, 3), down=(4, 3, 2))
    assert shrunk_groups(fun, params, floats(2, 5))[0] == (4, {"up[1]", "down[0]"})
    assert couple(fun, params, floats(2, 5)).frozen["up", 2] == "'cholesky' needs all of it"


def test_both_axes_of_a_matrix_are_needed():
    def fun(p, x):
        tall = (x @ p["up"]).mT
        return jnp.linalg.qr(tall)[0].mT @ p["down"]

    frozen = couple(fun, kernels(up=(5, 4), down=(4, 3)), floats(2, 5)).frozen
    assert frozen["up", 1] == "'qr' needs all of it"
    assert frozen["down", 0].startswith("'qr' makes it, joined by 'dot_general'")
