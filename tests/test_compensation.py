"""The mean of what goes is put into the bias that follows."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import linen, plain
from zoo.case import compare, floats, kernels, randomised

from jaxprune._calibration._calibrate import calibrate
from jaxprune.structured._coupling import couple
from jaxprune.structured._shrink import shrink


@pytest.fixture
def relaxed():
    """Layers of Flax and Equinox promote implicitly."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def data(*shape):
    return jnp.asarray(np.random.default_rng(5).normal(size=shape), jnp.float32)


def without(params, *places):
    """Masks that remove unit 1 and unit 3 along an axis of each leaf named."""
    masks = jax.tree.map(lambda _: None, params)
    for path, axis in places:
        at, names = masks, path.split("/")
        leaf = params
        for name in names[:-1]:
            at = at[name]
        for name in names:
            leaf = leaf[name]
        shape = [1] * leaf.ndim
        shape[axis] = leaf.shape[axis]
        at[names[-1]] = ~jnp.isin(jnp.arange(leaf.shape[axis]), jnp.array([1, 3])).reshape(shape)
    return masks


def test_a_constant_neuron_is_replaced_exactly():
    def fun(p, x):
        hidden = jax.nn.relu(x @ p["first"] + p["bias"][None])
        return jax.nn.relu(hidden @ p["second"] + p["after"][None]) @ p["last"]

    shapes = kernels(first=(3, 6), bias=(6,), second=(6, 4), after=(4,), last=(4, 2))
    params = randomised(shapes)
    params["first"] = params["first"].at[:, jnp.array([1, 3])].set(0.0)
    x = data(9, 3)
    hidden = jax.nn.relu(x @ params["first"] + params["bias"][None])
    masks = without(params, ("first", 1), ("bias", 0), ("second", 0))
    coupling = couple(fun, shapes, floats(2, 3))
    means = {**dict.fromkeys(params), "second": hidden.mean(0)}
    small, small_params, _ = shrink(fun, params, masks, coupling, compensate=means)
    assert small_params["first"].shape == (3, 4)
    compare(small(small_params, x), fun(params, x), 1e-5)
    plainly, plain_params, _ = shrink(fun, params, masks, coupling)
    assert not np.allclose(plainly(plain_params, x), fun(params, x), rtol=1e-2)


