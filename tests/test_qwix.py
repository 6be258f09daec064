"""Masks beside Qwix: the same N:M, zeros through quantisation-aware training, and small models in few bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwix
from flax import linen as nn
from qwix._src.core import sparsity
from qwix.contrib.sparsity.sparsity_module import SparsityModule

import jaxprune
from jaxprune import patterns

pytestmark = [
    pytest.mark.dtype_promotion,
    pytest.mark.rank_promotion,
]


@pytest.mark.parametrize(
    ("dtype", "n", "m"), [(jnp.float32, 2, 4), (jnp.bfloat16, 1, 4), (jnp.float32, 3, 4), (jnp.bfloat16, 4, 8)]
)
@pytest.mark.parametrize(("order", "axis"), [("C", None), ("R", -1)])
def test_its_rule_and_our_pattern_keep_the_same_weights(dtype, n, m, order, axis):
    """`C` runs along the contraction of a Flax kernel, as ours does where no axis is given; many weights tie."""
    weights = np.random.default_rng(0).integers(-4, 5, (3, 8, 24))
    kernel = jnp.asarray(weights, dtype)
    theirs = sparsity.get_sparsity_mask(kernel, n, m, order=order)
    ours = jaxprune.magnitude({"kernel": kernel}, pattern=patterns.NM(n, m, axis))["kernel"]
    assert (ours == theirs).all()
    assert float(ours.mean()) == n / m


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flax, about how it reads its variables
def test_its_module_masks_as_ours():
    rule = sparsity.SparsityRule(weight_sparsity_n=2, weight_sparsity_m=4, weight_sparsity_order="C")
    kernel = jax.random.normal(jax.random.key(0), (16, 8))
    _, masked = SparsityModule(kernel.shape, (), rule)(jnp.ones((2, 16)), kernel)
    masks = jaxprune.magnitude({"kernel": kernel}, pattern=patterns.NM(2, 4))
    assert (masked == jaxprune.apply({"kernel": kernel}, masks)["kernel"]).all()


class Perceptron(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.hidden, name="first")(x))
        return nn.Dense(3, name="head")(x)


X = jnp.asarray(np.random.default_rng(1).normal(size=(32, 8)), jnp.float32)
LABELS = jnp.argmax(X[:, :3], axis=-1)


def prepared(model, params, bits):
    rule = qwix.QuantizationRule(weight_qtype=f"int{bits}", act_qtype="int8")
    served = qwix.quantize_model(model, qwix.PtqProvider([rule]))
    return served, qwix.quantize_params(params, jax.eval_shape(served.init, jax.random.key(0), X))


def values_of(params):
    """The integers of each quantised kernel, by the name of its layer."""
    return {name: layer["kernel"].array.qvalue for name, layer in params["params"].items()}


def trained(model, params, optimizer, steps=20):
    def step(carry, _):
        params, state = carry

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, X), LABELS).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), loss(params)

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps))
    return run(params)


def test_zeros_stay_zeros_through_quantisation_aware_training():
    rule = qwix.QtRule(weight_qtype="int8", act_qtype="int8")
    model = qwix.quantize_model(Perceptron(16), qwix.QtProvider([rule]))
    start = Perceptron(16).init(jax.random.key(0), X)
    masks = jaxprune.magnitude(start, pattern=patterns.NM(2, 4))
    grads = jax.grad(lambda params: jnp.square(model.apply(params, X)).sum())(start)
    first, mask = (values["params"]["first"]["kernel"] for values in (grads, masks))
    assert jnp.any(first[~mask] != 0), "its gradient would move them"
    (params, _), losses = trained(model, jaxprune.apply(start, masks), jaxprune.masked(optax.adam(3e-2), masks))
    jaxprune.check_masked(params, masks)
    assert losses[-1] < losses[0] / 2
    for bits in (8, 4):
        for name, values in values_of(prepared(Perceptron(16), params, bits)[1]).items():
            integers, mask = np.asarray(values.astype(jnp.int8)), np.asarray(masks["params"][name]["kernel"])
            assert not integers[~mask].any()
            assert np.mean(integers[mask] != 0) > 0.7


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.25)])
def test_a_shrunk_model_is_quantised_after_training(bits, tolerance):
    """By its native class, whose widths `sizes` says: scales are then those of the outputs that are left."""
    model = Perceptron(16)
    params = model.init(jax.random.key(0), X)
    coupling = jaxprune.couple(model.apply, params, X)
    masks = jaxprune.slim(params, 0.5, coupling=coupling)
    small, small_params, plan = jaxprune.shrink(model.apply, params, masks, coupling)
    width = plan.sizes().shapes["params/first/kernel"][1][1]
    served, few = prepared(Perceptron(width), small_params, bits)
    expected, got = small(small_params, X), served.apply(few, X)
    assert values_of(few)["first"].shape == (8, 8)
    assert few["params"]["first"]["kernel"].array.scale.shape == (1, 8)
    assert 0 < float(jnp.abs(got - expected).max()) < tolerance * float(jnp.abs(expected).max())
