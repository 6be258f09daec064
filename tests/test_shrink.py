"""A shrunk model computes what its masked self does: outputs, statistics, gradients, training steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import linen, plain
from zoo.case import compare, floats, kernels, randomised, size, unit_masks

from jaxprune import magnitude
from jaxprune._masks import masking
from jaxprune.structured._coupling import couple
from jaxprune.structured._plan import LeafPlan, Plan
from jaxprune.structured._shrink import shrink, shrink_fun


@pytest.fixture
def relaxed():
    """Layers of Flax and optimizers of optax promote implicitly."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def halved(fun, params, *args, fraction=0.5, **options):
    """A masked model and its shrunk one."""
    coupling = couple(fun, params, *args, **options)
    params = randomised(params)
    masks = unit_masks(coupling, params, fraction)
    small, small_params, plan = shrink(fun, params, masks, coupling)
    assert size(small_params) < size(params)
    return masking.apply(params, masks), small, small_params, plan


def data(*shape, seed=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_gradient_is_the_masked_one_sliced_at_the_kink_of_relu_too():
    def fun(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["first"]) @ p["second"]) @ p["last"]

    masked, small, small_params, plan = halved(fun, kernels(first=(3, 8), second=(8, 6), last=(6, 2)), floats(2, 3))
    # A row of zeros puts every relu exactly at its kink, where only its own rule says that the gradient is 0.
    x = data(4, 3).at[1].set(0.0)
    full = jax.grad(lambda p: jnp.square(fun(p, x)).sum())(masked)
    got = jax.jit(jax.grad(lambda p: jnp.square(small(p, x)).sum()))(small_params)
    compare(got, plan.take(full), 1e-5)
    by_input = jax.grad(lambda x: fun(masked, x).sum())(x)
    compare(jax.grad(lambda x: small(small_params, x).sum())(x), by_input, 1e-5)
    assert (by_input[1] == 0).all()


def test_a_custom_vjp_keeps_its_rule():
    @jax.custom_vjp
    def clipped(x, scale):
        return jnp.round(x * scale)

    clipped.defvjp(
        lambda x, scale: (clipped(x, scale), (x, scale)),
        lambda kept, g: (jnp.where(jnp.abs(kept[0]) < 1, g, 0.0), jnp.sum(g * kept[0]).reshape(())),
    )

    def fun(p, x):
        return clipped(x @ p["first"], p["scale"]) @ p["last"]

    params = {**kernels(first=(3, 8), last=(8, 2)), "scale": floats()}
    masked, small, small_params, plan = halved(fun, params, floats(2, 3))
    x = data(4, 3)
    compare(jax.jit(small)(small_params, x), fun(masked, x), 1e-6)
    full = jax.grad(lambda p: jnp.square(fun(p, x)).sum())(masked)
    got = jax.jit(jax.grad(lambda p: jnp.square(small(p, x)).sum()))(small_params)
    compare(got, plan.take(full), 1e-5)


@pytest.mark.parametrize("optimizer", [optax.adam(1e-2), optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))])
def test_a_training_step_is_the_masked_one_on_what_is_kept(optimizer, relaxed):
    fun, params, args = linen.CASES["resnet_train"].build()
    masked, small, small_params, plan = halved(fun, params, *args)
    x, target = data(4, 8, 8, 3), data(4, 3)

    def step(model, variables, state):
        def loss(trained):
            y, updates = model({**variables, "params": trained}, x)
            return jnp.square(y - target).sum(), updates

        grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
        changes, state = optimizer.update(grads, state, variables["params"])
        return optax.apply_updates(variables["params"], changes), updates, state

    state = optimizer.init(masked["params"])
    state = jax.tree.map(lambda s: s + 0.1 if s.ndim else s, state)
    expected = jax.jit(lambda v, s: step(fun, v, s))(masked, state)
    got = jax.jit(lambda v, s: step(small, v, s))(small_params, plan.take(state))
    compare(got, plan.take(expected), 1e-4)


