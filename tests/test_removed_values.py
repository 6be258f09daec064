"""What removed positions hold is taken in: sums, variances, softmaxes and maxima over pruned axes stay exact."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwix
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from zoo.case import compare, floats, jitted, kernels, randomised, size, unit_masks

from jaxprune._masks import masking
from jaxprune.structured._coupling import couple
from jaxprune.structured._shrink import shrink

X = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
TABLE = np.sin(np.arange(32, dtype=np.float32)).reshape(4, 8)


def halved(fun, params, *args, **options):
    coupling = couple(fun, params, *args, **options)
    params = randomised(params)
    masks = unit_masks(coupling, params)
    small, small_params, plan = shrink(fun, params, masks, coupling)
    assert size(small_params) < size(params)
    return masking.apply(params, masks), small, small_params, plan


def check(fun, params, x, **options):
    """Outputs and gradients of half a model are those of the masked one."""
    masked, small, small_params, plan = halved(fun, params, x, **options)

    def with_gradients(model, params):
        def loss(params):
            outputs = model(params, x)
            return sum(jnp.square(y).mean() for y in jax.tree.leaves(outputs)), outputs

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (_, expected), full = with_gradients(fun, masked)
    (_, got), grads = with_gradients(small, small_params)
    compare(got, expected, 1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(plan.take(full)), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * max(1.0, float(np.abs(theirs).max()))


def norm(y, axis=-1):
    return (y - y.mean(axis, keepdims=True)) / jnp.sqrt(y.var(axis, keepdims=True) + 0.1)


def between(*functions):
    """Functions over the pruned axis, each between two layers."""
    return lambda p, x: [f(x @ p["first"]) @ p["last"] for f in functions]


def reduced(*functions):
    """Functions that reduce the pruned axis, and a layer."""
    return lambda p, x: (
        [f(x @ p["first"]).astype(x.dtype)[:, None] * p["bias"][None] for f in functions] + [x @ p["first"] @ p["last"]]
    )


LAYERS = kernels(first=(3, 8), last=(8, 2))
OVER_CHANNELS = {
    "norms": [
        norm,
        jax.nn.softmax,
        jax.nn.log_softmax,
        lambda y: norm(y.reshape(4, 2, 4)).reshape(4, 8),
        lambda y: norm(jnp.concatenate([y[:, :4] + 1, jnp.cos(y[:, 4:])], -1)),
        lambda y: norm(jnp.repeat(jnp.exp(y), 2, -1))[:, ::2],
        jax.checkpoint(norm),
    ],
    "tables": [
        lambda y: norm(y + TABLE),
        lambda y: norm(y + jnp.sin(jnp.arange(8.0))[None]),
        lambda y: norm(y + jax.random.normal(jax.random.key(0), y.shape)),
        lambda y: jax.nn.softmax(y * jnp.cos(TABLE) - TABLE),
    ],
    "control": [
        lambda y: lax.scan(lambda c, _: (c + jnp.tanh(norm(c)), None), y + TABLE, None, length=3)[0],
        lambda y: lax.cond(y.sum() > 0, jnp.exp, lambda y: norm(y + TABLE), y),
    ],
}
REDUCTIONS = {
    "extremes": [
        lambda y: y.max(-1),
        lambda y: jax.nn.relu(y).max(-1),
        lambda y: (y + 1).min(-1),
        lambda y: jnp.argmax(y, -1) + 1,
        lambda y: jnp.argmin(jnp.exp(y) + TABLE, -1) + 1,
        lambda y: (jnp.exp(y) > 1).any(-1),
        lambda y: (y + TABLE > -2).all(-1),
    ],
    "sums": [
        lambda y: y.std(-1),
        lambda y: jax.nn.logsumexp(y, -1),
        lambda y: jnp.prod(jnp.cos(y) + 0.5, -1),
        lambda y: lax.stop_gradient(lax.reduce(jnp.cos(y), np.float32(1), lambda a, b: a * b, (1,))),
        lambda y: jax.nn.softplus(y).sum(-1),
        lambda y: lax.cumlogsumexp(y, 0).sum(-1),
        lambda y: jnp.argsort(y, 0).sum(-1) + 1,
    ],
    "moved": [
        lambda y: jnp.exp(y)[:, 1:7:2].sum(-1) + (y + TABLE)[:, 2:].max(-1),
        lambda y: sum(jnp.exp(part).sum(-1) * i for i, part in enumerate(jnp.split(y + TABLE, 2, -1))),
        lambda y: jnp.exp(jnp.pad(jnp.cos(y), ((0, 0), (2, 1)), constant_values=0.5)).sum(-1),
        lambda y: jnp.pad(y, ((1, 1), (0, 0)), constant_values=1.0).sum(-1)[:-2],
        lambda y: (jnp.exp(y)[:, ::-1] * TABLE[:, ::-1]).sum(-1),
        lambda y: jnp.exp(jnp.take(jnp.cos(y), np.array([0, 0, 1, 2]), axis=0)).sum(-1),
    ],
    "loops": [
        lambda y: jnp.exp(lax.scan(lambda c, _: (jnp.cos(c) + y, None), y, None, length=3)[0]).sum(-1),
        lambda y: lax.stop_gradient(lax.while_loop(lambda c: c.sum() < 50, lambda c: jnp.exp(c) * 0.9, y)).sum(-1),
        lambda y: jnp.exp(lax.scan(lambda c, row: (c, jnp.exp(row)), 0.0, jnp.cos(y))[1]).sum(-1),
    ],
}


@pytest.mark.parametrize("kind", OVER_CHANNELS)
def test_over_channels(kind):
    check(between(*OVER_CHANNELS[kind]), LAYERS, X)


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions(kind):
    check(reduced(*REDUCTIONS[kind]), {**LAYERS, "bias": floats(2)}, X)


def test_positions_of_every_head_are_normalised_together():
    check(
        between(lambda y: norm(y.reshape(4, 2, 4)).reshape(4, 8)), kernels(first=(3, 8), last=(8, 2)), X, split="inner"
    )


def test_two_pruned_axes_of_one_array_meet_in_a_corner():
    def fun(p, x):
        left, right = x @ p["left"], x @ p["right"]
        return jax.nn.softmax(jnp.exp(left)[:, :, None] + jnp.cos(right)[:, None], axis=(1, 2)).max(1) @ p["last"]

    check(fun, kernels(left=(3, 8), right=(3, 6), last=(6, 2)), X)


def test_products_add_what_removed_features_contribute():
    """Linear attention: the feature map is 1 where it is removed."""

    def fun(p, x):
        q, k = jax.nn.elu(x @ p["q"]) + 1, jax.nn.elu(x @ p["k"]) + 1
        return q @ (k.T @ x)

    check(fun, kernels(q=(3, 8), k=(3, 8)), X)


def test_gradients_pass_through_a_rule_of_the_users():
    @jax.custom_vjp
    def wave(y, scale):
        return jnp.cos(y) * scale

    wave.defvjp(
        lambda y, scale: (wave(y, scale), (y, scale)),
        lambda kept, g: (-1.5 * jnp.sin(kept[0] + 1) * kept[1] * g, (g * jnp.cos(kept[0])).sum()),
    )

    def fun(p, x):
        y = x @ p["first"]
        return jnp.exp(wave(y, p["scale"])).sum(-1, keepdims=True) + norm(wave(y + TABLE, p["scale"])) @ p["last"]

    check(fun, {**LAYERS, "scale": floats()}, X)


def test_layers_of_a_scan_that_keep_other_units_take_in_their_own():
    def fun(p, x):
        def layer(x, p):
            hidden = norm(jnp.exp(x @ p["up"]) + jnp.sin(jnp.arange(8.0))[None])
            return x + hidden @ p["down"] + jax.nn.softmax(x @ p["up"]) @ p["down"], None

        return lax.scan(layer, x, p)[0]

    params = kernels(up=(3, 3, 8), down=(3, 8, 3))
    assert [g.stack for g in couple(fun, params, X).groups] == [0]
    check(fun, params, X)


def symmetric(w, axis=None):
    scale = jnp.abs(w).max(axis, keepdims=True) / 127
    return w + lax.stop_gradient(jnp.round(w / scale) * scale - w)


def asymmetric(w, axis=None):
    scale = (w.max(axis, keepdims=True) - w.min(axis, keepdims=True)) / 255
    zero = jnp.round(-w.min(axis, keepdims=True) / scale)
    return w + lax.stop_gradient((jnp.clip(jnp.round(w / scale) + zero, 0, 255) - zero) * scale - w)


@pytest.mark.parametrize("quantise", [symmetric, asymmetric])
def test_fake_quantisation_with_the_largest_weight_as_scale(quantise):
    def fun(p, x):
        return quantise(jax.nn.relu(x @ quantise(p["first"]) + 0.1), -1) @ quantise(p["mid"]) @ quantise(p["last"])

    check(fun, kernels(first=(3, 8), mid=(8, 6), last=(6, 2)), X)


class Quantised(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        return nn.Dense(3)(x + nn.Dense(8)(nn.relu(x)))


def test_a_model_under_quantisation_aware_training_shrinks():
    """Scales are maxima over pruned axes; the gradient of the straight-through rule has zeros that nothing ties."""
    rule = qwix.QtRule(module_path=".*", weight_qtype="int8", act_qtype="int8")
    model = qwix.quantize_model(Quantised(), qwix.QtProvider([rule]))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = jax.eval_shape(model.init, jax.random.key(0), X)
        assert [g.width for g in couple(model.apply, params, X).groups] == [8]
        check(model.apply, params, X)


def sinusoid(length, width):
    angles = np.arange(length)[:, None] / 100 ** (np.arange(width)[None] // 2 * 2 / width)
    return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


class Encoder(nn.Module):
    """A classic transformer: a sinusoid table on the stream, and a two-pass variance."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x) + sinusoid(x.shape[1], 8)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm(use_fast_variance=False)(x))
        x = nn.RMSNorm()(x + nn.Dense(8)(nn.gelu(nn.Dense(16)(x))))
        return nn.Dense(3)(x.mean(1))


