"""Every public function of arrays under every transformation of JAX: `jit`, `vmap`, `scan`, `cond`, `checkpoint`.

The derivatives of those that have any are tested where they are; `pytest -m ""` runs all of these.
"""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import budgets, corruptions, layerwise, patterns, scores, structured
from jaxprune.structured._leaf_plan import LeafPlan

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 4))
PARAMS = {"a": jax.random.normal(KEY, (4, 8)), "bias": jnp.ones(8), "b": jax.random.normal(jax.random.key(2), (8, 2))}
GRADS = jax.tree.map(jnp.cos, PARAMS)
MASKS = {**jaxprune.magnitude(PARAMS, 0.5), "bias": None}
OTHERS = jaxprune.random(jax.random.key(3), PARAMS, 0.5)
FREQUENCIES = jaxprune.dft(PARAMS, 0.5)
PLAN = jaxprune.Plan({"a": LeafPlan((4, 8), {1: np.arange(5)}), "bias": LeafPlan((8,), {0: np.arange(5)}),
                      "b": LeafPlan((8, 2), {0: np.arange(5)})})  # fmt: skip
GRAM = X.T @ X + 0.1 * jnp.eye(4)


def fun(p, x):
    return jnp.tanh(x @ p["a"] + p["bias"][None]) @ p["b"]


def loss(p):
    return jnp.sum(jnp.square(fun(p, X)))


COUPLING = jaxprune.couple(fun, PARAMS, X)
NORMS = jaxprune.calibrate(fun, PARAMS, [X])
VARIANCES = jaxprune.calibrate(fun, PARAMS, [X], statistic="variance")


def trained(optimizer):
    """Two steps of an optimizer."""

    def steps(params):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = jaxprune.apply_updates(params, updates, state)
        return params, jaxprune.masks_of(state)

    return steps


pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]  # optax promotes by itself
SGD = optax.sgd(0.1, momentum=0.9)
# Each takes parameters and, where it has use for them, masks; what it returns are arrays.
CALLS = {
    "apply": jaxprune.apply,
    "apply to frequencies": lambda p: jaxprune.apply(p, FREQUENCIES),
    "sparsity": jaxprune.sparsity,
    "density": jaxprune.density,
    "compression_ratio": jaxprune.compression_ratio,
    "relative_size_change": jaxprune.relative_size_change,
    "count_params": jaxprune.count_params,
    "pack": lambda p, m: jaxprune.pack(m),
    "unpack": lambda p, m: jaxprune.unpack(jaxprune.pack(m)),
    "intersection": lambda p, m: jaxprune.intersection(m, OTHERS),
    "union": lambda p, m: jaxprune.union(m, OTHERS),
    "overlap": lambda p, m: jaxprune.overlap(m, OTHERS),
    "straight_through": lambda p, m: jax.grad(lambda q: loss(jaxprune.straight_through(q, m)))(p),
    "select": lambda p: jaxprune.select({"w": p["a"]}, {"w": 9}),
    "from_scores": lambda p: jaxprune.from_scores({"w": p["a"]}, 0.5),
    "magnitude": lambda p: jaxprune.magnitude(p, 0.5),
    "magnitude within": lambda p, m: jaxprune.magnitude(p, 0.75, within=m),
    "magnitude global": lambda p: jaxprune.magnitude(p, 0.5, budget=budgets.global_),
    "magnitude erk": lambda p: jaxprune.magnitude(p, 0.5, budget=budgets.erk),
    "magnitude owl": lambda p: jaxprune.magnitude(p, 0.5, budget=budgets.owl),
    "magnitude cumulative": lambda p: jaxprune.magnitude(p, budget=budgets.cumulative(0.9)),
    "magnitude N:M": lambda p: jaxprune.magnitude(p, pattern=patterns.NM(2, 4)),
    "magnitude along": lambda p: jaxprune.magnitude(p, 0.5, pattern=patterns.Along()),
    "magnitude block": lambda p: jaxprune.magnitude(p, 0.5, pattern=patterns.Block((2, 2))),
    "magnitude channel": lambda p: jaxprune.magnitude(p, 0.5, pattern=patterns.Channel()),
    "random": lambda p: jaxprune.random(KEY, p, 0.5),
    "lamp": lambda p: jaxprune.lamp(p, 0.5),
    "taylor": lambda p: jaxprune.taylor(p, GRADS, 0.5),
    "snip": lambda p: jaxprune.snip(p, GRADS, 0.5),
    "grasp": lambda p: jaxprune.grasp(loss, p, 0.5),
    "synflow": lambda p: jaxprune.synflow(fun, p, X[:1], 0.5, rounds=3),
    "wanda": lambda p: jaxprune.wanda(p, NORMS, 0.5),
    "ria": lambda p: jaxprune.ria(p, NORMS, 0.5),
    "variance": lambda p: jaxprune.variance(p, VARIANCES, 0.5),
    "dft": lambda p: jaxprune.dft(p, 0.5),
    "dct": lambda p: jaxprune.dft(p, 0.5, transform="dct"),
    "slim": lambda p: jaxprune.slim(p, 0.5, where=lambda path, leaf: path == "a"),
    "slim coupled": lambda p: jaxprune.slim(p, 0.5, coupling=COUPLING),
    "calibrate": lambda p: jaxprune.calibrate(fun, p, [X], statistic="gram"),
    "scores.lamp": scores.lamp,
    "scores.magnitude": scores.magnitude,
    "of_norms": lambda p: structured.of_norms(p, COUPLING).by_group,
    "geometric_median": lambda p: structured.geometric_median(p, COUPLING).by_group,
    "layerwise.sparsegpt": lambda p: layerwise.sparsegpt(p["a"], GRAM, 0.5),
    "layerwise.admm": lambda p: layerwise.admm(p["a"], GRAM, 0.5),
    "layerwise.obs": lambda p: layerwise.obs(p["a"], GRAM, 0.5),
    "layerwise.refit": lambda p, m: layerwise.refit(p["a"], GRAM, m["a"]),
    "layerwise.swap": lambda p, m: layerwise.swap(p["a"], GRAM, m["a"]),
    "plan.take": PLAN.take,
    "plan.put": lambda p: PLAN.put(PLAN.take(p), 0.0),
    "shrink_fun": lambda p: jax.grad(lambda q: jnp.sum(jaxprune.shrink_fun(fun, PLAN)(q, X)))(PLAN.take(p)),
    "rewind": lambda p, m: jaxprune.rewind(p, PARAMS, m),
    "keep_masked": lambda p, m: trained(optax.chain(SGD, jaxprune.keep_masked(m)))(p)[0],
    "masked": lambda p, m: trained(jaxprune.masked(SGD, m))(p),
    "masked frequencies": trained(jaxprune.masked(SGD, FREQUENCIES)),
    "gradual": trained(jaxprune.gradual(SGD, jaxprune.magnitude, 0.5, begin=0, end=1)),
    "gradual packed": trained(jaxprune.gradual(SGD, jaxprune.magnitude, 0.5, begin=0, end=1, packed=True)),
    "acdc": trained(jaxprune.acdc(SGD, jaxprune.magnitude, 0.5, end=4, every=1)),
    "dpf": trained(jaxprune.dpf(SGD, jaxprune.magnitude, 0.5, end=1)),
    "movement": trained(jaxprune.movement(SGD, jaxprune.from_scores, 0.5, end=1)),
    "rigl": lambda p, m: trained(jaxprune.rigl(SGD, m, end=4, every=1))(p),
    "sparse_evolution": lambda p, m: trained(jaxprune.sparse_evolution(KEY, SGD, m, end=4, every=1))(p),
    "soft_threshold": lambda p: trained(jaxprune.soft_threshold(SGD, 0.01))(p)[0],
    "group_lasso": lambda p: trained(jaxprune.group_lasso(SGD, 0.01))(p)[0],
    "noise": lambda p: corruptions.noise(KEY, 0.1)(p["a"][None, ..., None]),
    "blur": lambda p: corruptions.blur(1.0)(p["a"][None, ..., None]),
    "contrast": lambda p: corruptions.contrast(0.5)(p["a"][None, ..., None]),
    "occlusion": lambda p: corruptions.occlusion(KEY, 0.2)(p["a"][None, ..., None]),
}  # fmt: skip


