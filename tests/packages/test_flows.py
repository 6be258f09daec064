"""Normalising flows: FlowJAX in Equinox, Distrax with networks of Haiku."""

import jax
import jax.numpy as jnp
import pytest
from zoo.case import floats

from packages import build
from packages.case import INPUT, MARKS, Model, check

pytestmark = MARKS


def _flowjax(name: str, **options):
    import equinox as eqx
    import paramax
    from flowjax import distributions, flows

    base = distributions.Normal(jnp.zeros(4))
    model = getattr(flows, name)(jax.random.key(0), base_dist=base, flow_layers=2, nn_width=16, **options)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    return lambda params, x: paramax.unwrap(eqx.combine(params, rest)).log_prob(x), params, (floats(3, 4),)


def _splines():
    import distrax
    import haiku as hk

    def conditioner(x):
        return hk.Linear(4 * 13)(hk.nets.MLP([16, 16], activate_final=True)(x)).reshape(*x.shape, 13)

    def spline(parameters):
        return distrax.RationalQuadraticSpline(parameters, range_min=-3.0, range_max=3.0)

    def fun(x):
        layers = [distrax.MaskedCoupling(jnp.arange(4) % 2 == i, conditioner, spline) for i in range(2)]
        base = distrax.Independent(distrax.Normal(jnp.zeros(4), jnp.ones(4)), 1)
        return distrax.Transformed(base, distrax.Inverse(distrax.Chain(layers))).log_prob(x)

    return build.haiku(fun, floats(3, 4))


_SCANNED = {
    r"bijections/0.*\[0\]": "'scan' steps along it",
    r"bijections/0/.*layers/\d/": f"{INPUT}|scan",
    r"base_dist": INPUT,
}

MODELS = {
    "coupling": Model(
        "Coupling flow, scanned",
        "flowjax",
        lambda: _flowjax("coupling_flow"),
        0.4,
        _SCANNED,
        {r"layers/\d/weight": 2},
        (r"layers/\d/bias",),
    ),
    "autoregressive": Model(
        "Masked autoregressive flow, scanned",
        "flowjax",
        lambda: _flowjax("masked_autoregressive_flow"),
        0.4,
        _SCANNED,
        {r"layers/\d/weight": 2},
        (r"layers/\d/bias",),
    ),
    "splines": Model(
        "Masked coupling by splines",
        "distrax",
        _splines,
        0.4,
        {r"linear_0/w\[0\]": INPUT, r"/linear(_1)?/(w\[1\]|b)": "'cumsum' needs all of it"},
        {r"/w$": 0},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
