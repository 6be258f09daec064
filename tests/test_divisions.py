"""Models that divide by what pruning makes 0: the masked one is NaN, and that is said."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import couple, shrink

pytestmark = pytest.mark.rank_promotion  # models divide as users write it

PARAMS = {"v": jnp.sin(jnp.arange(40.0)).reshape(5, 8), "g": jnp.ones(8), "out": jnp.ones((8, 3))}
X = jnp.ones((2, 5))


def model(weight):
    return lambda params, x: jax.nn.relu(x @ weight(params["v"], params["g"])) @ params["out"]


def standardised(v, eps=0.0):
    return (v - v.mean(axis=0)) / (v.std(axis=0) + eps)


def fake_quantised(v, least=0.0):
    scale = jnp.maximum(jnp.max(jnp.abs(v), axis=0), least) / 127
    return jnp.round(v / scale) * scale


DIVIDED = {
    "norm": lambda v, g: g * v / jnp.linalg.norm(v, axis=0),
    "norm, kept dims": lambda v, g: v / jnp.linalg.norm(v, axis=0, keepdims=True) * g,
    "deviation": lambda v, g: standardised(v) * g,
    "largest": lambda v, g: fake_quantised(v) * g,
    "rsqrt": lambda v, g: v * jax.lax.rsqrt(jnp.sum(v**2, axis=0)) * g,
    "power": lambda v, g: v * jnp.sum(v**2, axis=0) ** -0.5 * g,
    "integer power": lambda v, g: v * jnp.sum(jnp.abs(v), axis=0, keepdims=True) ** -1 * g,
    "a leaf": lambda v, g: v / g,
    "in a call": lambda v, g: jax.checkpoint(lambda w: w / jnp.linalg.norm(w, axis=0))(v) * g,
}
FINE = {
    "norm": lambda v, g: g * v / (jnp.linalg.norm(v, axis=0) + 1e-6),
    "largest of": lambda v, g: g * v / jnp.maximum(jnp.linalg.norm(v, axis=0), 1e-6),
    "chosen": lambda v, g: g * v / jnp.where(jnp.linalg.norm(v, axis=0) == 0, 1.0, jnp.linalg.norm(v, axis=0)),
    "deviation": lambda v, g: standardised(v, 1e-5) * g,
    "largest": lambda v, g: fake_quantised(v, 1e-8) * g,
    "softmax": lambda v, g: jax.nn.softmax(v, axis=0) * v * g,
    "other axis": lambda v, g: v / jnp.linalg.norm(PARAMS["v"], axis=1, keepdims=True) * g,
    "whole": lambda v, g: v / jnp.linalg.norm(v) * g,
    "number": lambda v, g: v / 3 * g,
}


def halved(params):
    keep = jnp.arange(8) < 4
    return {"v": keep[None], "g": keep, "out": keep[:, None]}


@pytest.mark.parametrize("weight", DIVIDED.values(), ids=DIVIDED)
def test_a_division_by_what_is_pruned_is_said(weight):
    fun = model(weight)
    with pytest.warns(
        UserWarning, match=r"`couple`: the function divides by what is 0 where units of 'v' \('.* at test_"
    ):
        coupling = couple(fun, PARAMS, X)
    assert coupling.divided.keys() == {"v"}
    masks = halved(PARAMS)
    with pytest.warns(UserWarning, match="`shrink`: the function divides by what is 0 where units of 'v'"):
        small, small_params, _ = shrink(fun, PARAMS, masks, coupling)
    assert np.isnan(fun(jaxprune.apply(PARAMS, masks), X)).any()  # so the warning is true
    assert np.isfinite(small(small_params, X)).all()


@pytest.mark.parametrize("weight", FINE.values(), ids=FINE)
def test_a_division_that_is_guarded_is_not(weight):
    fun, masks = model(weight), halved(PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coupling = couple(fun, PARAMS, X)
        assert not coupling.divided
        assert np.isfinite(fun(jaxprune.apply(PARAMS, masks), X)).all()


def test_units_that_stay_are_not_spoken_of():
    """A unit that may not go divides nothing by 0; nor does one that could, until it does."""
    fun = model(DIVIDED["norm"])
    with pytest.warns(UserWarning, match="divides"):
        coupling = couple(fun, PARAMS, X)
    with pytest.warns(UserWarning, match="`shrink` removes nothing: no unit has all its slices masked"):
        shrink(fun, PARAMS, {"v": None, "g": None, "out": None}, coupling)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not couple(fun, PARAMS, X, protect=lambda path, _: path == "v").divided


def test_weight_normalisation_of_equinox_is_said():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    layers = eqx.nn.WeightNorm(eqx.nn.Linear(5, 8, key=keys[0])), eqx.nn.Linear(8, 3, key=keys[1])
    with pytest.warns(UserWarning, match="divides by what is 0 where units of '0/layer/weight'"):
        couple(lambda two, x: two[1](jax.nn.relu(two[0](x))), layers, jnp.ones(5))


def test_a_cosine_head_is_said_where_its_inputs_go():
    def fun(params, x):
        hidden = jax.nn.relu(x @ params["first"])
        classes = params["classes"] / jnp.linalg.norm(params["classes"], axis=1, keepdims=True)
        return hidden @ classes

    params = {"first": jnp.ones((5, 8)), "classes": jnp.ones((8, 3))}
    with pytest.warns(UserWarning, match="units of 'first'"):
        couple(fun, params, X)
