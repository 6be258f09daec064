"""Whole units of a coupling: scores, budgets, masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import linen, plain
from zoo.case import compare, randomised, size

from jaxprune import budgets, filters, scores, structured
from jaxprune._calibration._calibrate import calibrate
from jaxprune._masks import masking
from jaxprune._strategies import slim
from jaxprune.structured._coupling import couple
from jaxprune.structured._shrink import shrink


@pytest.fixture
def mlp():
    fun, params, args = plain.mlp()
    return fun, randomised(params), couple(fun, params, *args)


def kept(masks):
    """Units kept by the two hidden layers."""
    return int(masks["bias"].sum()), int(masks["last"].sum())


def test_masks_cover_every_slice_and_broadcast(mlp):
    fun, params, coupling = mlp
    masks = slim(params, 0.5, coupling=coupling)
    assert jax.tree.map(jnp.shape, masks) == {"first": (1, 8), "bias": (8,), "second": (8, 6), "last": (6, 1)}
    assert kept(masks) == (4, 3)
    _, small_params, _ = shrink(fun, params, masks, coupling)
    assert small_params["second"].shape == (4, 3)


def test_a_unit_is_scored_by_all_it_owns(mlp):
    _, params, coupling = mlp
    squares = jax.tree.map(jnp.square, params)
    owned = squares["first"].sum(0) + squares["second"].sum(1)
    expected = np.argsort(-np.asarray(owned))[:4]
    assert set(np.flatnonzero(slim(params, 0.5, coupling=coupling)["bias"])) == set(expected)
    largest = jnp.maximum(squares["first"].max(0), squares["second"].max(1))
    masks = slim(params, 0.5, coupling=coupling, aggregate="max")
    assert set(np.flatnonzero(masks["bias"])) == set(np.argsort(-np.asarray(largest))[:4])


@pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
def test_traced_and_concrete_scores_agree(mlp, aggregate):
    _, params, coupling = mlp
    call = functools.partial(slim, coupling=coupling, aggregate=aggregate)
    compare(jax.jit(call)(params, 0.5), call(params, 0.5), 0.0)


def test_a_traced_sparsity_does_not_recompile(mlp):
    _, params, coupling = mlp
    traces = []

    @jax.jit
    def call(params, sparsity):
        traces.append(None)
        return slim(params, sparsity, coupling=coupling)

    assert [kept(call(params, jnp.float32(s))) for s in (0.0, 0.25, 0.5)] == [(8, 6), (6, 4), (4, 3)]
    assert len(traces) == 1


@pytest.mark.parametrize(
    "criterion",
    [
        lambda params: scores.magnitude(params, norm="l1"),
        lambda params: scores.taylor(params, jax.tree.map(jnp.cos, params)),
        lambda params: scores.random(jax.random.key(0), params),
        lambda params: scores.magnitude(params, where=filters.named("bias|last")),
    ],
)
def test_any_weight_score_ranks_units(mlp, criterion):
    _, params, coupling = mlp
    assert kept(slim(params, 0.5, coupling=coupling, scores=criterion(params))) == (4, 3)


def test_the_geometric_median_removes_what_others_replace():
    fun, params, args = plain.mlp()
    coupling = couple(fun, params, *args)
    params = randomised(params)
    # Three copies of the mean are nearest to everything.
    mean = params["first"].mean(1)
    params["first"] = params["first"].at[:, jnp.array([1, 4, 6])].set(mean[:, None])
    unit_scores = structured.geometric_median(params, coupling)
    masks = slim(params, 3 / 8, coupling=coupling, scores=unit_scores)
    assert np.flatnonzero(~masks["bias"]).tolist() == [1, 4, 6]
    brute = [sum(np.linalg.norm(a - b) for b in np.asarray(params["first"]).T) for a in np.asarray(params["first"]).T]
    got = np.asarray(unit_scores.by_group["first"])
    np.testing.assert_allclose(got, np.array(brute) / np.mean(brute), rtol=1e-4)


def test_a_statistic_of_the_outputs_ranks_units(mlp):
    _, params, coupling = mlp
    variance = {"first": jnp.array([5.0, 1, 4, 2, 8, 7, 3, 6]), "second": jnp.arange(6.0), "bias": None, "last": None}
    masks = slim(params, 0.5, coupling=coupling, scores=structured.of_outputs(variance, coupling))
    assert np.flatnonzero(masks["bias"]).tolist() == [0, 4, 5, 7]
    assert np.flatnonzero(masks["last"]).tolist() == [3, 4, 5]


def test_a_statistic_of_the_rank_of_the_kernel_ranks_units_as_a_vector_does(mlp):
    _, _, coupling = mlp
    vectors = {"first": jnp.arange(8.0), "second": jnp.arange(6.0), "bias": None, "last": None}
    rows = {path: value if value is None else value[None] for path, value in vectors.items()}
    compare(structured.of_outputs(rows, coupling).by_group, structured.of_outputs(vectors, coupling).by_group, 0.0)


def test_a_statistic_of_a_scanned_kernel_ranks_the_units_of_each_layer():
    fun, params, args = plain.scanned()()
    params = randomised(params)
    matrices = filters.named("embed|up|down|head")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    moments = calibrate(fun, params, [x], statistic="variance", where=matrices)
    values = scores.variance(params, moments, where=matrices)
    ranked = structured.of_outputs(values, couple(fun, params, *args)).by_group["layers/up"]
    found = np.asarray(moments["layers"]["up"].outputs.variance)[:, 0]
    np.testing.assert_allclose(ranked, found / found.mean(), rtol=1e-6)
    assert ranked.shape == (3, 12)
    assert not np.allclose(ranked[0], ranked[1])


def test_a_unit_without_scores_is_named(mlp):
    _, params, coupling = mlp
    with pytest.raises(ValueError, match="No leaf of the group 'second' has scores"):
        slim(params, 0.5, coupling=coupling, scores=scores.magnitude(params, where=filters.named("first")))


def test_groups_compare_after_normalising(mlp):
    _, params, coupling = mlp
    params = {**params, "second": params["second"] * 10, "last": params["last"] * 10}
    plain_global = slim(params, 0.5, coupling=coupling, budget=budgets.global_, normalize=False)
    normalised = slim(params, 0.5, coupling=coupling, budget=budgets.global_)
    assert sum(kept(plain_global)) == sum(kept(normalised)) == 7
    assert kept(normalised) != kept(plain_global)


def test_budgets_see_groups_by_name(mlp):
    _, params, coupling = mlp
    masks = slim(params, 0.5, coupling=coupling, budget=budgets.by_path({"first": 0.75, "second": 0.0}))
    assert kept(masks) == (2, 6)
    masks = slim(params, None, coupling=coupling, budget=budgets.cumulative(0.6))
    assert all(1 <= k < n for k, n in zip(kept(masks), (8, 6), strict=True))


def test_a_budget_of_macs_is_met_from_below_and_not_by_far(mlp):
    _, params, coupling = mlp
    for fraction in (0.8, 0.5, 0.3):
        masks = slim(params, None, coupling=coupling, budget=structured.macs(coupling, fraction))
        share = coupling.macs(list(kept(masks))) / coupling.macs()
        assert fraction - 0.15 < share <= fraction
    with pytest.raises(ValueError, match="cannot be met"):
        slim(params, None, coupling=coupling, budget=structured.macs(coupling, 0.01))
    with pytest.raises(ValueError, match="Leave it out"):
        slim(params, 0.5, coupling=coupling, budget=structured.macs(coupling, 0.5))


def test_a_budget_of_seconds_follows_the_table(mlp):
    _, params, coupling = mlp
    table = {"first": [np.ceil(k / 4) for k in range(9)], "second": [0.0] * 7}
    masks = slim(params, None, coupling=coupling, budget=structured.latency(coupling, 1.0, table))
    assert kept(masks)[0] <= 4
    assert kept(masks)[1] == 6, "its units cost nothing"
    with pytest.raises(ValueError, match=r"table\['second'\].*needs 7 entries"):
        structured.latency(coupling, 1.0, {**table, "second": [0.0]})


@pytest.mark.parametrize(("round_to", "expected"), [(4, (4, 4)), (3, (3, 3)), (16, (8, 6))])
def test_widths_are_rounded_for_hardware(mlp, round_to, expected):
    _, params, coupling = mlp
    assert kept(slim(params, 0.5, coupling=coupling, round_to=round_to)) == expected


def test_something_always_stays(mlp):
    fun, params, coupling = mlp
    assert kept(slim(params, 1.0, coupling=coupling)) == (1, 1)
    assert kept(slim(params, 1.0, coupling=coupling, keep_at_least=3)) == (3, 3)
    for sparsity in (0.95, 1.0):
        masks = slim(params, sparsity, coupling=coupling, budget=budgets.global_)
        _, small_params, _ = shrink(fun, params, masks, coupling)
        assert min(min(x.shape) for x in jax.tree.leaves(small_params)) >= 1


def test_half_of_a_gated_layer_is_half_of_its_width():
    fun, params, args = plain.glu()
    coupling = couple(fun, params, *args)
    params = randomised(params)
    _, small_params, _ = shrink(fun, params, slim(params, 0.5, coupling=coupling), coupling)
    assert jax.tree.map(jnp.shape, small_params) == {"gate": (4, 4), "up": (4, 4), "down": (4, 4)}


def test_each_layer_of_a_scan_keeps_its_own_best():
    fun, params, args = plain.scanned()()
    coupling = couple(fun, params, *args)
    params = randomised(params)
    masks = slim(params, 0.5, coupling=coupling)
    squares = jax.tree.map(jnp.square, params["layers"])
    owned = np.asarray(squares["up"].sum(1) + squares["down"].sum(2))
    rows = np.asarray(masks["layers"]["bias"])
    assert rows.sum(1).tolist() == [6, 6, 6]
    for row, score in zip(rows, owned, strict=True):
        assert set(np.flatnonzero(row)) == set(np.argsort(-score)[:6])
    small, small_params, _ = shrink(fun, params, masks, coupling)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    compare(jax.jit(small)(small_params, x), fun(masking.apply(params, masks), x), 1e-5)


def test_ties_go_to_the_lowest_index_and_nan_goes_first(mlp):
    _, params, coupling = mlp
    ones = structured.UnitScores(
        {"first": np.ones(8, np.float32), "second": np.array([1, np.nan, 1, 1, 1, 1], np.float32)}
    )
    masks = slim(params, 0.5, coupling=coupling, scores=ones)
    assert np.flatnonzero(masks["bias"]).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(masks["last"]).tolist() == [0, 2, 3]


def test_grouped_convolutions_keep_equal_groups():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        fun, params, args = linen.CASES["grouped"].build()
        coupling = couple(fun, params, *args)
        params = randomised(params)
        masks = slim(params, 0.5, coupling=coupling)
        _, small_params, _ = shrink(fun, params, masks, coupling)
    before, after = params["params"]["grouped"]["kernel"].shape, small_params["params"]["grouped"]["kernel"].shape
    assert before == (3, 3, 4, 12)
    assert after == (3, 3, 2, 6)
    assert size(small_params) < size(params)


def test_masks_train_inside_jit(mlp):
    from jaxprune._transforms import gradual, masks_of

    fun, params, coupling = mlp
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    strategy = functools.partial(slim, coupling=coupling)
    schedule = optax.constant_schedule(0.5)
    optimizer = gradual(optax.sgd(0.01), strategy, schedule, begin=0, end=3, every=1)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.square(fun(p, x)).sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(4):
            params, state = step(params, state)
    masks = masks_of(state)
    assert kept(masks) == (4, 3)
    small, small_params, _ = shrink(fun, params, masks, coupling)
    assert small_params["second"].shape == (4, 3)
    compare(small(small_params, x), fun(params, x), 1e-5)
