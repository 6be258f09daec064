"""Pruning a sparse model further: `within=` of every strategy, and of what learns masks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import budgets, patterns

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (32, 8))


def params():
    a, b = jax.random.split(KEY)
    return {
        "first": jax.random.normal(a, (8, 16)),
        "bias": jnp.ones(16),
        "last": jax.random.normal(b, (16, 4)),
    }


def fun(tree, x):
    return jnp.tanh(x @ tree["first"] + tree["bias"][None]) @ tree["last"]


def loss(tree):
    return jnp.mean(jnp.square(fun(tree, X)))


def calibrated(tree, statistic):
    return jaxprune.calibrate(fun, tree, [X], statistic=statistic)


STRATEGIES = {
    "magnitude": jaxprune.magnitude,
    "magnitude l2": functools.partial(jaxprune.magnitude, norm="l2"),
    "random": functools.partial(jaxprune.random, jax.random.key(2)),
    "lamp": jaxprune.lamp,
    "taylor": lambda p, *args, **options: jaxprune.taylor(p, jax.grad(loss)(p), *args, **options),
    "snip": lambda p, *args, **options: jaxprune.snip(p, jax.grad(loss)(p), *args, **options),
    "grasp": functools.partial(jaxprune.grasp, loss),
    "synflow": lambda p, *args, **options: jaxprune.synflow(fun, p, X[:1], *args, rounds=5, **options),
    "wanda": lambda p, *args, **options: jaxprune.wanda(p, calibrated(p, "norm"), *args, **options),
    "ria": lambda p, *args, **options: jaxprune.ria(p, calibrated(p, "norm"), *args, **options),
    "from_scores": lambda p, *args, **options: jaxprune.from_scores(
        {"first": p["first"], "bias": None, "last": p["last"]}, *args, **options
    ),
}  # fmt: skip


def earlier(sparsity=0.4):
    """Masks that remove the weights that magnitude likes best, and one bias."""
    removed = jaxprune.magnitude(params(), 1 - sparsity)
    flipped = jax.tree.map(jnp.logical_not, removed)
    return {**flipped, "bias": jnp.arange(16) != 3}


def is_subset(masks, of):
    return all(
        bool(jnp.all(jnp.broadcast_to(b, jnp.broadcast_shapes(a.shape, b.shape)) | ~a))
        for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(of), strict=True)
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_was_removed_stays_removed_and_counts(name):
    tree, before = params(), earlier()
    masks = STRATEGIES[name](tree, 0.75, within=before)
    assert is_subset(masks, before)
    np.testing.assert_array_equal(masks["bias"], before["bias"])
    kept = {path: int(masks[path].sum()) for path in ("first", "last")}
    assert sum(kept.values()) == 48  # a quarter of 8 * 16 + 16 * 4, none of it spent on what was removed
    assert not is_subset({**STRATEGIES[name](tree, 0.75), "bias": None}, {**before, "bias": None})


@pytest.mark.parametrize(
    "budget", [budgets.uniform, budgets.global_, budgets.erk, budgets.owl, budgets.cumulative(0.5)]
)
def test_under_every_budget(budget):
    masks = jaxprune.magnitude(params(), budget=budget, within=earlier())
    plain = jaxprune.magnitude(jaxprune.apply(params(), earlier()), budget=budget)
    assert is_subset(masks, earlier())
    # Weights that are 0 already decide nothing, so that the values are those of the sparse model pruned again.
    ours, theirs = jaxprune.apply(params(), masks), jaxprune.apply(jaxprune.apply(params(), earlier()), plain)
    for path in ("first", "last"):
        np.testing.assert_array_equal(ours[path], theirs[path])


PATTERNS = [
    patterns.NM(2, 4), patterns.NM(2, 4, group=4), patterns.Along(), patterns.Block((2, 2)), patterns.Channel(),
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_under_every_pattern(pattern):
    masks = jaxprune.magnitude(params(), 0.5, pattern=pattern, within=earlier())
    assert is_subset(masks, earlier())
    # What the pattern alone would choose in the sparse model, without what was removed.
    chosen = jaxprune.magnitude(jaxprune.apply(params(), earlier()), 0.5, pattern=pattern)
    for path in ("first", "last"):
        expected = jnp.broadcast_to(chosen[path], params()[path].shape) & earlier()[path]
        np.testing.assert_array_equal(masks[path] & (params()[path] != 0), expected)


def test_negative_scores_of_what_was_removed_come_last():
    scores = {"w": -jnp.arange(1.0, 17.0).reshape(4, 4)}
    before = {"w": jnp.arange(16).reshape(4, 4) >= 4}  # the four best are gone
    masks = jaxprune.from_scores(scores, 0.75, within=before)
    np.testing.assert_array_equal(np.flatnonzero(masks["w"]), [4, 5, 6, 7])
    rows = jaxprune.from_scores(scores, 0.75, pattern=patterns.Channel(0), within=before)
    np.testing.assert_array_equal(np.flatnonzero(np.broadcast_to(rows["w"], (4, 4)).all(1)), [1])


def test_a_leaf_with_fewer_than_it_may_keep_keeps_those():
    before = {"w": jnp.arange(16).reshape(4, 4) < 3}
    masks = jaxprune.magnitude({"w": jnp.ones((4, 4))}, 0.5, within=before)
    np.testing.assert_array_equal(masks["w"], before["w"])


def test_a_weight_that_is_0_but_kept_comes_before_what_was_removed():
    before = {"w": jnp.array([[False, False, True, True]])}
    masks = jaxprune.magnitude({"w": jnp.zeros((1, 4))}, 0.5, within=before)
    np.testing.assert_array_equal(masks["w"], before["w"])


def test_units_are_chosen_by_what_is_left_of_them():
    coupling = jaxprune.couple(fun, params(), X)
    before = {"first": jnp.ones((8, 16), bool).at[:, ::2].set(False), "bias": None, "last": None}
    tree = {**params(), "bias": jnp.zeros(16)}
    for options in ({"coupling": coupling}, {"where": lambda path, leaf: path == "first"}):
        masks = jaxprune.slim(tree, 0.5, within=before, **options)
        assert is_subset({"first": masks["first"]}, {"first": before["first"]})
    masks = jaxprune.slim(tree, 0.5, where=lambda path, leaf: path == "first", within=before, round_to=4)
    assert int(masks["first"].any(0).sum()) == 8
    scores = jax.tree.map(jnp.ones_like, tree)
    masks = jaxprune.slim(tree, 0.5, coupling=coupling, scores=scores, within=before)
    assert is_subset({"first": masks["first"]}, {"first": before["first"]})


@pytest.mark.parametrize("remove", ["smallest", "largest"])
def test_outputs_that_are_gone_do_not_return_by_their_variance(remove):
    before = {"first": jnp.arange(16)[None] % 2 == 0, "bias": None, "last": None}
    where = lambda path, leaf: path == "first"  # noqa: E731
    statistics = calibrated(params(), "variance")
    masks = jaxprune.variance(params(), statistics, 0.75, remove=remove, where=where, within=before)
    assert is_subset({"first": masks["first"]}, {"first": before["first"]})
    assert int(masks["first"].sum()) == 4
    thinned = {**before, "first": jnp.broadcast_to(before["first"], (8, 16)).at[0].set(False)}
    masks = jaxprune.variance(params(), statistics, 0.75, remove=remove, where=where, within=thinned)
    assert int(masks["first"].sum()) == 4 * 7


@pytest.mark.parametrize(("keep", "transform"), [("energy", "dft"), ("low", "dct"), ("high", "dft")])
def test_frequencies_that_are_gone_stay_gone(keep, transform):
    before = jaxprune.dft(params(), 0.5, keep="low" if keep == "high" else "high", transform=transform)
    masks = jaxprune.dft(params(), 0.75, keep=keep, transform=transform, within=before)
    for path in ("first", "last"):
        assert not bool(jnp.any(masks[path].keep & ~before[path].keep))
        assert int(masks[path].count(params()[path].shape)) == params()[path].size // 4


def test_masks_of_another_kind_are_refused():
    frequencies = jaxprune.dft(params(), 0.5)
    with pytest.raises(ValueError, match="removes frequencies of 'first'"):
        jaxprune.magnitude(params(), 0.5, within=frequencies)
    with pytest.raises(ValueError, match="frequency mask and a weight mask"):
        jaxprune.dft(params(), 0.5, within=earlier())
    with pytest.raises(ValueError, match="same axes and transform"):
        jaxprune.dft(params(), 0.5, transform="dct", within=frequencies)
    with pytest.raises(ValueError, match="'first' has shape"):
        jaxprune.magnitude(params(), 0.5, within={**earlier(), "first": jnp.ones((3, 3), bool)})
    with pytest.raises(ValueError, match="nothing at 'bias'"):
        jaxprune.magnitude(params(), 0.5, within={"first": earlier()["first"]})


@pytest.mark.parametrize("learns", [False, True], ids=["gradual", "movement"])
def test_masks_in_training_stay_within(learns):
    before = {**earlier(), "bias": None}
    if learns:
        chosen = functools.partial(jaxprune.from_scores, within=before)
        optimizer = jaxprune.movement(optax.sgd(0.1), chosen, 0.75, end=4, every=2)
    else:
        chosen = functools.partial(jaxprune.magnitude, within=before)
        optimizer = jaxprune.gradual(optax.sgd(0.1), chosen, 0.75, begin=0, end=4, every=2)
    tree = jaxprune.apply(params(), before)
    state = optimizer.init(tree)
    for _ in range(5):
        updates, state = jax.jit(optimizer.update)(jax.grad(loss)(tree), state, tree)
        tree = jaxprune.apply_updates(tree, updates, state)
    masks = jaxprune.masks_of(state)
    assert is_subset(masks, {**before, "bias": None})
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) == 48


def test_every_strategy_takes_it():
    strategies = [jaxprune.dft, jaxprune.slim, jaxprune.variance, jaxprune.magnitude, jaxprune.random, jaxprune.lamp,
                  jaxprune.taylor, jaxprune.snip, jaxprune.grasp, jaxprune.synflow, jaxprune.wanda, jaxprune.ria,
                  jaxprune.from_scores]  # fmt: skip
    assert all("within" in inspect.signature(strategy).parameters for strategy in strategies)
    named = {
        name
        for name, value in vars(jaxprune).items()
        if getattr(value, "__module__", "").startswith("jaxprune._strategies")
    }
    assert named == {strategy.__name__ for strategy in strategies}
