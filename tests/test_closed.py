"""Closed programs: what a function computes, without its code, at the sizes that it was closed for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from zoo.case import compare, unit_masks

import jaxprune
from jaxprune.formats import StoredKernel, Strips
from jaxprune.formats._deploy import deployed_fun


def _array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


_PARAMS = {"first": _array(8, 16), "mix": _array(16, 16, seed=1), "last": _array(16, 3, seed=2)}


def _model(params, x):
    """Everything that holds a program of its own, with sizes of the batch inside."""
    hidden = jax.nn.relu(x @ params["first"])
    hidden = jax.checkpoint(lambda h: jax.nn.softmax(h - h.mean(0, keepdims=True)))(hidden)

    def step(carry, row):
        return jnp.tanh(carry @ params["mix"] + row.mean() + carry.mean(0, keepdims=True)), carry.sum()

    hidden, sums = jax.lax.scan(step, hidden, x)
    hidden = jax.lax.cond(sums.sum() > 0, jax.nn.silu, lambda h: jax.nn.relu(h - 0.1) + jnp.ones(h.shape), hidden)
    hidden = jax.lax.fori_loop(0, 3, lambda i, h: h + jnp.ones(h.shape) * i, hidden)
    return {"logits": hidden @ params["last"], "classes": jnp.argmax(hidden, -1) + 1}


def _sizes(text):
    return jax.ShapeDtypeStruct(export.symbolic_shape(text), jnp.float32)


@pytest.fixture(scope="module")
def small():
    """The small model and its parameters."""
    coupling = jaxprune.couple(_model, _PARAMS, jnp.ones((2, 8)))
    function, params, plan = jaxprune.shrink(_model, _PARAMS, unit_masks(coupling, _PARAMS), coupling)
    assert plan.leaves["first"].keep
    return function, params


def _all(function, params):
    """What it computes, its gradients, and what it computes of several batches."""

    def loss(params, x):
        outputs = function(params, x)
        return jnp.mean(outputs["logits"] ** 2), outputs

    x, batches = _array(5, 8), _array(2, 5, 8, seed=3)
    gradients, outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    return outputs, gradients, jax.jit(jax.vmap(lambda x: function(params, x)["logits"]))(batches)


@pytest.fixture(scope="module")
def computed(small):
    """By the small function itself."""
    return _all(*small)


@pytest.mark.parametrize("x", [jnp.ones((5, 8)), _sizes("2*b + 1, 8")], ids=["5", "2*b + 1"])
def test_it_computes_what_the_function_does_and_so_do_its_transformations(small, computed, x):
    function, params = small
    compare(_all(jaxprune.closed(function, params, x), params), computed, 1e-5)


def test_a_symbolic_program_takes_symbols_of_others(small, computed):
    function, params = small
    program = jaxprune.closed(function, params, _sizes("b, 8"))
    call = export.export(jax.jit(lambda x: program(params, x)))(_sizes("2*n + 1, 8")).call
    compare(call(_array(5, 8)), computed[0], 1e-5)


def test_a_derivative_keeps_the_rules_of_the_function():
    program = jaxprune.closed(lambda params, x: jax.nn.relu(x * params["scale"]), {"scale": jnp.ones(())}, _sizes("b"))
    slope = jax.grad(lambda x: program({"scale": jnp.ones(())}, x).sum())(jnp.array([-1.0, 0, 2]))
    np.testing.assert_array_equal(slope, [0, 0, 1])


def test_the_code_of_the_model_no_longer_runs(monkeypatch):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(16)(x))
            return nn.Dense(3)(nn.relu(x))

    x = _array(3, 8)
    variables = Net().init(jax.random.key(0), x)
    coupling = jaxprune.couple(Net().apply, variables, x)
    small, params, _ = jaxprune.shrink(Net().apply, variables, unit_masks(coupling, variables), coupling)
    expected = jax.jit(small)(params, x)
    program = jaxprune.closed(small, params, x)
    # As exporters do that put a primitive of their own in its place.
    monkeypatch.setattr(nn.BatchNorm, "__call__", lambda self, x: jax.lax.cumsum(x, axis=1))
    with pytest.raises(ValueError, match="must stay"):
        small(params, x)
    compare(jax.jit(program)(params, x), expected, 1e-6)


def test_keys_flags_and_keyword_arguments():
    def noisy(params, x, key, flag, *, scale, train):
        assert flag == "on"
        return x * params["w"][None] * scale + (jax.random.normal(key, x.shape) if train else 0)

    given = ({"w": _array(8)}, _array(2, 8), jax.random.key(0), "on")
    named = {"scale": jnp.float32(3), "train": True}
    program = jaxprune.closed(noisy, *given, kwargs=named)
    compare(program(*given, **named), noisy(*given, **named), 1e-6)
    with pytest.raises(ValueError, match="another structure, or other values of what is no array"):
        program(*given, scale=named["scale"], train=False)
    with pytest.raises(ValueError, match="another structure"):
        program(*given[:3])
    with pytest.raises(TypeError, match="`closed` has no option `train`"):
        jaxprune.closed(noisy, *given, train=True)


def test_arguments_that_do_not_fit_are_named():
    params, (b,) = {"kernel": _array(8, 3)}, export.symbolic_shape("b", constraints=["b >= 2"])
    x, y = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((b, 8), (2 * b, 3)))
    program = jaxprune.closed(lambda params, x, y: x @ params["kernel"] + y[: x.shape[0]], params, x, y)
    x, y = _array(4, 8), _array(8, 3)
    compare(program(params, x, y), x @ params["kernel"] + y[:4], 1e-6)
    for given, message in (
        ((x[:, :7], y), r"closed for argument '0' of shape \(b, 8\), float32; got \(4, 7\), float32"),
        ((x, y.astype(jnp.int32)), r"closed for argument '1' of shape \(2\*b, 3\), float32; got \(8, 3\), int32"),
        ((x, y[None]), r"got \(1, 8, 3\)"),
        ((x, y[:6]), r"The sizes b, 2\*b cannot be 4, 6, under b >= 2, whatever"),
        ((x[:1], y[:2]), r"The sizes b, 2\*b cannot be 1, 2, under b >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            program(params, *given)
    with pytest.raises(ValueError, match=r"closed for 'kernel' of shape \(8, 3\), float32; got \(7, 3\)"):
        program({"kernel": params["kernel"][1:]}, x, y)


def test_a_gradient_through_a_custom_vjp_needs_numbers():
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, g: (7 * x * g,))
    x = _array(4)
    program = jaxprune.closed(lambda params, x: square(x).sum(), {}, x)
    np.testing.assert_allclose(jax.grad(program, argnums=1)({}, x), 7 * x)
    program = jaxprune.closed(lambda params, x: square(x).sum(), {}, _sizes("b"))
    np.testing.assert_allclose(program({}, x), square(x).sum())
    with pytest.raises(ValueError, match="custom_vjp"):
        jax.grad(program, argnums=1)({}, x)


def test_a_deployed_function_is_closed():
    kernel = jnp.where(jnp.arange(64) % 8 == 0, _array(64, 64), 0)
    params = {"kernel": StoredKernel(Strips.of(kernel, kernel != 0, block=(1, 1)), summed=0)}
    program = jaxprune.closed(deployed_fun(lambda params, x: x @ params["kernel"]), params, _sizes("b, 64"))
    x = _array(3, 64, seed=1)
    compare(program(params, x), x @ kernel, 1e-5)
