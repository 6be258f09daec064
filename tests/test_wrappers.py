"""Masks under what wraps optimizers: where they are found, and what `check_masked` says of the parameters."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import jaxprune

START = jnp.arange(1.0, 33).reshape(8, 4)

pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]


def params():
    rng = np.random.default_rng(0)
    return {
        "enc": {"kernel": jnp.asarray(rng.standard_normal((4, 6)), jnp.float32), "bias": jnp.ones(6)},
        "dec": {"kernel": jnp.asarray(rng.standard_normal((6, 2)), jnp.float32)},
    }


def gradual(sparsity=0.5):
    return jaxprune.gradual(optax.adam(0.05), jaxprune.magnitude, sparsity, end=2)


def trained(transform, start, steps=6):
    values, state = start, transform.init(start)
    update = jax.jit(transform.update)
    for _ in range(steps):
        updates, state = update(jax.tree.map(jnp.sin, values), state, values)
        values = optax.apply_updates(values, updates)
    return values, state


INSIDE = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), gradual()),
    "MultiSteps": lambda: optax.MultiSteps(gradual(), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(gradual(), 3),
    "inject_hyperparams": lambda: jaxprune.gradual(
        optax.inject_hyperparams(optax.adam)(learning_rate=0.05), jaxprune.magnitude, 0.5, end=2
    ),
    "partition by leaf": lambda: optax.partition({"a": gradual(), "b": optax.sgd(0.1)}, labels("a", "b")),
    "partition by subtree": lambda: optax.partition({"a": gradual(), "b": gradual(0.75)}, {"enc": "a", "dec": "b"}),
    "one side of a partition": lambda: optax.partition({"a": gradual(), "b": optax.sgd(0.1)}, {"enc": "a", "dec": "b"}),
    "the average inside": lambda: jaxprune.gradual(
        optax.chain(optax.adam(0.05), optax.ema(0.9)), jaxprune.magnitude, 0.5, end=2
    ),
}


def labels(kernel, bias):
    return {"enc": {"kernel": kernel, "bias": bias}, "dec": {"kernel": kernel}}


@pytest.mark.parametrize("name", INSIDE)
def test_masks_are_found_and_fit_the_parameters(name):
    values, state = trained(INSIDE[name](), params())
    masks = jaxprune.masks_of(state)
    jaxprune.check_masked(values, state)
    jaxprune.check_masked(values, masks)
    assert float(jaxprune.sparsity(values, masks)) > 0.3
    applied = jaxprune.apply(values, masks)
    assert jax.tree.structure(applied) == jax.tree.structure(values)
    assert jaxprune.summary(values, masks)
    assert (np.asarray(values["enc"]["kernel"]) == 0).sum() == 12
    jaxprune.masked(optax.sgd(0.1), masks).init(values)


OUTSIDE = {
    "ema": lambda: optax.chain(gradual(), optax.ema(0.9)),
    "scale after": lambda: optax.chain(gradual(), optax.scale(0.5)),
    "decay after": lambda: optax.chain(gradual(), optax.add_decayed_weights(0.1)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_undoes_masks_is_said(name):
    values, state = trained(OUTSIDE[name](), params())
    with pytest.raises(ValueError, match=r"not 0: 'dec/kernel' \(\d+ of 6\), 'enc/kernel' \(\d+ of 12\)"):
        jaxprune.check_masked(values, state)
    jaxprune.check_masked(jaxprune.apply(values, jaxprune.masks_of(state)), state)


def test_lookahead_moves_the_parameters_and_the_masks_go_inside_or_after():
    start = params()
    pair = optax.LookaheadParams.init_synced(start)
    transform = optax.lookahead(gradual(), sync_period=3, slow_step_size=0.5)
    state = transform.init(pair)
    for _ in range(9):
        updates, state = transform.update(jax.tree.map(jnp.sin, pair.fast), state, pair)
        pair = optax.apply_updates(pair, updates)
    masks = jaxprune.masks_of(state)
    with pytest.raises(ValueError, match="not 0"):
        jaxprune.check_masked(pair.slow, masks)
    jaxprune.check_masked(jaxprune.apply(pair.slow, masks), masks)


def test_schedule_free_averages_and_keeps_its_masks_by_apply_updates():
    start = params()
    late = jaxprune.gradual(optax.adam(0.05), jaxprune.magnitude, 0.5, begin=4, end=6)
    transform = optax.contrib.schedule_free(late, learning_rate=0.05)
    values, state = start, transform.init(start)
    for _ in range(9):
        updates, state = transform.update(jax.tree.map(jnp.sin, values), state, values)
        values = optax.apply_updates(values, updates)
    final = optax.contrib.schedule_free_eval_params(state, values)
    with pytest.raises(ValueError, match="not 0"):
        jaxprune.check_masked(final, state)
    jaxprune.check_masked(jaxprune.apply(final, jaxprune.masks_of(state)), state)


def test_sam_goes_inside_since_it_does_arithmetic_with_the_state():
    start = params()
    sam = optax.contrib.sam(optax.adam(0.05), optax.sgd(0.01), sync_period=2)
    jaxprune.check_masked(*trained(jaxprune.gradual(sam, jaxprune.magnitude, 0.5, end=2), start))
    around = optax.contrib.sam(gradual(), optax.sgd(0.01), sync_period=2)
    _, state = around.update(start, around.init(start), start)
    with pytest.raises(TypeError, match="must be a boolean array"):
        jaxprune.check_masked(start, state)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def test_masks_of_an_nnx_optimizer_fit_its_state():
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gradual(), wrt=nnx.Param)
    for _ in range(4):
        optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones((3, 4))) ** 2))(model))
    state = nnx.state(model, nnx.Param)
    masks = jaxprune.masks_of(optimizer.opt_state)
    jaxprune.check_masked(state, optimizer.opt_state)
    assert float(jaxprune.sparsity(state, masks)) == 0.5
    assert jax.tree.structure(jaxprune.apply(state, masks)) == jax.tree.structure(state)
    assert [row.kept for row in jaxprune.summary(state, masks)] == [16, 8]
    transform = jaxprune.masked(optax.sgd(0.1), masks)
    updates, _ = transform.update(state, transform.init(state), state)
    assert jax.tree.structure(updates) == jax.tree.structure(state)


@pytest.mark.parametrize("packed", [False, True])
def test_masks_and_states_serialise_by_flax(packed):
    start = params()
    frequencies = jaxprune.dft(start, 0.5)
    trees = [
        jaxprune.pack(jaxprune.magnitude(start, 0.5)),
        jaxprune.pack(frequencies) if packed else frequencies,
        trained(jaxprune.gradual(optax.adam(0.1), jaxprune.magnitude, 0.5, end=2, packed=packed), start)[1],
    ]
    for values in trees:
        restored = flax.serialization.from_bytes(
            jax.tree.map(jnp.zeros_like, values), flax.serialization.to_bytes(values)
        )
        assert jax.tree.structure(restored) == jax.tree.structure(values)
        jax.tree.map(np.testing.assert_array_equal, restored, values)


def test_a_masked_model_that_divides_by_a_norm_of_zero_and_its_remedy():
    """A removed column divided by its norm is 0/0: a small constant in the norm keeps the gradient finite."""
    start = {"v": jnp.ones((3, 2)), "w": jnp.ones((2, 1))}
    masks = {"v": jnp.array([[True, False]]), "w": None}
    transform = jaxprune.masked(optax.sgd(0.1), masks)

    def loss(p, least):
        norm = jnp.sqrt(jnp.sum(p["v"] ** 2, axis=0, keepdims=True) + least)
        return jnp.sum((p["v"] / norm) @ p["w"])

    for least, is_finite in ((0.0, False), (1e-12, True)):
        masked = jaxprune.apply(start, masks)
        grads = jax.grad(loss)(masked, least)
        updates, _ = transform.update(grads, transform.init(masked), masked)
        new = optax.apply_updates(masked, updates)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new)) == is_finite
    guarded = optax.apply_if_finite(transform, 5)
    updates, _ = guarded.update(jax.grad(loss)(masked, 0.0), guarded.init(masked), masked)
    jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(masked, updates), masked)


def test_masks_inside_of_others_count_too():
    start = params()
    half = jaxprune.magnitude(start, 0.5)
    for transform, sparsity in (
        (jaxprune.masked(gradual(0.75), half), 0.75),
        (jaxprune.gradual(jaxprune.masked(optax.adam(0.05), half), jaxprune.magnitude, 0.25, end=2), 0.5),
    ):
        values, state = trained(transform, start)
        assert float(jaxprune.sparsity(values, jaxprune.masks_of(state))) == pytest.approx(sparsity, abs=0.01)
        jaxprune.check_masked(values, state)


def test_agreement_is_asked_of_values_and_masks():
    start = params()
    masks = jaxprune.magnitude(start, 0.5)
    with pytest.raises(ValueError, match="holds no masks"):
        jaxprune.check_masked(start, optax.adam(0.1).init(start))
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda p: jaxprune.check_masked(p, masks))(start)
    jaxprune.check_masked(jaxprune.apply_updates(start, jax.tree.map(jnp.zeros_like, start), masks), masks)
    narrow = {"kernel": start["enc"]["kernel"].astype(jnp.bfloat16)}
    frequencies = jaxprune.dft(narrow, 0.5)
    jaxprune.check_masked(jaxprune.apply(narrow, frequencies), frequencies)
    with pytest.raises(ValueError, match="off by"):
        jaxprune.check_masked(narrow, frequencies)


@pytest.mark.parametrize("inner", ["adam", "l-bfgs"])
@pytest.mark.parametrize("start", [START, {"kernel": START}], ids=["array", "tree"])
def test_flattened_states_of_a_single_leaf_remember_nothing(inner, start):
    optimizer = {"adam": optax.adam(0.1), "l-bfgs": optax.scale_by_lbfgs(memory_size=2)}[inner]
    transform = jaxprune.gradual(optax.flatten(optimizer), jaxprune.magnitude, 0.75, begin=2, end=2)
    values, state = start, transform.init(start)
    for _ in range(3):
        updates, state = transform.update(jax.tree.map(jnp.cos, values), state, values)
        values = optax.apply_updates(values, updates)
    histories = [x for x in jax.tree.leaves(state.inner) if x.shape[-1:] == (32,)]
    pruned = ~np.asarray(jax.tree.leaves(jaxprune.masks_of(state))[0]).reshape(-1)
    assert len(histories) >= 2
    assert not any(np.asarray(x)[..., pruned].any() for x in histories)