def test_dropout_under_a_fixed_key_is_the_same(relaxed):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.4, deterministic=False)(nn.relu(nn.Dense(16)(x)))
            return nn.Dense(3)(x)

    params = jax.eval_shape(
        lambda: Model().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, data(2, 4))
    )

    def fun(p, x, key):
        return Model().apply(p, x, rngs={"dropout": key})

    key = jax.random.key(3)
    masked, small, small_params, _ = halved(fun, params, floats(2, 4), key)
    compare(jax.jit(small)(small_params, data(5, 4), key), fun(masked, data(5, 4), key), 1e-5)


def test_traced_at_batch_two_it_runs_at_others_under_every_transformation():
    fun, params, args = plain.fused_qkv()
    masked, small, small_params, _ = halved(fun, params, *args)
    x = data(5, 5, 3)
    expected = fun(masked, x)
    compare(small(small_params, x), expected, 1e-5)
    compare(jax.jit(small)(small_params, x), expected, 1e-5)
    each = jax.jit(jax.vmap(lambda x: small(small_params, x[None])[0]))(x)
    compare(each, expected, 1e-5)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    exported = jax.export.export(jax.jit(lambda x: small(small_params, x)))(shape)
    compare(exported.call(x), expected, 1e-5)
    loss = jax.jit(jax.grad(lambda x: small(small_params, x).sum()))(x)
    compare(loss, jax.grad(lambda x: fun(masked, x).sum())(x), 1e-4)


def test_the_compiled_program_is_that_of_a_small_model():
    fun, params, args = plain.mlp()
    _, small, small_params, _ = halved(fun, params, *args)

    def flops(fun, params):
        return jax.jit(fun).lower(params, floats(2, 3)).compile().cost_analysis()["flops"]

    native = kernels(first=(3, 4), bias=(4,), second=(4, 3), last=(3, 2))
    assert flops(small, small_params) == flops(fun, native)


@pytest.mark.parametrize("name", ["resnet_eval", "vit"])
def test_compiled_flops_equal_those_of_a_model_built_small(name, relaxed):
    """The same module builds both: its widths come from the kernels."""
    fun, params, args = linen.CASES[name].build()
    _, small, small_params, _ = halved(fun, params, *args)
    module = {"resnet_eval": SmallResNet, "vit": SmallViT}[name]()
    native = jax.eval_shape(module.init, jax.random.key(0), *args)

    def flops(fun, params):
        return jax.jit(fun).lower(params, *args).compile().cost_analysis()["flops"]

    assert flops(small, small_params) == flops(module.apply, native)


class SmallResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(norm(nn.Conv(4, (3, 3), use_bias=False)(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        for width, strides in ((4, 1), (6, 2)):
            y = nn.relu(norm(nn.Conv(width, (3, 3), (strides, strides), use_bias=False)(x)))
            y = norm(nn.Conv(width, (3, 3), use_bias=False)(y))
            if strides == 2:
                x = norm(nn.Conv(width, (1, 1), (2, 2), use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(3)(x.mean((1, 2)))


class SmallViT(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (2, 2), (2, 2))(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("positions", nn.initializers.zeros, (1, x.shape[1], self.width))
        for _ in range(2):
            y = nn.MultiHeadDotProductAttention(1, qkv_features=2)(nn.LayerNorm()(x))
            x = x + y
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


class Normed(nn.Module):
    """Layer, group and RMS norm over widths that a smaller configuration would shrink."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        x = nn.relu(nn.LayerNorm(use_fast_variance=False)(x))
        return nn.Dense(3)(nn.RMSNorm()(x))


def test_small_semantics_are_those_of_a_model_configured_small(relaxed):
    large, native = Normed(8), Normed(4)
    x = data(5, 4)
    params = jax.eval_shape(large.init, jax.random.key(0), x)
    coupling = couple(large.apply, params, x, semantics="small")
    params = randomised(params)
    masks = unit_masks(coupling, params)
    small, small_params, _ = shrink(large.apply, params, masks, coupling)
    expected = jax.eval_shape(native.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, small_params) == jax.tree.map(jnp.shape, expected)
    assert (jax.jit(small)(small_params, x) == jax.jit(native.apply)(small_params, x)).all()
    masked = large.apply(masking.apply(params, masks), x)
    assert not np.allclose(small(small_params, x), masked, rtol=1e-3), "the masked model divides by the full width"


def test_units_that_died_of_other_causes_go_too():
    fun, params, args = plain.mlp()
    coupling = couple(fun, params, *args)
    params = randomised(params)
    masks = jax.tree.map(lambda x: np.random.default_rng(0).random(x.shape) < 0.7, params)
    dead = np.array([1, 5])
    masks["first"][:, dead] = masks["bias"][dead] = masks["second"][dead] = False
    masks = jax.tree.map(jnp.asarray, masks)
    small, small_params, plan = shrink(fun, params, masks, coupling)
    assert small_params["first"].shape == (3, 6)
    assert plan.leaves["second"].keep[0].tolist() == [0, 2, 3, 4, 6, 7]
    x = data(5, 3)
    compare(small(small_params, x), fun(masking.apply(params, masks), x), 1e-5)


def test_a_unit_with_one_slice_left_stays():
    fun, params, args = plain.mlp()
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    masks["first"] = masks["first"].at[:, 2].set(False)
    masks["second"] = masks["second"].at[2].set(False)
    with pytest.warns(UserWarning, match="`shrink` removes nothing: no unit has all its slices masked"):
        _, small_params, _ = shrink(fun, randomised(params), masks, couple(fun, params, *args))
    assert small_params["first"].shape == (3, 8), "its bias is not masked"


def test_no_width_reaches_zero():
    fun, params, args = plain.mlp()
    coupling = couple(fun, params, *args)
    params = randomised(params)
    masks = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params)
    masks["last"] = None
    small, small_params, _ = shrink(fun, params, masks, coupling)
    assert small_params["first"].shape == (3, 1)
    assert small(small_params, data(2, 3)).shape == (2, 2)


def test_what_is_left_is_committed_to_a_device_if_the_parameters_are():
    """Uncommitted, it goes to the devices that a `jit` of a mesh runs on."""
    params = {"up": jnp.ones((3, 8)), "down": jax.device_put(jnp.ones((8, 2)), jax.devices()[0])}
    masks = {"up": (jnp.arange(8) < 5)[None], "down": (jnp.arange(8) < 5)[:, None]}

    def fun(p, x):
        return jnp.tanh(x @ p["up"]) @ p["down"]

    _, small, plan = shrink(fun, params, masks, couple(fun, params, floats(2, 3)))
    assert {name: leaf.shape for name, leaf in small.items()} == {"up": (3, 5), "down": (5, 2)}
    for found in (small, plan.take(params), plan.put(small), magnitude(params, 0.5)):
        assert {name: leaf.committed for name, leaf in found.items()} == {"up": False, "down": True}


def test_layers_of_a_scan_keep_different_units():
    fun, params, args = plain.scanned()()
    coupling = couple(fun, params, *args)
    params = randomised(params)
    masks = unit_masks(coupling, params)
    _, small_params, plan = shrink(fun, params, masks, coupling)
    kept = plan.leaves["layers/up"].keep[2]
    assert kept.shape == (3, 6)
    assert len({tuple(row) for row in kept.tolist()}) > 1
    expected = np.stack([np.asarray(params["layers"]["bias"])[i, row] for i, row in enumerate(kept)])
    assert (np.asarray(small_params["layers"]["bias"]) == expected).all()


def test_layers_with_different_counts_keep_the_largest():
    fun, params, args = plain.scanned()()
    coupling = couple(fun, params, *args)
    (group,) = [g for g in coupling.groups if g.stack is not None]
    params = randomised(params)
    masks = jax.tree.map(lambda x: None, params)
    alive = np.ones((3, group.width), bool)
    alive[0, :7], alive[1, 2:5] = False, False
    masks["layers"] = {
        "up": jnp.asarray(alive[:, None]), "bias": jnp.asarray(alive), "down": jnp.asarray(alive[:, :, None]),
        "scale": None,
    }  # fmt: skip
    alive[2, 4:] = False
    masks["layers"] |= {
        "bias": jnp.asarray(alive),
        "up": jnp.asarray(alive[:, None]),
        "down": jnp.asarray(alive[:, :, None]),
    }
    small, small_params, _ = shrink(fun, params, masks, coupling)
    assert small_params["layers"]["up"].shape == (3, 8, 9)
    x = data(4, 3)
    compare(jax.jit(small)(small_params, x), fun(masking.apply(params, masks), x), 1e-5)


def test_the_plan_is_all_that_a_later_run_needs(tmp_path):
    fun, params, args = plain.scanned()()
    masked, _, small_params, plan = halved(fun, params, *args)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    x = data(4, 3)
    compare(shrink_fun(fun, loaded)(small_params, x), fun(masked, x), 1e-5)
    back = loaded.put(small_params)
    compare(jax.tree.map(lambda a: a, back), masked, 0.0)


def test_abstract_parameters_shrink_to_abstract_ones():
    fun, params, args = plain.mlp()
    coupling = couple(fun, params, *args)
    masks = unit_masks(coupling, params)
    small, small_params, _ = shrink(fun, params, masks, coupling)
    assert small_params["second"] == floats(4, 3)
    assert jax.eval_shape(small, small_params, floats(7, 3)).shape == (7, 2)


def test_a_plan_that_cuts_through_a_unit_is_refused():
    fun, params, args = plain.mlp()
    masked, _, _, plan = halved(fun, params, *args)
    leaves = dict(plan.leaves)
    kept = leaves["bias"].keep[0]
    leaves["bias"] = LeafPlan((8,), {0: np.setdiff1d(np.arange(8), kept)})
    wrong = Plan(leaves)
    with pytest.raises(ValueError, match=r"does not treat index \d of axis \d of '(bias|first|second)'"):
        shrink_fun(fun, wrong)(wrong.take(masked), data(2, 3))
    leaves["bias"], leaves["last"] = (
        plan.leaves["bias"],
        LeafPlan((6, 2), {**plan.leaves["last"].keep, 1: np.array([0])}),
    )
    wrong = Plan(leaves)
    with pytest.raises(ValueError, match=r"removes index 1 of axis 1 of 'last', which must stay: axis 1 of the output"):
        shrink_fun(fun, wrong)(wrong.take(masked), data(2, 3))


def test_errors_name_the_path():
    fun, params, args = plain.mlp()
    coupling = couple(fun, params, *args)
    masks = unit_masks(coupling, params)
    other = {**params, "first": floats(3, 9)}
    with pytest.raises(ValueError, match=r"'first' has shape \(3, 9\); it was coupled with shape \(3, 8\)"):
        shrink(fun, other, {**masks, "first": None}, coupling)
    with pytest.raises(ValueError, match="'extra' was not coupled"):
        shrink(fun, {**params, "extra": floats(3)}, {**masks, "extra": None}, coupling)
    small, small_params, _ = shrink(fun, params, masks, coupling)
    with pytest.raises(ValueError, match=r"'first' has shape \(3, 8\); by the plan it is \(3, 4\)"):
        jax.eval_shape(small, {**small_params, "first": params["first"]}, floats(2, 3))
    with pytest.raises(TypeError, match="concrete masks; that of 'bias' is traced"):
        jax.eval_shape(lambda m: shrink(fun, params, m, coupling)[1], masks)
