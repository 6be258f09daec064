"""Whole modules, which hold functions beside arrays, and models with keyword arguments of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune

eqx = pytest.importorskip("equinox")
X = jnp.sin(jnp.arange(24.0)).reshape(6, 4)
LABELS = np.arange(6) % 3


def network():
    return eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))


def fun(module, x):
    return jax.vmap(module)(x)


def loss(module):
    return jnp.sum(fun(module, X) ** 2)


def arrays(module):
    return eqx.partition(module, eqx.is_inexact_array)


def of_arrays(module):
    """The function of the arrays alone, and these: what a whole module must agree with."""
    params, static = arrays(module)
    return params, lambda function: lambda params, *args: function(eqx.combine(params, static), *args)


@pytest.mark.parametrize(
    "score",
    [lambda params, lift: jaxprune.scores.synflow(lift(fun), params, X),
     lambda params, lift: jaxprune.scores.grasp(lift(loss), params)],
    ids=["synflow", "grasp"],
)  # fmt: skip
def test_scores_of_a_whole_module_are_those_of_its_arrays(score):
    params, lift = of_arrays(network())
    whole, expected = score(network(), lambda function: function), score(params, lift)
    found, wanted = jax.tree.leaves(whole), jax.tree.leaves(expected)
    assert len(found) == len(wanted) == 3
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_straight_through_takes_a_whole_module():
    module = network()
    masks = jaxprune.magnitude(module, 0.5)
    through = jaxprune.straight_through(module, masks)
    np.testing.assert_array_equal(fun(through, X), fun(jaxprune.apply(module, masks), X))
    grads = eqx.filter_grad(lambda m: loss(jaxprune.straight_through(m, masks)))(module)
    expected = eqx.filter_grad(loss)(jaxprune.apply(module, masks))
    np.testing.assert_allclose(grads.layers[0].weight, expected.layers[0].weight, rtol=1e-5)


def test_a_report_takes_a_whole_module():
    module = network()
    masks = jaxprune.magnitude(module, 0.5)
    pruned = jaxprune.apply(module, masks)
    found = jaxprune.report((fun, module), (fun, pruned), X, LABELS, masks=masks, timed=True)
    params, lift = of_arrays(module)
    kept = jaxprune.magnitude(params, 0.5)
    wanted = jaxprune.report((lift(fun), params), (lift(fun), jaxprune.apply(params, kept)), X, LABELS, masks=kept)
    assert found.before[:4] == wanted.before[:4]
    assert found.after[:4] == wanted.after[:4]


def test_a_whole_module_is_deployed():
    module = network()
    masks = jaxprune.magnitude(module, 0.5)
    fast, fast_params, _ = jaxprune.deploy(fun, module, masks, X)
    np.testing.assert_allclose(fast(fast_params, X), fun(jaxprune.apply(module, masks), X), rtol=1e-4, atol=1e-5)


def test_a_whole_module_is_measured_and_shrunk():
    module = network()
    coupling = jaxprune.couple(fun, module, X)
    masks = jaxprune.slim(module, 0.5, coupling=coupling)
    small, small_params, _ = jaxprune.shrink(fun, module, masks, coupling)
    np.testing.assert_allclose(small(small_params, X), fun(jaxprune.apply(module, masks), X), rtol=1e-5, atol=1e-6)
    statistics = jaxprune.calibrate(fun, module, [X])
    assert statistics.layers[0].weight.norm.shape[-1] == 4


PARAMS = {"first": jnp.ones((4, 8)), "second": jnp.ones((8, 3))}


def model(params, x, *, train, shift=None):
    hidden = jax.nn.relu(x @ params["first"]) if train else x @ params["first"]
    return (hidden if shift is None else hidden + shift) @ params["second"]


@pytest.mark.rank_promotion
@pytest.mark.parametrize("shift", [None, jnp.zeros(8)], ids=["static", "array"])
def test_keyword_arguments_of_the_model_are_passed_on(shift):
    kwargs = {"train": True, "shift": shift}
    coupling = jaxprune.couple(model, PARAMS, X, kwargs=kwargs)
    plain = jaxprune.couple(lambda p, x, s: model(p, x, train=True, shift=s), PARAMS, X, shift)
    assert coupling.groups == plain.groups
    assert (len(coupling.groups) == 1) == (shift is None)
    counted = jaxprune.macs(model, PARAMS, X, kwargs=kwargs)
    assert counted.dense == 6 * 8 * (4 + 3)
    assert jaxprune.layout(model, PARAMS, X, kwargs=kwargs).axes["second"].inputs == (0,)
    statistics = jaxprune.calibrate(model, PARAMS, [X], kwargs=kwargs)
    expected = jaxprune.calibrate(lambda p, x: model(p, x, train=True, shift=shift), PARAMS, [X])
    np.testing.assert_allclose(statistics["second"].norm, expected["second"].norm, rtol=1e-6)


def test_a_shrunk_function_passes_keyword_arguments_on():
    coupling = jaxprune.couple(model, PARAMS, X, kwargs={"train": False})
    masks = jaxprune.slim(PARAMS, 0.5, coupling=coupling)
    small, small_params, plan = jaxprune.shrink(model, PARAMS, masks, coupling)
    masked = jaxprune.apply(PARAMS, masks)
    for train in (True, False):
        for again in (small, jaxprune.shrink_fun(model, plan)):
            found = jax.jit(functools.partial(again, train=train))(small_params, X)
            np.testing.assert_allclose(found, model(masked, X, train=train), rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda **kwargs: jaxprune.couple(model, PARAMS, X, **kwargs),
        lambda **kwargs: jaxprune.macs(model, PARAMS, X, **kwargs),
        lambda **kwargs: jaxprune.layout(model, PARAMS, X, **kwargs),
        lambda **kwargs: jaxprune.calibrate(model, PARAMS, [X], **kwargs),
    ],
    ids=["couple", "macs", "layout", "calibrate"],
)
def test_a_keyword_of_the_model_among_the_options_is_shown_its_place(call):
    with pytest.raises(TypeError, match=r"has no option `train`\. If the model .* `kwargs=\{'train': False\}`"):
        call(train=False)


def with_state(variables, x):
    """A batch norm that keeps two averages, of which it reads one, and a generator of random numbers."""
    params, state = variables["params"], variables["state"]
    hidden = jax.nn.relu((x @ params["first"] - state["norm"]["average"]) * params["scale"])
    return hidden @ params["second"], {**state, "rng": {"seed": state["rng"]["seed"] + jnp.uint32(1)}}


@pytest.mark.rank_promotion
def test_state_that_is_only_passed_on_goes_with_what_is_beside_it():
    state = {"norm": {"average": jnp.zeros(8), "hidden": jnp.ones(8)}, "rng": {"seed": jnp.zeros(2, jnp.uint32)}}
    variables = {"params": {**PARAMS, "scale": jnp.arange(1.0, 9.0)}, "state": state}
    coupling = jaxprune.couple(with_state, variables, X)
    (group,) = coupling.groups
    assert {member.path for member in group.members} >= {"state/norm/average", "state/norm/hidden"}
    assert coupling.frozen["state/rng/seed", 0] == "integers, which nothing else is tied to"
    masks = jaxprune.slim(variables, 0.5, coupling=coupling)
    small, small_variables, _ = jaxprune.shrink(with_state, variables, masks, coupling)
    logits, after = small(small_variables, X)
    np.testing.assert_allclose(logits, with_state(jaxprune.apply(variables, masks), X)[0], rtol=1e-5)
    assert after["norm"]["hidden"].shape == (4,)
    np.testing.assert_array_equal(after["rng"]["seed"], [1, 1])
