"""Every score with every budget and pattern: under `jit`, abstractly, in bfloat16, and on every kind of pytree."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune
from jaxprune import budgets, patterns, scores
from jaxprune._arrays import tree as trees

KEY = jax.random.key(0)


def params(dtype=jnp.float32):
    a, b = jax.random.split(KEY)
    return {
        "first": jax.random.normal(a, (8, 16)).astype(dtype),
        "bias": jnp.ones(16, dtype),
        "last": jax.random.normal(b, (16, 4)).astype(dtype),
    }


def fun(tree, x):
    return jax.nn.relu(x @ tree["first"] + tree["bias"][None]) @ tree["last"]


def loss(tree):
    return jnp.mean(jnp.square(fun(tree, jnp.ones((2, 8), tree["first"].dtype))))


SCORES = {
    "magnitude": scores.magnitude,
    "magnitude l2": functools.partial(scores.magnitude, norm="l2"),
    "random": functools.partial(scores.random, KEY),
    "taylor": lambda tree: scores.taylor(tree, jax.grad(loss)(tree)),
    "snip": lambda tree: scores.snip(tree, jax.grad(loss)(tree)),
    "grasp": functools.partial(scores.grasp, loss),
    "synflow": lambda tree: scores.synflow(fun, tree, jnp.ones((1, 8), tree["first"].dtype)),
    "lamp": scores.lamp,
}
BUDGETS = {
    "uniform": budgets.uniform,
    "global": budgets.global_,
    "normalized": functools.partial(budgets.global_, normalize=True),
    "erk": budgets.erk,
    "by_path": budgets.by_path({"first": 0.5}),
}
PATTERNS = {
    "unstructured": patterns.Unstructured(),
    "block": patterns.Block((4, 4)),
    "channel": patterns.Channel(),
    "2:4": patterns.NM(2, 4),
}
# At a sparsity of one half, of 192 weights in 12 blocks and 20 channels; a channel is one entry of its mask.
KEPT_ENTRIES = {patterns.Unstructured: 96, patterns.Block: 96, patterns.Channel: 10, patterns.NM: 96}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_every_score_budget_and_pattern(name, dtype):
    tree = params(dtype)
    scored = jax.jit(SCORES[name])(tree)
    assert scored["bias"] is None
    for (budget_name, budget), pattern in itertools.product(BUDGETS.items(), PATTERNS.values()):
        if pattern.sparsity is not None and budget_name != "uniform":
            continue
        prune = functools.partial(jaxprune.from_scores, budget=budget, pattern=pattern)
        masks = prune(scored) if pattern.sparsity is not None else prune(scored, 0.5)
        entries = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
        assert entries == KEPT_ENTRIES[type(pattern)], (budget_name, pattern)
        abstract = jax.eval_shape(prune, scored)
        assert jax.tree.map(lambda m: (m.shape, m.dtype), abstract) == jax.tree.map(lambda m: (m.shape, m.dtype), masks)


# Every score with the pattern that compiles fastest, and two of them with the budget that compiles longest.
JITTED = [
    *((name, {"pattern": patterns.NM(2, 4)}) for name in SCORES),
    *((name, {"sparsity": 0.5, "budget": budgets.global_}) for name in ("magnitude", "synflow")),
]


@pytest.mark.parametrize(("name", "options"), JITTED, ids=[f"{name}-{'-'.join(options)}" for name, options in JITTED])
def test_jit_agrees(name, options):
    def prune(tree):
        return jaxprune.from_scores(SCORES[name](tree), **options)

    eager, jitted = prune(params()), jax.jit(prune)(params())
    assert float(jaxprune.overlap(eager, jitted)) > 0.97  # fused arithmetic may turn a near tie


def test_every_strategy_is_its_score_with_its_budget():
    tree = params()
    grads = jax.grad(loss)(tree)
    pairs = [
        (jaxprune.magnitude(tree, 0.7), scores.magnitude(tree), budgets.uniform),
        (jaxprune.random(KEY, tree, 0.7), scores.random(KEY, tree), budgets.uniform),
        (jaxprune.taylor(tree, grads, 0.7), scores.taylor(tree, grads), budgets.uniform),
        (jaxprune.snip(tree, grads, 0.7), scores.snip(tree, grads), budgets.global_),
        (jaxprune.grasp(loss, tree, 0.7), scores.grasp(loss, tree), budgets.global_),
        (jaxprune.lamp(tree, 0.7), scores.lamp(tree), budgets.global_),
        (jaxprune.synflow(fun, tree, jnp.ones((1, 8)), 0.7, rounds=1), SCORES["synflow"](tree), budgets.global_),
    ]
    for got, scored, budget in pairs:
        want = jaxprune.from_scores(scored, 0.7, budget=budget)
        assert float(jaxprune.overlap(got, want)) == 1.0


def test_synflow_in_rounds_saves_a_layer_that_one_round_empties():
    keys = jax.random.split(KEY, 3)
    widths = (8, 64, 64, 4)
    tree = [jax.random.normal(k, (a, b)) for k, a, b in zip(keys, widths, widths[1:], strict=False)]

    def deep(tree, x):
        for kernel in tree:
            x = jax.nn.relu(x @ kernel)
        return x

    masks = jax.jit(lambda s: jaxprune.synflow(deep, tree, jnp.ones((1, 8)), s))(jnp.float32(0.98))
    kept = [int(m.sum()) for m in masks]
    assert sum(kept) == round(sum(k.size for k in tree) * 0.02)
    assert min(kept) > 0
    assert float(jnp.abs(deep(jaxprune.apply(jax.tree.map(jnp.abs, tree), masks), jnp.ones((1, 8)))).sum()) > 0


class Pair(NamedTuple):
    """A NamedTuple of parameters."""

    left: jax.Array
    right: jax.Array | None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel"], meta_fields=["name"])
@dataclasses.dataclass
class Layer:
    """A dataclass of parameters."""

    kernel: jax.Array
    name: str


class Linen(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.Dense(16)(x)))


def _haiku(x):
    return hk.nets.MLP([16, 4])(x)


def kernel(shape=(8, 16)):
    return jax.random.normal(KEY, shape)


# Of few shapes, so that the programs of one serve the others too.
PYTREES = {
    "dict": lambda: {"kernel": kernel()},
    "list and tuple": lambda: [kernel(), (kernel((16, 4)), jnp.ones(3))],
    "NamedTuple with None": lambda: Pair(kernel(), None),
    "dataclass": lambda: Layer(kernel(), "first"),
    "one array": kernel,
    "Flax Linen": lambda: Linen().init(KEY, jnp.ones((1, 8))),
    "Flax NNX": lambda: nnx.state(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.Param),
    "Equinox": lambda: eqx.nn.MLP(8, 4, 16, 2, key=KEY),
    "Haiku": lambda: hk.transform(_haiku).init(KEY, jnp.ones((1, 8))),
    "empty": dict,
}


@pytest.mark.parametrize("kind", PYTREES)
@pytest.mark.dtype_promotion
@pytest.mark.rank_promotion
def test_every_kind_of_pytree(kind):
    tree = PYTREES[kind]()
    masks = jaxprune.magnitude(tree, 0.5)
    pruned = jaxprune.apply(tree, masks)
    assert jax.tree.structure(pruned) == jax.tree.structure(tree)
    assert float(jaxprune.sparsity(pruned)) == (0.0 if kind == "empty" else 0.5)
    packed = jaxprune.unpack(jaxprune.pack(masks))
    assert jax.tree.structure(packed) == jax.tree.structure(masks)
    if kind == "Equinox":
        tree, masks = eqx.filter(tree, eqx.is_inexact_array), eqx.filter(masks, eqx.is_array)
    optimizer = jaxprune.gradual(optax.adam(0.1), jaxprune.magnitude, 0.5, end=0)
    updates, state = optimizer.update(tree, optimizer.init(tree), tree)
    stepped = optax.apply_updates(tree, updates)
    assert jax.tree.structure(jaxprune.masks_of(state)) == jax.tree.structure(masks)
    assert float(jaxprune.sparsity(stepped, jaxprune.masks_of(state))) == (0.0 if kind == "empty" else 0.5)


PATTERN = patterns.NM(2, 4)  # compiles fastest
BY_SIZE = functools.partial(jaxprune.magnitude, pattern=PATTERN)
BY_SCORES = functools.partial(jaxprune.from_scores, pattern=PATTERN)
EXCHANGED = {"end": 1, "drop": 0.5, "pattern": PATTERN}
SPARSE_TRAINING = {
    "rigl": lambda masks, _: jaxprune.rigl(optax.sgd(0.1), masks, **EXCHANGED),
    "sparse_evolution": lambda masks, _: jaxprune.sparse_evolution(KEY, optax.sgd(0.1), masks, **EXCHANGED),
    "acdc": lambda masks, _: jaxprune.acdc(optax.sgd(0.1), BY_SIZE, None, end=1, every=1),
    "dpf": lambda masks, _: jaxprune.dpf(optax.sgd(0.1), BY_SIZE, None, end=1),
    "movement": lambda masks, _: jaxprune.movement(optax.sgd(0.1), BY_SCORES, None, end=1),
    "soft_threshold": lambda _, size: jaxprune.soft_threshold(optax.sgd(0.1), size),
    "group_lasso": lambda _, size: jaxprune.group_lasso(optax.sgd(0.1), size),
}


@pytest.mark.parametrize("kind", ["NamedTuple with None", "Flax NNX"])
@pytest.mark.dtype_promotion
def test_sparse_training_takes_every_kind_of_pytree(kind):
    tree = PYTREES[kind]()
    masks = BY_SIZE(tree)
    size = 0.9 * float(jnp.sqrt(jnp.mean(jnp.square(max(jax.tree.leaves(tree), key=jnp.size)))))  # of a weight by now
    for name, make in SPARSE_TRAINING.items():
        optimizer = make(masks, size)
        updates, state = jax.jit(optimizer.update)(tree, optimizer.init(tree), tree)
        stepped, found = optax.apply_updates(tree, updates), jaxprune.masks_of(state)
        assert jax.tree.structure(stepped) == jax.tree.structure(tree), name
        assert jax.tree.structure(found) == jax.tree.structure(masks), name
        jax.tree.map(np.testing.assert_array_equal, stepped, jaxprune.apply(stepped, found))
        if name in ("soft_threshold", "group_lasso"):
            assert 0 < float(jaxprune.sparsity(stepped, found)) < 1, name
        else:
            assert float(jaxprune.sparsity(stepped, found)) == 0.5, name


@pytest.mark.parametrize("kind", ["list and tuple", "NamedTuple with None", "dataclass", "Flax NNX"])
@pytest.mark.dtype_promotion
def test_rounds_take_every_kind_of_pytree_and_go_on_from_disk(kind, tmp_path):
    tree = PYTREES[kind]()
    optimizer = jaxprune.masked(optax.sgd(0.1), None)

    def step(params, state, batch):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    trainer = jaxprune.Trainer(
        init=lambda params, masks: jaxprune.masked(optax.sgd(0.1), masks).init(params),
        step=jax.jit(step),
        batches=lambda index, epoch: [jnp.zeros(1)],
        evaluate=jaxprune.sparsity,
    )
    found, again = (
        jaxprune.prune_retrain(
            tree, jaxprune.magnitude, trainer, jaxprune.targets.AtSparsity(0.5, 2), epochs=1, folder=tmp_path
        )
        for _ in range(2)
    )
    assert found.history[-1].sparsity == 0.5
    assert again.history == found.history
    assert jax.tree.structure(again.params) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.masks), (found.params, found.masks))


def test_paths_read_as_people_write_them():
    found = {kind: trees.paths(make()) for kind, make in PYTREES.items()}
    assert found["list and tuple"] == ["0", "1/0", "1/1"]
    assert found["NamedTuple with None"] == ["left"]
    assert found["dataclass"] == ["kernel"]
    assert "params/Dense_0/kernel" in found["Flax Linen"]
    assert found["Flax NNX"] == ["bias", "kernel"]
    assert "layers/0/weight" in found["Equinox"]


@pytest.mark.dtype_promotion
@pytest.mark.rank_promotion
def test_train_state_and_nnx_optimizer():
    module, x = Linen(), jnp.ones((2, 8))
    optimizer = jaxprune.gradual(optax.adam(0.1), jaxprune.magnitude, 0.75, end=1)
    state = TrainState.create(apply_fn=module.apply, params=module.init(KEY, x)["params"], tx=optimizer)

    @jax.jit
    def step(state):
        return state.apply_gradients(
            grads=jax.grad(lambda p: jnp.mean(module.apply({"params": p}, x) ** 2))(state.params)
        )

    for _ in range(3):
        state = step(state)
    assert float(jaxprune.sparsity(state.params)) == 0.75
    assert float(jaxprune.sparsity(state.params, jaxprune.masks_of(state.opt_state))) == 0.75

    model = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    trainer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def nnx_step(model, trainer):
        trainer.update(model, nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model))

    for _ in range(3):
        nnx_step(model, trainer)
    assert float(jaxprune.sparsity(nnx.state(model, nnx.Param))) == 0.75


@pytest.mark.dtype_promotion
def test_a_pruning_state_is_checkpointed_like_any_other(tmp_path):
    import orbax.checkpoint as ocp

    tree = params()
    optimizer = jaxprune.gradual(optax.adam(0.1), jaxprune.magnitude, 0.75, end=2)
    _, state = optimizer.update(tree, optimizer.init(tree), tree)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "state", jax.eval_shape(optimizer.init, tree))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True))
    assert float(jaxprune.sparsity(tree, jaxprune.masks_of(restored))) == 0.75