class GroupNorms(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x) + sinusoid(x.shape[1], 8)
        return nn.Dense(3)(nn.relu(nn.GroupNorm(2, use_fast_variance=False)(x)).max(1))


class Vision(eqx.Module):
    """Every norm of Equinox has a two-pass variance."""

    patch: eqx.nn.Conv2d
    token: jax.Array
    positions: jax.Array
    attention: eqx.nn.MultiheadAttention
    norms: list[eqx.nn.LayerNorm]
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b, c, d = jax.random.split(key, 4)
        self.patch = eqx.nn.Conv2d(1, 8, 2, stride=2, key=a)
        self.token, self.positions = jnp.zeros((1, 8)), jnp.zeros((5, 8))
        self.attention = eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, use_output_bias=True, key=b)
        self.norms = [eqx.nn.LayerNorm(8), eqx.nn.LayerNorm(8), eqx.nn.LayerNorm(8)]
        self.mlp = eqx.nn.MLP(8, 8, 16, 1, activation=jax.nn.gelu, key=c)
        self.head = eqx.nn.Linear(8, 3, key=d)

    def __call__(self, x):
        x = jnp.concatenate([self.token, self.patch(x).reshape(8, -1).T]) + self.positions
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        return self.head(jax.vmap(self.norms[2])(x)[0])


