"""Modules of Equinox and Flax NNX at the sizes of a plan: they run by themselves and equal the shrunk function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune.structured import resized
from jaxprune.structured._leaf_plan import LeafPlan

eqx = pytest.importorskip("equinox")
nnx = pytest.importorskip("flax.nnx")
pytestmark = [pytest.mark.rank_promotion, pytest.mark.dtype_promotion]
KEY = jax.random.key(0)
SEQUENCE, IMAGES = jax.random.normal(KEY, (2, 5, 8)), jax.random.normal(KEY, (2, 6, 6, 8))


def shrunk(fun, params, x, **options):
    """What the shrunk function gives, and its plan."""
    coupling = jaxprune.couple(fun, params, x)
    masks = jaxprune.slim(params, 0.5, coupling=coupling, **options)
    small, small_params, plan = jaxprune.shrink(fun, params, masks, coupling)
    return eqx.filter_jit(small)(small_params, x), plan


@eqx.filter_jit
def over_batch(module, x):
    return jax.vmap(module)(x)


@nnx.jit
def run(network, x):
    return network(x)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


class SelfAttention(eqx.Module):
    attention: eqx.nn.MultiheadAttention

    def __call__(self, x):
        return self.attention(x, x, x)


class Depthwise(eqx.Module):
    layers: list

    def __init__(self):
        keys = jax.random.split(KEY, 3)
        sizes = [(8, 12, 3, 1), (12, 24, 3, 12), (24, 3, 1, 1)]
        self.layers = [eqx.nn.Conv2d(*s[:3], groups=s[3], key=k) for s, k in zip(sizes, keys, strict=True)]

    def __call__(self, x):
        return self.layers[2](self.layers[1](jnp.tanh(self.layers[0](x))))


def test_equinox_attention_has_fewer_heads():
    module = SelfAttention(eqx.nn.MultiheadAttention(4, 8, use_query_bias=True, key=KEY))
    wanted, plan = shrunk(over_batch, module, SEQUENCE)
    small = resized(module, plan)
    found = small.attention
    assert (found.num_heads, found.qk_size, found.vo_size, found.query_size) == (2, 2, 2, 8)
    assert (found.query_proj.in_features, found.query_proj.out_features, found.output_proj.in_features) == (8, 4, 4)
    close(over_batch(small, SEQUENCE), wanted)
    assert module.attention.num_heads == 4


def test_equinox_depthwise_convolutions_lose_groups():
    module, x = Depthwise(), IMAGES.transpose(0, 3, 1, 2)
    wanted, plan = shrunk(over_batch, module, x)
    small = resized(module, plan)
    assert [(c.in_channels, c.out_channels, c.groups) for c in small.layers] == [(8, 6, 1), (6, 12, 6), (12, 3, 1)]
    close(over_batch(small, x), wanted)


class Vision(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([
            nnx.Conv(8, 12, (3, 3), rngs=rngs),
            nnx.Conv(12, 24, (3, 3), feature_group_count=12, rngs=rngs),
        ])  # fmt: skip
        self.batch_norm = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
        self.project = nnx.Conv(24, 8, (1, 1), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 8, qkv_features=16, decode=False, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.batch_norm(self.convs[0](x)))
        x = self.project(nnx.relu(self.convs[1](x)))
        return self.attention(x.reshape(len(x), -1, 8))


def in_state(network):
    structure, state = nnx.split(network)
    return lambda state, x: nnx.merge(structure, state)(x), state


def test_nnx_numbers_follow_the_arrays():
    network = Vision(nnx.Rngs(0))
    fun, state = in_state(network)
    heads_and_channels = jaxprune.budgets.by_path({r"query/kernel\[1\]": 0.5, "convs": 0.5}, default=0.0)
    wanted, plan = shrunk(fun, state, IMAGES, budget=heads_and_channels)
    small = resized(network, plan)
    first, second = small.convs
    assert (first.out_features, first.kernel_shape, small.batch_norm.num_features) == (6, (3, 3, 8, 6), 6)
    assert (second.in_features, second.out_features, second.feature_group_count) == (6, 12, 6)
    attention = small.attention
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim, attention.qkv_features) == (2, 2, 4, 8)
    assert attention.query.out_features == attention.out.in_features == (2, 4)
    assert attention.out.out_features == (8,)
    close(run(small, IMAGES), wanted)
    abstract = resized(nnx.eval_shape(lambda: Vision(nnx.Rngs(0))), plan)
    assert jax.tree.map(jnp.shape, nnx.state(abstract)) == jax.tree.map(jnp.shape, nnx.state(small))


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(8, 16, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
        self.again = self.first
        self.last = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x) + self.again(x)))


def test_what_is_shared_stays_shared():
    network = Tied(nnx.Rngs(0))
    fun, state = in_state(network)
    wanted, plan = shrunk(fun, state, SEQUENCE)
    small = resized(network, plan)
    assert small.again is small.first
    assert (small.first.out_features, small.last.in_features) == (8, 8)
    close(run(small, SEQUENCE), wanted)


def test_small_arrays_stay_and_numbers_that_mean_something_else_too():
    module = eqx.nn.MLP(4, 3, 8, 2, key=KEY)
    coupling = jaxprune.couple(over_batch, module, SEQUENCE[0, :, :4])
    masks = jaxprune.slim(module, 0.5, coupling=coupling)
    _, small_params, plan = jaxprune.shrink(over_batch, module, masks, coupling)
    again = resized(small_params, plan)
    assert again.layers[1].weight is small_params.layers[1].weight
    assert [(layer.in_features, layer.out_features) for layer in again.layers] == [(4, 4), (4, 4), (4, 3)]
    assert (again.in_size, again.out_size, again.depth) == (4, 3, 2)
    # With the key of a tuple that held the module when it was coupled, and without.
    pair = resized((module, None), jaxprune.Plan({f"0/{path}": leaf for path, leaf in plan.leaves.items()}))
    assert pair[0].layers[0].weight.shape == (4, 4)
    alone = resized(module, jaxprune.Plan({f"0/{path}": leaf for path, leaf in plan.leaves.items()}))
    assert alone.layers[0].out_features == resized((module, None), plan)[0].layers[0].out_features == 4


def test_another_module_is_refused():
    plan = jaxprune.Plan({"layers/0/weight": LeafPlan((8, 4), {0: np.arange(4)})})
    with pytest.raises(
        ValueError, match=r"'layers/0/weight' has shape \(9, 4\); by the plan it is \(8, 4\), and small \(4"
    ):
        resized(eqx.nn.MLP(4, 3, 9, 1, key=KEY), plan)
    with pytest.raises(
        ValueError, match=r"the module has 'weight', 'bias'\. Give the module that the plan was made for"
    ):
        resized(eqx.nn.Linear(4, 3, key=KEY), plan)