@pytest.mark.parametrize("norm", [False, True])
def test_a_constant_channel_is_replaced_exactly(norm, relaxed):
    """Into the bias of a convolution, or the running mean of the norm that follows one without."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            hidden = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
            y = nn.Conv(5, (2, 2), padding="VALID", use_bias=not norm, name="second")(hidden)
            if norm:
                y = nn.BatchNorm(use_running_average=True, name="norm")(y)
            return nn.Dense(3, name="head")(nn.relu(y).mean((1, 2)))

    fun, x = Net().apply, data(4, 6, 6, 2)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    params = randomised(shapes)
    first = params["params"]["first"]
    first["kernel"] = first["kernel"].at[..., jnp.array([1, 3])].set(0.0)
    hidden = nn.relu(nn.Conv(6, (3, 3)).apply({"params": first}, x))
    means = jax.tree.map(lambda _: None, params)
    means["params"]["second"]["kernel"] = hidden.mean((0, 1, 2))
    masks = without(params, ("params/first/kernel", 3), ("params/first/bias", 0), ("params/second/kernel", 2))
    coupling = couple(fun, shapes, x)
    small, small_params, _ = shrink(fun, params, masks, coupling, compensate=means)
    assert small_params["params"]["first"]["kernel"].shape == (3, 3, 2, 4)
    compare(jax.jit(small)(small_params, x), fun(params, x), 1e-5)


def test_a_group_without_a_bias_is_named():
    fun, shapes, args = plain.mlp()
    params = randomised(shapes)
    masks = without(params, ("first", 1), ("bias", 0), ("second", 0))
    means = {**dict.fromkeys(params), "second": jnp.ones(8)}
    coupling = couple(fun, shapes, *args)
    with pytest.warns(UserWarning, match=r"mean of: 'first' \('second' adds to no bias\)\.$"):
        _, small_params, _ = shrink(fun, params, masks, coupling, compensate=means)
    assert (small_params["bias"] == params["bias"][jnp.array([0, 2, 4, 5, 6, 7])]).all()


def test_a_missing_mean_and_a_product_of_activations_are_named():
    def fun(p, x):
        q, k = x @ p["q"], x @ p["k"]
        return (q @ k.mT) @ (jnp.tanh(x @ p["up"]) @ p["down"] + p["bias"][None, None])

    shapes = kernels(q=(3, 6), k=(3, 6), up=(3, 5), down=(5, 2), bias=(2,))
    params = randomised(shapes)
    masks = without(params, ("q", 1), ("k", 1), ("up", 1), ("down", 0))
    coupling = couple(fun, shapes, floats(2, 4, 3))
    with pytest.warns(UserWarning, match=r"'q' \(no kernel consumes it\); 'up' \('down' has no mean\)\.$"):
        shrink(fun, params, masks, coupling, compensate=dict.fromkeys(params))


def test_a_bias_that_something_else_reads_is_left_alone():
    def fun(p, x):
        y = jnp.tanh(x @ p["up"]) @ p["down"]
        return y + p["bias"][None], jnp.square(p["bias"]).sum()

    def between(p, x):
        y = jnp.tanh(x @ p["up"]) @ p["down"]
        return y + p["bias"][None], y

    shapes = kernels(up=(3, 5), down=(5, 2), bias=(2,))
    assert couple(fun, shapes, floats(2, 3)).consumers["down"].biases == ()
    assert couple(between, shapes, floats(2, 3)).consumers["down"].biases == ()


def test_means_of_each_layer_of_a_scan():
    def fun(p, x):
        def block(x, layer):
            return x + jnp.tanh(x @ layer["up"] + layer["in"][None]) @ layer["down"] + layer["bias"][None], None

        return lax.scan(block, x, p)[0]

    shapes = {**kernels(up=(3, 4, 6), down=(3, 6, 4), bias=(3, 4)), "in": floats(3, 6)}
    coupling = couple(fun, shapes, floats(2, 4))
    params, x = randomised(shapes), data(5, 4)
    alive = np.ones((3, 6), bool)
    for layer, dead in zip(alive, ([1, 3], [0, 5], [2, 4]), strict=True):
        layer[dead] = False
    # What does not read its input is constant.
    params["up"] = jnp.where(alive[:, None], params["up"], 0.0)
    keep = jnp.asarray(alive)
    masks = {"up": keep[:, None], "in": keep, "down": keep[:, :, None], "bias": None}
    means = {**dict.fromkeys(params), "down": jnp.where(alive, 7.0, jnp.tanh(params["in"]))}
    small, small_params, plan = shrink(fun, params, masks, coupling, compensate=means)
    assert plan.leaves["up"].keep[2].shape == (3, 4)
    compare(jax.jit(small)(small_params, x), fun(params, x), 1e-5)


def test_a_grouped_convolution_takes_the_mean_of_every_group():
    def fun(p, x):
        hidden = jnp.tanh(x @ p["in"] + p["const"][None, None])
        y = lax.conv_general_dilated(
            hidden, p["conv"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2
        )
        return (y + p["bias"][None, None]) @ p["out"]

    shapes = kernels(**{"in": (3, 8)}, const=(8,), conv=(2, 4, 6), bias=(6,), out=(6, 2))
    params, x = randomised(shapes), data(5, 4, 3)
    dead = jnp.array([1, 5])
    params["in"] = params["in"].at[:, dead].set(0.0)
    keep = ~jnp.isin(jnp.arange(8), dead)
    masks = {**dict.fromkeys(params), "in": keep[None], "const": keep, "conv": keep[:4][None, :, None]}
    hidden = jnp.tanh(x @ params["in"] + params["const"][None, None])
    means = {**dict.fromkeys(params), "conv": hidden.mean((0, 1))}
    small, small_params, _ = shrink(fun, params, masks, couple(fun, shapes, x), compensate=means)
    assert small_params["conv"].shape == (2, 3, 6)
    compare(small(small_params, x), fun(params, x), 1e-5)


def test_a_mean_of_the_wrong_size_is_refused():
    fun, shapes, args = plain.mlp()
    params = randomised(shapes)
    masks = without(params, ("first", 1), ("bias", 0), ("second", 0))
    means = {**dict.fromkeys(params), "second": jnp.ones(7)}
    with (
        pytest.warns(UserWarning, match="adds to no bias"),
        pytest.raises(ValueError, match=r"mean of each input of 'second', 8 numbers; it has shape \(7,\)"),
    ):
        shrink(fun, params, masks, couple(fun, shapes, *args), compensate=means)


def test_means_and_weights_that_are_nan_reach_no_bias():
    fun, shapes, args = plain.mlp()
    params = {**randomised(shapes)}
    masks = without(params, ("first", 1), ("bias", 0), ("second", 0))
    coupling = couple(fun, shapes, *args)
    means = {**dict.fromkeys(params), "second": jnp.ones(8).at[1].set(jnp.nan)}
    with (
        pytest.warns(UserWarning, match="adds to no bias"),
        pytest.raises(ValueError, match=r"means that `compensate` has of 'second' hold NaN"),
    ):
        shrink(fun, params, masks, coupling, compensate=means)
    params["second"] = params["second"].at[0].set(jnp.inf)
    with (
        pytest.warns(UserWarning, match="adds to no bias"),
        pytest.raises(ValueError, match=r"weights of 'second' hold NaN or infinity"),
    ):
        shrink(fun, params, masks, coupling, compensate={**means, "second": jnp.ones(8)})


def test_means_have_the_structure_of_the_parameters():
    fun, shapes, args = plain.mlp()
    params = randomised(shapes)
    masks = without(params, ("first", 1), ("bias", 0), ("second", 0))
    with pytest.raises(ValueError, match=r"The tree `compensate` must have the structure .* nothing at 'bias'"):
        shrink(fun, params, masks, couple(fun, shapes, *args), compensate={"second": jnp.ones(8)})


def biased(fun, params, *args):
    found = couple(fun, params, *args).consumers
    return {path: [bias.path for bias in consumer.biases] for path, consumer in found.items()}


def test_biases_of_whole_networks_are_found(relaxed):
    fun, params, args = linen.CASES["vit"].build()
    found = biased(fun, params, *args)
    assert found
    for kernel, biases in found.items():
        assert biases == [kernel.replace("kernel", "bias")]
    fun, params, args = linen.CASES["resnet_eval"].build()
    found = biased(fun, params, *args)
    assert found.pop("params/head/kernel") == ["params/head/bias"]
    assert len(found) == 6
    for biases in found.values():
        assert biases[0].startswith("batch_stats/")
        assert biases[0].endswith("/mean")


def test_a_sum_of_products_shares_a_bias_wherever_it_is_added():
    def fun(p, x):
        gate = x @ p["a"] - ((x @ p["b"]) - p["bias"][None])
        twice = x @ p["c"] + jnp.tanh(x) @ p["c"] + p["other"][None]
        return gate, twice

    shapes = kernels(a=(3, 2), b=(3, 2), c=(3, 2), bias=(2,), other=(2,))
    found = couple(fun, shapes, floats(4, 3)).consumers
    assert [(bias.path, bias.sign) for bias in found["a"].biases] == [("bias", 1)]
    assert [(bias.path, bias.sign) for bias in found["b"].biases] == [("bias", -1)]
    assert found["c"].biases == (), "one mean stands for two inputs"


def test_kernels_laid_out_the_other_way_find_theirs(relaxed):
    model = eqx.nn.Linear(3, 5, key=jax.random.key(0))
    assert biased(lambda m, x: jax.vmap(m)(x), model, floats(4, 3)) == {"weight": ["bias"]}


def test_measured_means_are_used_as_they_are(relaxed):
    """A channel that is constant inside the image is replaced exactly only where no padding is seen."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            hidden = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
            y = nn.relu(nn.Conv(5, (2, 2), padding="VALID", name="second")(hidden))
            return nn.Dense(3, name="head")(nn.relu(nn.Dense(8, name="third")(y.mean((1, 2)))))

    fun, x = Net().apply, data(4, 6, 6, 2)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    params = randomised(shapes)
    first, third = params["params"]["first"], params["params"]["third"]
    first["kernel"] = first["kernel"].at[..., jnp.array([1, 3])].set(0.0)
    third["kernel"] = third["kernel"].at[:, jnp.array([1, 3])].set(0.0)
    statistics = calibrate(fun, params, [x[:1], x[1:]], statistic="variance")
    units = [("first/kernel", 3), ("first/bias", 0), ("second/kernel", 2), ("third/kernel", 1), ("third/bias", 0)]
    masks = without(params, *((f"params/{path}", axis) for path, axis in (*units, ("head/kernel", 0))))
    small, small_params, _ = shrink(fun, params, masks, couple(fun, shapes, x), compensate=statistics)
    assert small_params["params"]["first"]["kernel"].shape == (3, 3, 2, 4)
    assert small_params["params"]["head"]["kernel"].shape == (6, 3)
    compare(jax.jit(small)(small_params, x), fun(params, x), 1e-5)
