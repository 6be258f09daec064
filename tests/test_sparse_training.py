"""Sparse training: what is exchanged and when, by hand; what is forgotten; the wrappers of optax around it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import budgets, patterns
from jaxprune._transforms._regrow import exchange

pytestmark = pytest.mark.dtype_promotion  # optax promotes integers by itself

OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "lion": optax.lion(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=1000, momentum=0.9),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), every_k_schedule=2).gradient_transformation(),
    "multi_transform": optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, {"a": {"kernel": "a", "bias": "a"}, "b": ["b"]}
    ),
}


@functools.lru_cache
def params():
    a, b = jax.random.split(jax.random.key(0))
    return {"a": {"kernel": jax.random.normal(a, (8, 12)), "bias": jnp.ones(12)}, "b": [jax.random.normal(b, (12, 4))]}


def loss(tree, x):
    hidden = jnp.tanh(x @ tree["a"]["kernel"] + tree["a"]["bias"][None])
    return jnp.mean((hidden @ tree["b"][0] - 1.0) ** 2)


# One leaf compiles faster than two, and a count for each of its lines faster than one for the leaf.
ONE = jaxprune.filters.named("a/kernel")
LINES = {"pattern": patterns.Along()}


@functools.lru_cache
def start(sparsity=0.75, **options):
    return jaxprune.random(jax.random.key(5), params(), sparsity, **options)


def train(optimizer, steps, tree=None, spy=lambda *_: None):
    tree = params() if tree is None else tree
    state = optimizer.init(tree)
    x = jax.random.normal(jax.random.key(9), (16, 8))
    traces = []

    @jax.jit
    def step(tree, state):
        traces.append(1)
        updates, state = optimizer.update(jax.grad(loss)(tree, x), state, tree)
        return optax.apply_updates(tree, updates), state

    for i in range(steps):
        before = state
        tree, state = step(tree, state)
        spy(i, before, tree, state)
    assert len(traces) == 1
    return tree, state


def one_update(optimizer, tree, grads):
    updates, state = optimizer.update(grads, optimizer.init(tree), tree)
    return optax.apply_updates(tree, updates), state


ROW = {"w": jnp.array([[4.0, -3.0, 2.0, -1.0, 0.0, 0.0, 0.0, 0.0]]), "bias": jnp.ones(2), "none": None}
ROW_MASKS = {"w": jnp.array([[True] * 4 + [False] * 4]), "bias": None, "none": None}
ROW_GRADS = {"w": jnp.array([[9.0, 1.0, 5.0, 0.5, 1.0, -7.0, 3.0, 6.0]]), "bias": jnp.ones(2), "none": None}


def kept(masks):
    return np.flatnonzero(np.asarray(masks["w"])).tolist()


def test_rigl_by_hand():
    """Half of four go: 2 and -1. Of all that is not kept, the largest gradients are -7 and 6, before the dropped 5."""
    tree, state = one_update(jaxprune.rigl(optax.sgd(0.1), ROW_MASKS, end=10, drop=0.5), ROW, ROW_GRADS)
    assert kept(jaxprune.masks_of(state)) == [0, 1, 5, 7]
    np.testing.assert_allclose(tree["w"], [[3.1, -3.1, 0, 0, 0, 0, 0, 0]], rtol=1e-6)
    assert tree["bias"].tolist() == pytest.approx([0.9, 0.9])


def test_rigl_takes_a_dropped_weight_back_with_its_value():
    grads = {**ROW_GRADS, "w": jnp.array([[0.0, 0.0, 5.0, 0.0, 1.0, 2.0, 3.0, 4.0]])}
    tree, state = one_update(jaxprune.rigl(optax.sgd(0.1), ROW_MASKS, end=10, drop=0.5), ROW, grads)
    assert kept(jaxprune.masks_of(state)) == [0, 1, 2, 7]
    np.testing.assert_allclose(tree["w"], [[4.0, -3.0, 1.5, 0, 0, 0, 0, 0]], rtol=1e-6)


def test_sparse_evolution_by_hand():
    """The two largest stay; the two that come are the highest of the same draw among the other six."""
    key = jax.random.key(3)
    tree, state = one_update(
        jaxprune.sparse_evolution(key, optax.sgd(0.0), ROW_MASKS, end=10, drop=0.5), ROW, ROW_GRADS
    )
    drawn = jaxprune.scores.random(jax.random.fold_in(key, 0), ROW_GRADS, where=lambda *_: True)["w"][0]
    expected = 2 + np.argsort(-np.asarray(drawn[2:]))[:2]
    assert kept(jaxprune.masks_of(state)) == sorted([0, 1, *expected.tolist()])
    assert tree["w"][0, :2].tolist() == [4.0, -3.0]


def test_each_exchange_of_sparse_evolution_draws_anew():
    seen = []
    optimizer = jaxprune.sparse_evolution(jax.random.key(3), optax.sgd(0.0), start(where=ONE), end=3, every=1, drop=0.5)
    train(optimizer, 4, spy=lambda i, b, t, state: seen.append(np.asarray(state.masks["a"]["kernel"])))
    assert len({mask.tobytes() for mask in seen}) == 4


def test_the_fraction_follows_its_schedule():
    """Cosine from 0.3 to 0 by default: of 40, 12 at first, 6 halfway, none at the end."""
    tree = {"w": jnp.arange(1.0, 81.0)[None] * (jnp.arange(80) < 40)[None]}
    optimizer = jaxprune.rigl(optax.sgd(0.0), {"w": jnp.arange(80)[None] < 40}, end=10, every=5)
    state = optimizer.init(tree)
    update = jax.jit(optimizer.update)
    moved = []
    for _ in range(12):
        before = state.masks["w"]
        _, state = update({"w": jnp.arange(80.0)[None] * ~before}, state, tree)
        moved.append(int((state.masks["w"] & ~before).sum()))
    assert moved == [12, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("method", "pattern", "per_leaf"),
    [
        ("rigl", patterns.Unstructured(), True),
        ("rigl", patterns.Unstructured(), False),
        ("rigl", patterns.NM(1, 4), True),
        ("rigl", patterns.Along(), True),
        ("rigl", patterns.Block((2, 2)), True),
        ("rigl", patterns.Channel(-1), True),
        ("sparse_evolution", patterns.Unstructured(), True),
        ("sparse_evolution", patterns.NM(1, 4), False),
    ],
    ids=str,
)
def test_counts_stay_under_every_pattern(method, pattern, per_leaf):
    budget = budgets.erk if pattern == patterns.Unstructured() else budgets.uniform
    masks = start(None if pattern.sparsity else 0.75, pattern=pattern, budget=budget)
    options = {"end": 4, "every": 2, "drop": 0.5, "per_leaf": per_leaf, "pattern": pattern}
    optimizer = {
        "rigl": lambda: jaxprune.rigl(optax.adam(0.1), masks, **options),
        "sparse_evolution": lambda: jaxprune.sparse_evolution(jax.random.key(1), optax.adam(0.1), masks, **options),
    }[method]()
    tree, state = train(optimizer, 6)
    found = jaxprune.masks_of(state)
    before, after = ([int(m.sum()) for m in jax.tree.leaves(tree_)] for tree_ in (masks, found))
    assert sum(before) == sum(after)
    if per_leaf or pattern.sparsity:
        assert before == after
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(found), strict=True))
    if pattern.sparsity:
        assert np.all(np.asarray(found["a"]["kernel"]).reshape(2, 4, 12).sum(axis=1) == 1)
    if pattern == patterns.Block((2, 2)):
        blocks = np.asarray(found["a"]["kernel"]).reshape(4, 2, 6, 2).sum(axis=(1, 3))
        assert set(blocks.flat) == {0, 4}
    assert found["a"]["bias"] is None
    pruned = jaxprune.apply(tree, found)
    jax.tree.map(np.testing.assert_array_equal, tree, pruned)


def test_exchange_over_all_leaves_moves_weights_between_them():
    tree = {"small": jnp.array([0.1, 0.2, 0.0, 0.0]), "large": jnp.array([5.0, 6.0, 0.0, 0.0])}
    masks = {"small": jnp.array([True, True, False, False]), "large": jnp.array([True, True, False, False])}
    growth = {"small": jnp.zeros(4), "large": jnp.array([0.0, 0.0, 1.0, 2.0])}
    found = exchange(tree, masks, growth, 0.5, per_leaf=False)
    assert {name: mask.astype(int).tolist() for name, mask in found.items()} == {
        "small": [0, 0, 0, 0],
        "large": [1, 1, 1, 1],
    }
    assert int(exchange(tree, masks, growth, 0.5)["small"].sum()) == 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_regrown_starts_at_zero_with_nothing_remembered(name):
    regrown = []

    def spy(i, before, tree, state):
        new = np.asarray(state.masks["a"]["kernel"] & ~before.masks["a"]["kernel"])
        regrown.append(int(new.sum()))
        assert np.all(np.asarray(tree["a"]["kernel"])[new] == 0)
        moments = [leaf for leaf in jax.tree.leaves(state.inner) if leaf.shape == (8, 12)]
        assert moments
        for moment in moments:
            # What adafactor adds to a square to keep it above 0 is not remembered of a weight.
            assert np.all(np.abs(np.asarray(moment))[new] <= 1e-29)

    masks = start(where=ONE, **LINES)
    tree, _ = train(jaxprune.rigl(OPTIMIZERS[name], masks, end=6, every=3, drop=0.5, **LINES), 9, spy=spy)
    assert regrown[0] > 0
    assert regrown[3] > 0
    assert regrown[1] == regrown[2] == regrown[7] == 0
    assert int((tree["a"]["kernel"] != 0).sum()) == 24  # what was regrown has moved by now


def makers():
    cubic = optax.polynomial_schedule(0.0, 0.75, power=3, transition_steps=4)
    by_size = functools.partial(jaxprune.magnitude, where=ONE)
    return {
        "rigl": lambda inner: jaxprune.rigl(inner, start(where=ONE, **LINES), end=4, every=2, **LINES),
        "sparse_evolution": lambda inner: jaxprune.sparse_evolution(
            jax.random.key(1), inner, start(where=ONE, **LINES), end=4, every=2, **LINES
        ),
        "acdc": lambda inner: jaxprune.acdc(inner, by_size, 0.75, end=4, every=2),
        "dpf": lambda inner: jaxprune.dpf(inner, by_size, cubic, end=4),
        "movement": lambda inner: jaxprune.movement(inner, jaxprune.from_scores, cubic, end=4, where=ONE),
        "soft_threshold": lambda inner: jaxprune.soft_threshold(inner, 0.3, end=4),
    }


WRAPPERS = {
    "MultiSteps": lambda make: optax.MultiSteps(make(optax.adam(0.05)), every_k_schedule=2),
    "inject_hyperparams": lambda make: optax.inject_hyperparams(lambda rate: make(optax.adam(rate)))(rate=0.05),
    "multi_transform": lambda make: optax.multi_transform(
        {"mine": make(optax.adam(0.05)), "other": optax.sgd(0.05)},
        {"a": {"kernel": "mine", "bias": "other"}, "b": ["mine"]},
    ),
}


@pytest.mark.parametrize(
    ("method", "wrapper"),
    [*((name, "multi_transform") for name in makers()), *(("rigl", w) for w in WRAPPERS if w != "multi_transform")],
)
def test_wrappers(method, wrapper):
    tree, state = train(WRAPPERS[wrapper](makers()[method]), 12)
    masks = jaxprune.masks_of(state)
    assert masks["a"]["bias"] is None
    kept_weights = jaxprune.apply(tree, masks)
    jax.tree.map(np.testing.assert_array_equal, tree, kept_weights)
    if method == "soft_threshold":
        assert 0.2 < float(jaxprune.sparsity(tree)) < 1
    else:
        assert float(jaxprune.sparsity(tree, masks)) == 0.75


def test_acdc_alternates_and_ends_sparse():
    densities = []
    by_size = functools.partial(jaxprune.magnitude, where=ONE)

    def spy(i, before, tree, state):
        densities.append(float(jaxprune.density(params(), jaxprune.masks_of(state))))

    tree, _ = train(jaxprune.acdc(optax.adam(0.05), by_size, 0.75, begin=2, end=9, every=2), 11, spy=spy)
    assert densities == [1.0, 1.0, 0.25, 0.25, 1.0, 1.0, 0.25, 0.25, 1.0, 0.25, 0.25]
    assert int((tree["a"]["kernel"] == 0).sum()) == 72


def test_acdc_with_a_pattern_that_fixes_the_sparsity():
    strategy = functools.partial(jaxprune.magnitude, pattern=patterns.NM(2, 4))
    tree, _ = train(jaxprune.acdc(optax.adam(0.05), strategy, None, end=4, every=1), 6)
    assert np.all((np.asarray(tree["a"]["kernel"]).reshape(2, 4, 12) != 0).sum(axis=1) == 2)


def test_dpf_equals_training_dense_weights_by_the_pruned_models_gradients():
    optimizer = jaxprune.dpf(optax.adam(0.05), jaxprune.magnitude, 0.5, end=100, decay=0.1)
    tree, state = train(optimizer, 6)
    x = jax.random.normal(jax.random.key(9), (16, 8))
    inner = optax.adam(0.05)
    dense, masks = params(), None
    inner_state = inner.init(dense)
    for _ in range(6):
        grads = jax.grad(loss)(dense if masks is None else jaxprune.apply(dense, masks), x)
        if masks is not None:
            pruned = jax.tree.map(lambda w, k: w - k, dense, jaxprune.apply(dense, masks))
            grads = jax.tree.map(lambda g, p: g + 0.1 * p, grads, pruned)
        updates, inner_state = inner.update(grads, inner_state, dense)
        dense = optax.apply_updates(dense, updates)
        masks = jaxprune.magnitude(dense, 0.5)
    np.testing.assert_allclose(state.dense["a"]["kernel"], dense["a"]["kernel"], atol=1e-4)
    np.testing.assert_allclose(tree["a"]["kernel"], jaxprune.apply(dense, masks)["a"]["kernel"], atol=1e-4)


def test_dpf_lets_pruned_weights_come_back():
    seen = []
    optimizer = jaxprune.dpf(optax.sgd(0.5), functools.partial(jaxprune.magnitude, where=ONE), 0.5, end=20)
    train(optimizer, 20, spy=lambda i, b, t, state: seen.append(np.asarray(state.masks["a"]["kernel"])))
    assert sum(int((after & ~before).sum()) for before, after in itertools.pairwise(seen)) > 0


def test_movement_by_hand():
    """Scores add up minus gradient times weight; the dense value of a pruned weight waits."""
    tree = {"w": jnp.array([[3.0, 1.0, -2.0]]), "bias": jnp.ones(2)}
    optimizer = jaxprune.movement(optax.sgd(0.1), jaxprune.from_scores, 1 / 3, begin=1, end=100)
    grads = {"w": jnp.array([[1.0, -1.0, 1.0]]), "bias": jnp.ones(2)}
    state, update = optimizer.init(tree), jax.jit(optimizer.update)
    assert state.scores["bias"] is None
    for expected in ([[2.9, 1.1, -2.1]], [[0.0, 1.2, -2.2]], [[0.0, 1.3, -2.3]]):
        updates, state = update(grads, state, tree)
        tree = optax.apply_updates(tree, updates)
        np.testing.assert_allclose(tree["w"], expected, rtol=1e-5)
    # -(3 + 2.9 + 2.8), 1 + 1.1 + 1.2, 2 + 2.1 + 2.2: the pruned weight was trained until it was pruned.
    np.testing.assert_allclose(state.scores["w"], [[-8.7, 3.3, 6.3]], rtol=1e-5)
    np.testing.assert_allclose(state.dense["w"][0, 0], 2.8, rtol=1e-5)


def test_soft_threshold_solves_the_lasso():
    """Proximal gradient descent on |w - c|^2 / 2 + 0.5 |w| ends at the soft-thresholded c."""
    target = jnp.array([[3.0, 0.4, -1.0]])
    optimizer = jaxprune.soft_threshold(optax.sgd(0.1), 0.05)
    tree = {"w": jnp.ones((1, 3))}
    state, update = optimizer.init(tree), jax.jit(optimizer.update)
    for _ in range(300):
        updates, state = update({"w": tree["w"] - target}, state, tree)
        tree = optax.apply_updates(tree, updates)
    np.testing.assert_allclose(tree["w"], [[2.5, 0.0, -0.5]], atol=1e-5)
    assert state.masks["w"].tolist() == [[True, False, True]]


def test_after_its_end_the_soft_threshold_lets_the_rest_recover():
    target = jnp.array([[3.0, 0.4, -1.0]])
    optimizer = jaxprune.soft_threshold(optax.sgd(0.1), 0.05, end=100)
    tree = {"w": jnp.ones((1, 3))}
    state, update = optimizer.init(tree), jax.jit(optimizer.update)
    for _ in range(300):
        updates, state = update({"w": tree["w"] - target}, state, tree)
        tree = optax.apply_updates(tree, updates)
    np.testing.assert_allclose(tree["w"], [[3.0, 0.0, -1.0]], atol=1e-5)


def test_group_lasso_prunes_whole_groups():
    optimizer = jaxprune.group_lasso(optax.sgd(0.0), 0.7, where=jaxprune.filters.named("a/kernel"))
    tree, state = train(optimizer, 1)
    kernel = np.asarray(params()["a"]["kernel"])
    size = np.sqrt((kernel**2).mean(axis=0))
    np.testing.assert_allclose(tree["a"]["kernel"], kernel * np.maximum(1 - 0.7 / size, 0), atol=1e-6)
    assert state.masks["a"]["kernel"].shape == (1, 12)
    assert state.masks["b"] == [None]
    blocks = jaxprune.group_lasso(optax.sgd(0.0), 0.9, pattern=patterns.Block((2, 2)))
    tree, _ = train(blocks, 1)
    zeros = (np.asarray(tree["a"]["kernel"]) == 0).reshape(4, 2, 6, 2).sum(axis=(1, 3))
    assert set(zeros.flat) == {0, 4}
    with pytest.raises(ValueError, match="`group_lasso` needs groups that may go whole"):
        jaxprune.group_lasso(optax.sgd(0.1), 0.1, pattern=patterns.NM(2, 4))


@pytest.mark.parametrize("method", [name for name in makers() if name not in ("rigl", "sparse_evolution")])
def test_bfloat16_lands_on_exact_zeros(method):
    tree = {"a": {"kernel": jnp.linspace(-1, 1, 64).reshape(8, 8).astype(jnp.bfloat16)}}
    optimizer = makers()[method](optax.sgd(0.01))
    state, update = optimizer.init(tree), jax.jit(optimizer.update)
    for _ in range(6):
        updates, state = update({"a": {"kernel": jnp.ones((8, 8), jnp.bfloat16)}}, state, tree)
        tree = optax.apply_updates(tree, updates)
    kernel, mask = tree["a"]["kernel"], state.masks["a"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert int((kernel == 0).sum()) == int((~mask).sum()) > 0


@pytest.mark.parametrize("method", [jaxprune.dpf, jaxprune.movement])
def test_a_state_and_its_parameters_can_both_be_donated(method):
    optimizer = method(optax.sgd(0.01), lambda values, _: jax.tree.map(lambda x: x > 0, values), 0.5, end=2)
    tree = {"kernel": jnp.ones((4, 4))}
    step = jax.jit(lambda tree, state: optimizer.update(tree, state, tree), donate_argnums=(0, 1))
    _, state = step(tree, optimizer.init(tree))
    assert tree["kernel"].is_deleted()
    np.testing.assert_allclose(state.dense["kernel"], 0.99)


def test_rewind_goes_back_to_the_snapshot_under_the_masks():
    masks = start()
    snapshot = {"a": {"kernel": jnp.full((8, 12), 7.0), "bias": None}, "b": [jnp.full((12, 4), 7.0)]}
    found = jaxprune.rewind(params(), snapshot, masks)
    assert float(found["a"]["kernel"].sum()) == 7.0 * 24
    assert found["a"]["bias"].tolist() == [1.0] * 12
    with pytest.raises(ValueError, match=r"'b/0' has shape \(12, 4\); the snapshot has \(4, 12\)"):
        jaxprune.rewind(params(), {**snapshot, "b": [jnp.ones((4, 12))]}, masks)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"`rigl` needs 0 <= begin <= end and every >= 1; got begin=5, end=3, every=1"):
        jaxprune.rigl(optax.sgd(0.1), start(), begin=5, end=3, every=1)
    with pytest.raises(TypeError, match=r"'a/kernel' has a frequency mask, and frequencies are not exchanged"):
        jaxprune.rigl(optax.sgd(0.1), jaxprune.dft(params()), end=3).init(params())
    with pytest.raises(ValueError, match=r"this pattern makes masks of shape \(1, 12\). Make the masks by the same"):
        jaxprune.rigl(optax.sgd(0.1), start(), end=3, pattern=patterns.Channel(-1)).init(params())
    masks = {"a": {"kernel": None, "bias": None}, "b": [jnp.ones((4, 12), bool)]}
    with pytest.raises(ValueError, match=r"'b/0' has shape \(12, 4\); its mask has shape \(4, 12\)"):
        jaxprune.rigl(optax.sgd(0.1), masks, end=3).init(params())
    for method, make in makers().items():
        optimizer = make(optax.sgd(0.1))
        with pytest.raises(ValueError, match=f"`{method}` needs the parameters"):
            optimizer.update(params(), optimizer.init(params()))
