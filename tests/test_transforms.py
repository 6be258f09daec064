"""Masks inside optax: exact zeros, hidden gradients, refreshes on time, and every wrapper of optax around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import budgets, patterns

pytestmark = pytest.mark.dtype_promotion  # optax promotes integers by itself

OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "lion": optax.lion(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=4),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-2), optax.adam(0.1)),
}
# Where any strategy will do: a count for each line of a kernel compiles twice as fast as one for the kernel.
LINES = functools.partial(jaxprune.magnitude, pattern=patterns.Along())
LAST = {"begin": 3, "end": 10, "every": 4}  # refreshes at 3, 7 and, off the beat, 10


def params(seed=0):
    a, b = jax.random.split(jax.random.key(seed))
    return {"a": {"kernel": jax.random.normal(a, (8, 12)), "bias": jnp.ones(12)}, "b": [jax.random.normal(b, (12, 4))]}


def loss(tree, x):
    hidden = jnp.tanh(x @ tree["a"]["kernel"] + tree["a"]["bias"][None])
    return jnp.mean((hidden @ tree["b"][0] - 1.0) ** 2)


def train(optimizer, steps, tree=None, state=None, spy=None):
    tree = params() if tree is None else tree
    state = optimizer.init(tree) if state is None else state
    x = jax.random.normal(jax.random.key(9), (16, 8))
    traces = []

    @jax.jit
    def step(tree, state):
        traces.append(1)
        updates, state = optimizer.update(jax.grad(loss)(tree, x), state, tree)
        return optax.apply_updates(tree, updates), state

    for i in range(steps):
        tree, state = step(tree, state)
        if spy is not None:
            spy(i, tree, state)
    assert len(traces) == 1
    return tree, state


def cubic(final=0.9):
    return optax.polynomial_schedule(0.0, final, power=3, transition_steps=LAST["end"] - LAST["begin"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_trains_only_what_is_kept(name):
    masks = jaxprune.magnitude(params(), 0.75)
    tree, state = train(jaxprune.masked(OPTIMIZERS[name], masks), 5)
    assert float(jaxprune.sparsity(tree)) >= 0.75
    for path in ("a", "b"):
        kernel, mask = (tree["a"]["kernel"], masks["a"]["kernel"]) if path == "a" else (tree["b"][0], masks["b"][0])
        assert np.all(np.asarray(kernel)[~np.asarray(mask)] == 0.0)
    assert float(loss(tree, jnp.ones((1, 8)))) < float(loss(jaxprune.apply(params(), masks), jnp.ones((1, 8))))
    assert jax.tree.structure(jaxprune.masks_of(state)) == jax.tree.structure(masks)


def test_masked_equals_training_the_kept_weights_alone():
    """Adam on a vector of the kept weights takes the same steps; clipping sees no pruned gradient either."""
    mask = jnp.array([[True, False, True, False]])
    target = jnp.array([[3.0, 100.0, -2.0, 1000.0]])
    inner = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))

    def run(optimizer, w, target):
        state = optimizer.init(w)
        for _ in range(4):
            updates, state = optimizer.update(w - target, state, w)
            w = optax.apply_updates(w, updates)
        return w

    whole = run(jaxprune.masked(inner, mask), jnp.zeros((1, 4)), target)
    alone = run(inner, jnp.zeros((1, 2)), target[:, ::2])
    np.testing.assert_allclose(whole[:, ::2], alone, rtol=1e-6)
    assert whole[:, 1::2].tolist() == [[0.0, 0.0]]


def test_keep_masked_leaves_the_optimizer_its_gradients():
    masks = jaxprune.magnitude(params(), 0.5)
    tree, state = train(optax.chain(optax.sgd(0.1, momentum=0.9), jaxprune.keep_masked(masks)), 3)
    assert float(jaxprune.sparsity(tree)) == 0.5
    trace = state[0][0].trace["a"]["kernel"]
    assert np.any(np.asarray(trace)[~np.asarray(masks["a"]["kernel"])] != 0)


def test_masks_can_be_exchanged_without_compiling_anew():
    optimizer = jaxprune.masked(optax.adam(0.1), jaxprune.magnitude(params(), 0.5))
    traces = []

    @jax.jit
    def step(tree, state):
        traces.append(1)
        updates, state = optimizer.update(jax.grad(loss)(tree, jnp.ones((2, 8))), state, tree)
        return optax.apply_updates(tree, updates), state

    tree, state = step(params(), optimizer.init(params()))
    tree, state = step(tree, state._replace(masks=jaxprune.magnitude(params(), 0.9)))
    assert float(jaxprune.sparsity(tree)) == pytest.approx(0.9, abs=0.01)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "strategy",
    [
        jaxprune.magnitude,
        functools.partial(jaxprune.magnitude, budget=budgets.global_),
        functools.partial(jaxprune.magnitude, budget=budgets.erk),
        functools.partial(jaxprune.magnitude, pattern=patterns.Block((2, 2))),
        jaxprune.lamp,
        jaxprune.slim,
        jaxprune.dft,
        jaxprune.WithGradients(jaxprune.taylor),
        jaxprune.WithKey(jaxprune.random, jax.random.key(1)),
    ],
    ids=["uniform", "global", "erk", "block", "lamp", "slim", "dft", "taylor", "random"],
)
def test_gradual_refreshes_on_time_and_ends_on_its_sparsity(strategy):
    seen = []

    def spy(i, tree, state):
        seen.append(float(jaxprune.sparsity(tree, jaxprune.masks_of(state))))

    tree, state = train(jaxprune.gradual(optax.adam(0.05), strategy, cubic(0.75), **LAST), 13, spy=spy)
    assert seen[:3] == [0.0] * 3
    assert seen[3] == 0.0  # the schedule starts at 0
    assert 0.0 < seen[7] < seen[10]
    assert seen[7] == seen[9]
    assert seen[10] == seen[12] == pytest.approx(0.75, abs=0.03)
    if not isinstance(jaxprune.masks_of(state)["b"][0], jaxprune.Spectral):
        assert float(jaxprune.sparsity(tree)) == seen[12]


@pytest.mark.parametrize("strategy", [jaxprune.magnitude, jaxprune.slim, jaxprune.dft], ids=["single", "slim", "dft"])
def test_packed_masks_train_alike_in_an_eighth_of_the_room(strategy):
    optimizers = [jaxprune.gradual(optax.adam(0.05), strategy, cubic(), **LAST, packed=p) for p in (False, True)]
    (tree, state), (packed_tree, packed_state) = (train(optimizer, 12) for optimizer in optimizers)
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, packed_tree))
    masks, packed = jaxprune.masks_of(state), jaxprune.masks_of(packed_state)
    assert jax.tree.structure(masks) == jax.tree.structure(packed)
    assert jax.tree.all(jax.tree.map(np.array_equal, masks, packed))
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(s.masks)) for s in (state, packed_state)]
    assert sizes[0] / 8 <= sizes[1] <= sizes[0] / 4  # the small leaves are not multiples of eight


def test_gradual_with_a_pattern_that_fixes_the_sparsity():
    strategy = functools.partial(jaxprune.magnitude, pattern=patterns.NM(2, 4))
    tree, _ = train(jaxprune.gradual(optax.adam(0.05), strategy, None, **LAST), 12)
    groups = np.asarray(tree["a"]["kernel"]).reshape(2, 4, 12)
    assert np.all((groups != 0).sum(axis=1) == 2)
    with pytest.raises(TypeError, match=r"NM\(2, 4\)` fixes the sparsity at 0.5; it cannot follow a traced one"):
        jaxprune.gradual(optax.adam(0.05), strategy, cubic(), **LAST).init(params())


@pytest.mark.parametrize("name", ["sgd", "adam", "lion"])
def test_regrown_weights_start_with_zero_moments(name):
    """The sparsity falls again at the last refresh: what comes back has moved by one step only."""
    schedule = optax.join_schedules([optax.constant_schedule(0.9), optax.constant_schedule(0.1)], [7])
    optimizer = jaxprune.gradual(OPTIMIZERS[name], LINES, schedule, **LAST)
    before = {}

    def spy(i, tree, state):
        if i == 9:
            before["mask"] = jaxprune.masks_of(state)["a"]["kernel"]
            for leaf in jax.tree.leaves(state.inner):
                if leaf.shape == (8, 12):
                    assert np.all(np.asarray(leaf)[~np.asarray(before["mask"])] == 0.0)

    tree, state = train(optimizer, 11, spy=spy)
    after = jaxprune.masks_of(state)["a"]["kernel"]
    assert int((after & ~before["mask"]).sum()) > 50
    del tree


def wrapped(optimizer_of):
    """Each way in which optax wraps an optimizer, by name."""
    return {
        "chain": lambda: optax.chain(optax.clip(1.0), optimizer_of(optax.adam(0.05))),
        "MultiSteps": lambda: optax.MultiSteps(optimizer_of(optax.adam(0.05)), every_k_schedule=2),
        "inject_hyperparams": lambda: optax.inject_hyperparams(lambda rate: optimizer_of(optax.adam(rate)))(rate=0.05),
        "inside": lambda: optimizer_of(optax.inject_hyperparams(optax.adam)(learning_rate=0.05)),
        "apply_if_finite": lambda: optax.apply_if_finite(optimizer_of(optax.adam(0.05)), 3),
    }


@pytest.mark.parametrize("wrapper", wrapped(None))
@pytest.mark.parametrize("kind", ["masked", "gradual"])
def test_wrappers(wrapper, kind):
    masks = jaxprune.magnitude(params(), 0.75)
    makers = {
        "masked": lambda inner: jaxprune.masked(inner, masks),
        "gradual": lambda inner: jaxprune.gradual(inner, LINES, 0.75, end=2),
    }
    tree, state = train(wrapped(makers[kind])[wrapper](), 8)
    assert float(jaxprune.sparsity(tree)) == 0.75
    assert float(jaxprune.sparsity(tree, jaxprune.masks_of(state))) == 0.75


@pytest.mark.parametrize("kind", ["masked", "gradual"])
def test_multi_transform_prunes_each_part_by_its_own(kind):
    labels = {"a": {"kernel": "first", "bias": "first"}, "b": ["second"]}
    masks = jaxprune.magnitude(params(), 0.75)
    first = {
        "masked": jaxprune.masked(optax.adam(0.05), masks),
        "gradual": jaxprune.gradual(optax.adam(0.05), LINES, 0.75, end=2),
    }[kind]
    second = jaxprune.gradual(optax.sgd(0.05), LINES, 0.5, end=2)
    tree, state = train(optax.multi_transform({"first": first, "second": second}, labels), 5)
    found = jaxprune.masks_of(state)
    assert float(jaxprune.sparsity([tree["a"]["kernel"]])) == 0.75
    assert float(jaxprune.sparsity(tree["b"])) == 0.5
    assert found["a"]["bias"] is None
    assert int(found["b"][0].sum()) == 24


def test_extra_arguments_reach_the_optimizer():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        del params, extra
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    for optimizer in (
        jaxprune.masked(inner, jaxprune.magnitude(params(), 0.5)),
        jaxprune.gradual(inner, jaxprune.magnitude, 0.5, end=0),
    ):
        optimizer.update(params(), optimizer.init(params()), params(), value=7.0)
    assert seen == [7.0, 7.0]


def test_scan_and_vmap():
    optimizer = jaxprune.gradual(optax.adam(0.05), LINES, cubic(0.75), **LAST)
    x = jax.random.normal(jax.random.key(9), (16, 8))

    def run(tree):
        def step(carry, _):
            tree, state = carry
            updates, state = optimizer.update(jax.grad(loss)(tree, x), state, tree)
            return (optax.apply_updates(tree, updates), state), None

        return jax.lax.scan(step, (tree, optimizer.init(tree)), None, length=12)[0][0]

    looped, _ = train(optimizer, 12)
    np.testing.assert_allclose(jax.jit(run)(params())["a"]["kernel"], looped["a"]["kernel"], rtol=1e-4, atol=1e-5)
    both = jax.jit(jax.vmap(run))(jax.tree.map(lambda a, b: jnp.stack([a, b]), params(0), params(1)))
    assert [int((k != 0).sum()) for k in both["a"]["kernel"]] == [24, 24]


def test_frequency_masks_are_projected_in_the_step():
    masks = jaxprune.dft(params(), 0.75)
    start = jaxprune.apply(params(), masks)
    tree, _ = train(jaxprune.masked(optax.adam(0.05), masks), 6, tree=start)
    np.testing.assert_allclose(jaxprune.apply(tree, masks)["a"]["kernel"], tree["a"]["kernel"], atol=1e-5)
    assert float(jnp.abs(tree["a"]["kernel"] - start["a"]["kernel"]).max()) > 0.05


def test_mixed_precision_lands_on_exact_zeros():
    tree = {"kernel": jnp.linspace(-1, 1, 32).reshape(4, 8).astype(jnp.bfloat16)}
    optimizer = jaxprune.masked(optax.sgd(0.1), jaxprune.magnitude(tree, 0.5))
    for dtype in (jnp.float32, jnp.bfloat16):
        grads = {"kernel": jnp.ones((4, 8), dtype)}
        updates, _ = optimizer.update(grads, optimizer.init(tree), tree)
        assert int((optax.apply_updates(tree, updates)["kernel"] == 0).sum()) == 16


def test_straight_through_is_dense_backward_and_exact_forward():
    tree = {"kernel": jnp.array([[1.0, jnp.nan]])}
    masks = {"kernel": jnp.array([[True, False]])}
    value, grad = jax.value_and_grad(lambda t: jnp.sum(jaxprune.straight_through(t, masks)["kernel"] ** 2 + 0.0))(tree)
    assert float(value) == 1.0
    assert grad["kernel"].tolist() == [[2.0, 0.0]]
    assert jax.jvp(lambda t: jaxprune.straight_through(t, masks), (tree,), (tree,))[1]["kernel"][0, 0] == 1.0


def test_errors_say_what_to_do():
    tree, optimizer = params(), jaxprune.masked(optax.sgd(0.1), jaxprune.magnitude(params(), 0.5))
    with pytest.raises(
        ValueError, match=r"`masked` needs the parameters: call `optimizer.update\(grads, state, params\)`"
    ):
        optimizer.update(tree, optimizer.init(tree))
    with pytest.raises(ValueError, match=r"'b/0' has shape \(12, 4\); its mask has shape \(4, 12\)"):
        jaxprune.masked(optax.sgd(0.1), {"a": {"kernel": None, "bias": None}, "b": [jnp.ones((4, 12), bool)]}).init(
            tree
        )
    with pytest.raises(ValueError, match=r"holds no masks; build the optimizer with"):
        jaxprune.masks_of(optax.adam(0.1).init(tree))
    with pytest.raises(ValueError, match=r"0 <= begin <= end and every >= 1; got begin=5, end=3"):
        jaxprune.gradual(optax.sgd(0.1), jaxprune.magnitude, 0.5, begin=5, end=3)


def test_a_weight_that_gradual_brings_back_starts_afresh_in_the_same_update():
    params, grads = {"kernel": jnp.array([[3.0, 1.0]])}, {"kernel": jnp.array([[1.0, 2.0]])}

    def alternate(params, sparsity):
        del params
        return {"kernel": jnp.array([[True, False]]) | (sparsity < 0.5)}

    optimizer = jaxprune.gradual(optax.trace(0.9), alternate, lambda count: (count % 2 == 0) * 1.0, end=9)
    state = optimizer.init(params)
    for kept, moment in ((False, 0.0), (True, 2.0), (False, 0.0), (True, 2.0)):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert jaxprune.masks_of(state)["kernel"][0, 1] == kept
        assert state.inner.trace["kernel"][0, 1] == moment
        assert params["kernel"][0, 1] == moment  # from 0, by the gradient alone