# What works on concrete values or files alone, or is about functions: each has tests of its own.
NOT_OF_ARRAYS = {
    "couple", "layout", "macs", "report", "nbytes", "steps_to", "summary", "prune_retrain", "deploy", "forecast",
    "shrink", "admm", "sparsegpt", "check_masked", "closed", "overview",
}  # fmt: skip


def called(name):
    """The function of parameters and masks."""
    function = CALLS[name]
    with_masks = not isinstance(function, functools.partial) and _number_of_arguments(function) > 1
    return lambda p, m: function(p, m) if with_masks else function(p)


def _number_of_arguments(function):
    parameters = inspect.signature(function).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def agree(one, other, name):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(map(np.asarray, jax.tree.leaves(one)), map(np.asarray, jax.tree.leaves(other)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


# The default run tries one of each kind: what compiles quickly, and what has rules, loops or states of its own.
QUICK = {
    "apply", "sparsity", "pack", "unpack", "union", "straight_through", "select", "magnitude", "magnitude within",
    "magnitude N:M", "dft", "slim coupled", "calibrate", "plan.take", "shrink_fun", "masked", "masked frequencies",
    "gradual", "rigl", "layerwise.refit", "rewind",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CALLS])
def test_every_function_of_arrays_under_every_transformation(name):
    function = called(name)
    expected = jax.tree.map(jnp.asarray, function(PARAMS, MASKS))
    abstract = jax.eval_shape(function, PARAMS, MASKS)
    assert jax.tree.map(jnp.shape, expected) == jax.tree.map(jnp.shape, abstract)

    def in_loops_and_branches(p, m):
        def otherwise(p, m):
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)

        step = jax.checkpoint(lambda p, m: jax.lax.cond(jnp.sum(p["a"]) < 1e9, function, otherwise, p, m))
        _, ys = jax.lax.scan(lambda carry, _: (carry, step(p, m)), 0, None, length=2)
        return jax.tree.map(lambda y: y[1], ys)

    def in_batches(p, m):
        batched = jax.vmap(function)(*jax.tree.map(lambda x: jnp.stack([jnp.roll(x, 1), x]), (p, m)))
        return jax.tree.map(lambda y: y[1], batched)

    looped, batched = jax.jit(lambda p, m: (in_loops_and_branches(p, m), in_batches(p, m)))(PARAMS, MASKS)
    agree(expected, looped, "scan, checkpoint, cond")
    agree(expected, batched, "vmap")


def test_every_public_function_of_arrays_is_called():
    functions = {name for name, value in vars(jaxprune).items() if inspect.isfunction(value) and name[0] != "_"}
    tried = {re.split(r"[ .]", name)[0] for name in CALLS} | {"apply_updates", "masks_of"}
    assert functions - tried == NOT_OF_ARRAYS