def linen(model, x):
    return model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x


def vision():
    model = eqx.filter_eval_shape(Vision, jax.random.key(0))
    return lambda model, x: jax.vmap(model)(x), model, floats(2, 1, 4, 4)


MODELS = {
    "encoder": lambda: linen(Encoder(), floats(2, 5, 3)),
    "group_norm": lambda: linen(GroupNorms(), floats(2, 5, 3)),
    "vision": vision,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_residual_stream_of_a_model_is_pruned_and_a_step_of_adam_is_the_masked_one(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        fun, params, x = MODELS[name]()
        masked, small, small_params, plan = halved(fun, params, x)
        widths = {leaf.keep[a].shape[-1] for leaf in plan.leaves.values() for a in leaf.keep if leaf.shape[a] == 8}
        assert widths == {4}, "the stream lost half of its width"
        batch = jnp.asarray(np.random.default_rng(4).normal(size=(3, *x.shape[1:])), jnp.float32)

        def stepped(model, params):
            arrays, rest = eqx.partition(params, eqx.is_array)
            optimizer = optax.adam(1e-2, eps=1e-3)

            def loss(arrays):
                y = model(eqx.combine(arrays, rest), batch)
                return jnp.square(y - 1).sum(), y

            (_, y), grads = jax.value_and_grad(loss, has_aux=True)(arrays)
            updates, _ = optimizer.update(grads, optimizer.init(arrays), arrays)
            return y, eqx.apply_updates(arrays, updates)

        def run(model, params):
            return jitted(lambda params: stepped(model, params))(params)

        (expected, full), (got, after) = run(fun, masked), run(small, small_params)
        compare(got, expected, 1e-5)
        wanted = plan.take(full)
        for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(wanted), strict=True):
            assert np.abs(ours - theirs).max() <= 1e-5 * max(1.0, float(np.abs(theirs).max()))


def test_what_removed_positions_hold_costs_no_product():
    """The norm takes in one number for all removed channels; the program stays that of a small model."""
    fun = between(norm)
    _, small, small_params, _ = halved(fun, kernels(first=(64, 512), last=(512, 64)), floats(32, 64))

    def flops(fun, params):
        return jax.jit(fun).lower(params, floats(32, 64)).compile().cost_analysis()["flops"]

    native = flops(fun, kernels(first=(64, 256), last=(256, 64)))
    assert flops(small, small_params) < 1.01 * native


def test_what_differs_at_each_removed_position_is_not_multiplied_at_full_size():
    """Removed latents with a table would each go through every layer."""

    def fun(p, x):
        latents = p["latents"] + jnp.sin(jnp.arange(8.0))[:, None]
        return jax.nn.softmax(x @ (latents @ p["key"]).T) @ latents

    coupling = couple(fun, kernels(latents=(8, 3), key=(3, 3)), X)
    assert "not known where they are removed" in coupling.frozen["latents", 0]


def router(p, x, choose=lax.top_k):
    experts = p["router"].shape[1]
    weights, chosen = choose(jax.nn.softmax(x @ p["router"]), 2)
    gates = jnp.sum(jax.nn.one_hot(chosen, experts, dtype=x.dtype) * weights[..., None], axis=-2)
    hidden = jax.nn.relu(jnp.einsum("bd,edf->ebf", x, p["up"]))
    return jnp.einsum("ebf,efd,be->bd", hidden, p["down"], gates)


EXPERTS = kernels(router=(3, 6), up=(6, 3, 4), down=(6, 4, 2))


@pytest.mark.parametrize("choose", [lax.top_k, lax.approx_max_k])
def test_under_small_the_experts_of_a_router_are_pruned_as_if_built_with_fewer(choose):
    def fun(p, x):
        return router(p, x, choose)

    assert "top_k' needs all of it" in couple(fun, EXPERTS, X).frozen["router", 1]
    coupling = couple(fun, EXPERTS, X, semantics="small")
    assert [(g.name, g.width) for g in coupling.groups] == [("router", 6), ("up", 4)]
    params = randomised(EXPERTS)
    small, small_params, _ = shrink(fun, params, unit_masks(coupling, params), coupling)
    assert small_params["router"].shape == (3, 3)
    compare(jax.jit(small)(small_params, X), fun(small_params, X), 1e-6)


def test_layers_of_a_scan_keep_other_experts():
    def fun(p, x):
        return lax.scan(lambda x, p: (x + router(p, x), None), x, p)[0]

    experts = kernels(router=(2, 3, 6), up=(2, 6, 3, 4), down=(2, 6, 4, 3))
    coupling = couple(fun, experts, X, semantics="small")
    assert [(g.name, g.stack, g.width) for g in coupling.groups] == [("router", 0, 6), ("up", 0, 4)]
    params = randomised(experts)
    small, small_params, plan = shrink(fun, params, unit_masks(coupling, params), coupling)
    assert len(np.unique(plan.leaves["router"].keep[2], axis=0)) == 2
    compare(jax.jit(small)(small_params, X), fun(small_params, X), 1e-6)


def test_fewer_experts_than_a_router_chooses_are_an_error():
    coupling = couple(router, EXPERTS, X, semantics="small")
    params = randomised(EXPERTS)
    with pytest.raises(ValueError, match=r"`top_k` at test_removed_values.py.* takes 2; the masks leave 1 .*'router'"):
        shrink(router, params, unit_masks(coupling, params, 0.9), coupling)


UNARY = st.sampled_from([jnp.cos, jnp.tanh, jax.nn.relu, jax.nn.softplus, lambda y: y + 1, lambda y: jnp.exp(-y * y)])
STEPS = st.sampled_from(
    [
        lambda y, f: f(y),
        lambda y, f: f(y) + TABLE,
        lambda y, f: y - f(y).mean(-1, keepdims=True),
        lambda y, f: y + f(y).max(-1, keepdims=True),
        lambda y, f: y * f(y).min(-1, keepdims=True),
        lambda y, f: jax.nn.softmax(f(y)),
        lambda y, f: norm(f(y)),
        lambda y, f: y + f(y) @ jnp.ones((8, 1)),
        lambda y, f: jnp.tanh(y @ f(y).T).mean(-1, keepdims=True) * y,
        lambda y, f: f(y.reshape(4, 4, 2)).reshape(4, 8) * 0.5,
        lambda y, f: jnp.concatenate([y[:, :4], f(y)[:, 4:]], -1),
        lambda y, f: jnp.minimum(y, f(y).mean()),
        lambda y, f: norm(f(y), 0),
    ]
)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(STEPS, UNARY), min_size=1, max_size=4))
def test_any_program_over_a_pruned_axis_is_exact(steps):
    def fun(p, x):
        y = x @ p["first"]
        for step, f in steps:
            y = step(y, f)
        return y @ p["last"]

    masked, small, small_params, _ = halved(fun, LAYERS, X)
    expected, got = np.asarray(fun(masked, X)), np.asarray(small(small_params, X))
    assert np.abs(got - expected).max() <= 2e-5 * max(1.0, float(np.abs(expected).max()))
