"""The forecast chooses by its clock alone, and says in words why nothing helps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import _forecast, formats, patterns
from jaxprune.formats import _timing

X = jax.ShapeDtypeStruct((4, 32), jnp.float32)


def model(params, x):
    x = jax.nn.relu(x @ params["first"] + params["bias"][None])
    x = params["outputs first"] @ x.T
    return jax.lax.scan(lambda x, _: (jnp.tanh(x.T @ params["looped"]).T, None), x, None, length=2)[0]


@pytest.fixture
def params():
    shapes = {"first": (32, 64), "bias": (64,), "outputs first": (32, 64), "looped": (32, 32)}
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


@pytest.fixture
def clock(monkeypatch):
    """Seconds of each form by name, and of the whole function: dense, then those that follow."""
    times = {"dense": 8.0, "small": 8.0, "stored": 8.0, "whole": [8.0, 8.0, 8.0]}

    def name(form):
        dense = isinstance(form, formats.Dense)
        return "stored" if not dense else "dense" if form.values.size == 32 * 64 else "small"

    def seconds(calls, repeats, total=0.5):
        is_race = isinstance(calls[0].args[0], formats.Dense)
        row = [times[name(call.args[0])] for call in calls] if is_race else times["whole"][: len(calls)]
        return np.repeat(np.array(row)[:, None], repeats, axis=1)

    monkeypatch.setattr(_timing, "seconds", seconds)
    return times


def units(params):
    return jaxprune.slim(params, 0.5, coupling=jaxprune.couple(model, params, X))


def test_a_smaller_kernel_that_wins_is_chosen(params, clock):
    clock.update(small=2.0, whole=[8.0, 4.0])
    found = jaxprune.forecast(model, params, units(params), X)
    rows = {leaf.path: leaf for leaf in found.leaves}
    assert {path: (leaf.form, leaf.density) for path, leaf in rows.items()} == {
        "first": ("shrink", 0.5),
        "outputs first": ("shrink", 0.5),
    }
    assert (rows["first"].dense, rows["first"].chosen) == (8000, 2000)
    assert rows["first"].reason.startswith("shrunk to 32×32: 4.00 times the best dense; ")
    assert rows["outputs first"].reason.startswith("shrunk to 32×32: 4.00")
    assert (found.best, found.dense, found.shrunk, found.deployed) == ("shrink", 8000, 4000, None)
    assert found.verdict == "Yes: `shrink` it, 2.00 times as fast."
    lines = str(found).splitlines()
    assert len(lines) == 1 + len(found.leaves) + 2
    assert lines[0].split() == ["leaf", "shape", "kept", "best", "dense", "ms", "ms", "why"]
    assert lines[-2] == "the whole function: 8000.000 ms dense, 4000.000 ms shrunk"
    assert found.rows()[0][:6] == ("first", "32×64", "50.0 %", "shrink", "8000.000", "2000.000")


def test_a_stored_form_that_gains_more_stays_chosen(params, clock):
    clock.update(small=4.0, stored=2.0, whole=[8.0, 3.0, 5.0])
    found = jaxprune.forecast(model, params, units(params), X)
    forms = {leaf.path: leaf.form for leaf in found.leaves}
    assert forms["first"] == "shrink", "removed outputs leave no strip shorter"
    assert forms["outputs first"].startswith("blocks of 1×32, ")
    reason = next(leaf.reason for leaf in found.leaves if leaf.path == "outputs first")
    assert reason.startswith("shrunk to 32×32: 2.00 times the best dense; blocks of 1×32, ")
    assert reason.endswith(": 4.00 times the best dense")
    assert (found.best, found.deployed, found.shrunk) == ("deploy", 3000, 5000)
    assert found.verdict == "Yes: `deploy` it, 2.67 times as fast."
    clock.update(small=1.0, whole=[8.0, 3.0, 2.0])
    again = jaxprune.forecast(model, params, units(params), X)
    assert {leaf.form for leaf in again.leaves if leaf.path != "looped"} == {"shrink"}
    assert (again.best, again.deployed) == ("shrink", 3000), "the stored forms are tried as a whole, too"


def test_scattered_zeros_help_nothing_and_the_reason_is_said(params, clock):
    masks = jaxprune.magnitude(params, pattern=patterns.NM(2, 4))
    found = jaxprune.forecast(model, params, masks, X)
    assert {leaf.form for leaf in found.leaves} == {"dense"}
    reasons = {leaf.path: leaf.reason for leaf in found.leaves}
    assert "too few blocks are empty" in reasons["first"]
    assert "loop" in reasons["looped"]
    assert (found.best, found.shrunk, found.deployed) == ("dense", None, None)
    assert found.verdict == (
        "No, nothing is measurably faster than the dense 8000.000 ms: no unit is masked as a whole, so `shrink` "
        "removes nothing; no stored form of a kernel beats the dense one."
    )


def test_what_does_not_gain_as_a_whole_is_not_called_faster(params, clock):
    clock.update(small=2.0, stored=4.0, whole=[8.0, 8.0, 9.0])
    found = jaxprune.forecast(model, params, units(params), X)
    assert {leaf.form for leaf in found.leaves} == {"shrink"}
    assert found.best == "dense"
    assert "shrunk it takes 9000.000 ms; with stored kernels it takes 8000.000 ms" in found.verdict


def test_a_kernel_that_is_no_single_product_is_timed_with_the_whole(clock):
    def conv(params, x):
        x = jax.lax.conv_general_dilated(x, params["taps"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(x).mean((1, 2)) @ params["head"]

    params = {"taps": jnp.ones((3, 3, 2, 8)), "head": jnp.ones((8, 3))}
    x = jnp.ones((2, 5, 5, 2))
    clock.update(whole=[8.0, 4.0])
    coupling = jaxprune.couple(conv, params, x)
    found = jaxprune.forecast(conv, params, jaxprune.slim(params, 0.5, coupling=coupling), x, coupling=coupling)
    taps = next(leaf for leaf in found.leaves if leaf.path == "taps")
    assert taps.form == "dense"
    assert taps.reason.endswith("shrunk, it is timed with the whole function alone")
    assert found.best == "shrink"


def test_the_models_that_are_timed_compute_the_masked_one(params, monkeypatch):
    outputs = []

    def seconds(calls, repeats, total=0.5):
        if total == _forecast._SECONDS:
            outputs.extend(call() for call in calls)
        else:
            return np.array([np.full(repeats, 1.0 if i < 2 else 0.5) for i in range(len(calls))])
        return np.ones((len(calls), repeats))

    monkeypatch.setattr(_timing, "seconds", seconds)
    masks, x = units(params), jnp.asarray(np.random.default_rng(1).normal(size=(4, 32)), jnp.float32)
    jaxprune.forecast(model, params, masks, x)
    expected = model(jaxprune.apply(params, masks), x)
    assert len(outputs) == 3
    for output in outputs:
        np.testing.assert_allclose(output, expected, atol=1e-4)
