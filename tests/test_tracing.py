"""How often things are traced and compiled: once."""

import functools
import logging
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune
from jaxprune import budgets, patterns

pytestmark = pytest.mark.dtype_promotion  # optax promotes integers by itself


def params():
    return {"kernel": jax.random.normal(jax.random.key(0), (16, 8)), "bias": jnp.zeros(8)}


class Compilations(logging.Handler):
    """Counts what XLA compiles."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.names = []

    def emit(self, record):
        if record.getMessage().startswith("Compiling "):
            self.names.append(record.getMessage().split()[1])


@pytest.fixture
def compilations():
    handler = Compilations()
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    with jax.log_compiles(True):
        yield handler.names
    logger.removeHandler(handler)


def test_a_training_step_compiles_once_before_during_and_after_pruning(compilations):
    schedule = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=4)
    optimizer = jaxprune.gradual(optax.adam(0.1), jaxprune.magnitude, schedule, begin=2, end=6, every=2)
    traces = []

    @jax.jit
    def step(tree, state):
        traces.append(1)
        updates, state = optimizer.update(tree, state, tree)
        return optax.apply_updates(tree, updates), state

    tree, state = params(), optimizer.init(params())
    for _ in range(9):
        tree, state = step(tree, state)
    assert len(traces) == 1
    assert sum("step" in name for name in compilations) == 1
    assert int((tree["kernel"] != 0).sum()) == 13


def test_the_final_sparsity_can_be_an_argument():
    traces = []

    @functools.partial(jax.jit, static_argnums=())
    def step(tree, state, final):
        traces.append(1)
        optimizer = jaxprune.gradual(optax.sgd(0.1), jaxprune.magnitude, lambda _: final, end=0)
        updates, _ = optimizer.update(tree, state, tree)
        return optax.apply_updates(tree, updates)

    state = jaxprune.gradual(optax.sgd(0.1), jaxprune.magnitude, lambda _: jnp.float32(0.5), end=0).init(params())
    kept = [int((step(params(), state, jnp.float32(s))["kernel"] != 0).sum()) for s in (0.25, 0.5, 0.9)]
    assert kept == [96, 64, 13]
    assert len(traces) == 1


@pytest.mark.parametrize("budget", [budgets.uniform, budgets.global_, budgets.erk], ids=lambda b: b.__name__)
def test_another_sparsity_needs_no_compilation(budget, compilations):
    prune = jax.jit(functools.partial(jaxprune.magnitude, budget=budget))
    prune(params(), jnp.float32(0.5))
    first = len(compilations)
    assert first > 0
    for sparsity in (0.1, 0.9, 0.999):
        prune(params(), jnp.float32(sparsity))
    assert [name for name in compilations[first:] if "magnitude" in name or "select" in name] == []


@pytest.mark.parametrize("pattern", [patterns.Unstructured(), patterns.NM(2, 4)], ids=str)
def test_outside_jit_nothing_is_compiled_at_all(pattern, compilations):
    tree = jax.block_until_ready(params())
    first = len(compilations)
    masks = jaxprune.magnitude(tree, 0.5, pattern=pattern)
    assert compilations[first:] == []
    assert masks["kernel"].sum() == 64


def test_outside_jit_a_global_budget_searches_on_the_host(compilations):
    scores = jax.tree.map(jnp.abs, {"kernel": params()["kernel"], "bias": None})
    counts = budgets.global_(scores, 0.75, patterns.Unstructured())
    assert int(counts["kernel"]) == 32
    assert [name for name in compilations if "highest" in name] == []


def test_a_dense_leaf_costs_nothing_in_the_step():
    """A leaf whose mask is `None` meets no `select`, of the mask or of anything else."""
    optimizer = jaxprune.masked(optax.sgd(0.1), {"kernel": None, "bias": None})

    def step(tree, state):
        return optimizer.update(tree, state, tree)[0]

    plain = jax.make_jaxpr(lambda tree: optax.sgd(0.1).update(tree, optax.sgd(0.1).init(tree))[0])(params())
    pruned = jax.make_jaxpr(step)(params(), optimizer.init(params()))
    assert len(pruned.eqns) == len(plain.eqns)


def test_selection_never_sorts_the_scores():
    """What is sorted is a sample, or the flags of the groups."""
    size = 1_000_000
    jaxpr = jax.make_jaxpr(lambda s: jaxprune.select(s, 1000))(jnp.ones(size))
    shapes = re.findall(r"\w+\[([\d,]+)\] = sort\[", str(jaxpr))
    assert len(shapes) == str(jaxpr).count(" sort[") > 0
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) < size // 50


def test_large_leaves_are_counted_on_all_cores():
    """XLA may run a loop that it takes for a small one on a single core; the newest JAX does, and marks it so."""
    leaves = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32)] * 12
    compiled = jax.jit(jaxprune.magnitude).lower(leaves).compile().as_text()
    assert not [line for line in compiled.splitlines() if "xla_cpu_small_call" in line and "f32[1048576]" in line]
