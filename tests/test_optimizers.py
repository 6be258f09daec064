"""Every optimizer of optax and its contrib under masks: zeros, counts, donation, resuming, shrinking."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxprune

pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]

HALF = 25  # updates, after which a run is interrupted
EXTRA = {
    "noisy_sgd": {"key": 0},
    "galore": {"rank": 2},
    "dog": {"init_step": ("distance", 0.1)},
    "prodigy": {"estim_lr0": 1e-2},
    "dadapt_adamw": {"estim_lr0": 1e-2},
}
LEFT_OUT = {
    "dpsgd": "it takes gradients of single examples",
    "lbfgs": "its line search evaluates the loss",
    "optimistic_adam": "deprecated",
    "schedule_free": "a wrapper; see the docs",
    "schedule_free_adamw": "it moves the parameters by itself; see the docs",
    "schedule_free_sgd": "it moves the parameters by itself; see the docs",
    "sophia": "it evaluates the loss",
}
NOT_EMPTY = ("sm3", "muon")  # fail by themselves on a leaf of size 0
USUAL = ("adam", "adafactor", "adamw", "lion", "muon", "sgd", "sm3")


def optimizers():
    """The functions of optax that make an optimizer, by name."""
    found = {}
    for module in (optax, optax.contrib):
        for name, function in sorted(vars(module).items()):
            is_public = inspect.isfunction(function) and not name.startswith(("_", "scale_by_"))
            rates = (
                [p for p in inspect.signature(function).parameters if p.endswith("learning_rate")] if is_public else []
            )
            if rates and name not in LEFT_OUT:
                found[name] = functools.partial(function, **{rates[0]: 0.01}, **EXTRA.get(name, {}))
    return found


OPTIMIZERS = optimizers()


def params(seed=0):
    rng = np.random.default_rng(seed)
    kernels = {name: rng.standard_normal(shape) for name, shape in (("a", (8, 6)), ("b", (6, 8)), ("none", (0, 6)))}
    return {name: jnp.asarray(kernel, jnp.float32) for name, kernel in (*kernels.items(), ("bias", np.ones(6)))}


def test_optimizers_are_found():
    assert len(OPTIMIZERS) >= 35
    assert set(USUAL) <= set(OPTIMIZERS)


def half(transform):
    """A compiled function that makes half of the updates, some with NaN and infinity at the weights that are pruned."""

    def step(carry, number):
        values, state = carry
        grads = jax.tree.map(
            lambda w: w + 0.1 * jnp.sin(number + jnp.arange(w.size, dtype=w.dtype)).reshape(w.shape), values
        )
        broken = jnp.where(number % 3 == 0, jnp.inf, jnp.nan)
        masks = jaxprune.masks_of(state)
        grads = jax.tree.map(
            lambda grad, mask: grad if mask is None else jnp.where(mask | (number % 2 == 0), grad, broken),
            grads,
            masks,
            is_leaf=lambda leaf: leaf is None,
        )
        updates, state = transform.update(grads, state, values, value=jnp.float32(1.0))
        return (jaxprune.apply_updates(values, updates, state), state), None

    def run(values, state, start):
        return jax.lax.scan(step, (values, state), start + jnp.arange(HALF))[0]

    return jax.jit(run, donate_argnums=1)


@pytest.mark.parametrize("wrapper", ["masked", "gradual"])
@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]
)
def test_fifty_updates_keep_zeros_counts_and_what_was_saved(name, wrapper):
    optimizer, start = optax.with_extra_args_support(OPTIMIZERS[name]()), params()
    if name in NOT_EMPTY:
        del start["none"]
    if wrapper == "masked":
        transform = jaxprune.masked(optimizer, jaxprune.magnitude(start, 0.5))
    else:
        # From its end on the masks stay, so that what is broken is hidden.
        transform = jaxprune.gradual(optimizer, jaxprune.magnitude, 0.5, end=0)
    run = half(transform)
    values, state = run(start, transform.init(start), 0)
    saved = jax.tree.map(jnp.copy, (values, state))
    results = [run(*saved, HALF), run(values, state, HALF)]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        assert jnp.array_equal(one, other, equal_nan=jnp.issubdtype(one.dtype, jnp.floating))
    values, state = results[0]
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves((values, state)) if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    assert [int((values[path] != 0).sum()) for path in ("a", "b")] == [24, 24]
    jaxprune.check_masked(values, state)
    kept = np.asarray(jaxprune.masks_of(state)["a"])
    assert not np.array_equal(values["a"], np.where(kept, params()["a"], 0))
