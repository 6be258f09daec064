"""What is kept is kept: inputs that calibration never saw, sparse models that are pruned again, broken data."""

import gc
import typing
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import filters, layerwise, oneshot, statistics
from jaxprune.patterns import NM, Unstructured

METHODS = {
    "sparsegpt": layerwise.SparseGPT(),
    "sparsegpt by output": layerwise.SparseGPT(block=8, within="output"),
    "admm": layerwise.ADMM(),
    "admm, solved exactly": layerwise.ADMM(refit=True),
    "wanda": layerwise.Wanda(),
    "wanda by layer": layerwise.Wanda(within="layer"),
}
PATTERNS = {"single": (Unstructured(), 0.5), "2:4": (NM(2, 4), None), "none": (Unstructured(), 0.0)}


def layer(seed=0, unseen=20, scale=0.0):
    """A kernel (48, 8), inputs of which some are 0 (or tiny) in every sample, and which those are."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((48, 8)).astype(np.float32)
    x = rng.standard_normal((256, 48)).astype(np.float32) @ rng.standard_normal((48, 48)).astype(np.float32)
    dead = np.zeros(48, bool)
    dead[rng.permutation(48)[:unseen]] = True
    x[:, dead] *= scale
    return jnp.asarray(kernel), jnp.asarray(x), dead


def linear(p, x):
    return x @ p["kernel"]


def pruned(method, kernel, x, pattern, sparsity, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        new, masks = oneshot.prune(
            linear, {"kernel": kernel}, [x], method, sparsity=sparsity, pattern=pattern, **options
        )
    return np.asarray(new["kernel"]), np.asarray(masks["kernel"]), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_inputs_never_seen_keep_their_values(method, pattern):
    kernel, x, dead = layer()
    new, mask, said = pruned(METHODS[method], kernel, x, *PATTERNS[pattern])
    assert (new[mask] != 0).all()
    np.testing.assert_array_equal(new[dead][mask[dead]], np.asarray(kernel)[dead][mask[dead]])
    assert any("'kernel: 20 of 48'" in message for message in said)
    if pattern == "none":
        np.testing.assert_allclose(new, kernel, rtol=1e-4, atol=1e-4)
    if pattern == "single" and method in ("wanda by layer", "admm"):
        kept, removed = (np.abs(np.asarray(kernel))[dead][mask[dead] == keeps] for keeps in (True, False))
        assert not kept.size or kept.min() >= np.sort(removed)[-8:].min()


@pytest.mark.parametrize("method", METHODS)
def test_an_expert_without_tokens_is_pruned_by_magnitude(method):
    kernel, x, _ = layer(1)
    pattern, sparsity = PATTERNS["2:4"]
    new, mask, _ = pruned(METHODS[method], kernel, jnp.zeros_like(x), pattern, sparsity)
    expected = jaxprune.magnitude({"kernel": kernel}, pattern=NM(2, 4))["kernel"]
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(new, jnp.where(expected, kernel, 0))


@pytest.mark.parametrize("method", ["sparsegpt", "admm", "wanda"])
def test_inputs_hardly_seen_follow_continuously(method):
    results = []
    for scale in (0.0, 1e-14, 1e-12):
        kernel, x, _ = layer(2, scale=scale)
        results.append(pruned(METHODS[method], kernel, x, NM(2, 4), None)[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-3, atol=1e-3)


def test_repair_with_nothing_pruned_changes_nothing():
    kernel, x, dead = layer(3)
    with pytest.warns(UserWarning, match="'kernel: 20 of 48'"):
        new = oneshot.repair(linear, {"kernel": kernel}, {"kernel": jnp.ones((48, 8), bool)}, [x])["kernel"]
    np.testing.assert_allclose(new, kernel, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(new)[dead], np.asarray(kernel)[dead])


def test_wanda_ranks_inputs_never_seen_by_magnitude():
    kernel, x, dead = layer(4)
    measured = jaxprune.calibrate(linear, {"kernel": kernel}, [x])
    for scores in (jaxprune.scores.wanda, jaxprune.scores.ria):
        got = np.asarray(scores({"kernel": kernel}, measured)["kernel"])
        assert (got > 0).all()
        assert got[dead].max() < got[~dead].max() / 50
    order = np.asarray(jaxprune.scores.wanda({"kernel": kernel}, measured)["kernel"])[dead].ravel().argsort()
    np.testing.assert_array_equal(order, np.abs(np.asarray(kernel))[dead].ravel().argsort())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_a_sparse_model_stays_sparse_where_it_was(method, pattern):
    kernel, x, _ = layer(5, unseen=0)
    base = jaxprune.magnitude({"kernel": kernel}, 0.7)
    new, mask, _ = pruned(METHODS[method], kernel, x, *PATTERNS[pattern], within=base)
    within = np.asarray(base["kernel"])
    assert not new[~within].any()
    assert not (mask & ~within).any()
    assert (new[mask] != 0).all()
    if pattern == "2:4":
        assert (mask.reshape(12, 4, 8).sum(1) <= 2).all()
        assert (mask.reshape(12, 4, 8).sum(1) == np.minimum(within.reshape(12, 4, 8).sum(1), 2)).all()
    if pattern == "none":
        np.testing.assert_array_equal(mask, within)


def test_obs_keeps_what_may_stay_and_makes_up_for_the_rest():
    kernel, x, _ = layer(6, unseen=0)
    gram, allowed = x[:, :12].T @ x[:, :12], jnp.arange(12 * 8).reshape(12, 8) % 3 > 0
    new, mask = layerwise.obs(kernel[:12], gram, 0.0, mask=allowed)
    np.testing.assert_array_equal(mask, allowed)
    expected = layerwise.refit(kernel[:12], gram, allowed, damping=0.0, exact=True)
    np.testing.assert_allclose(new, expected, rtol=2e-2, atol=2e-2)
    _, mask = layerwise.obs(kernel[:12], gram, pattern=NM(1, 4), mask=allowed)
    assert (np.asarray(mask).reshape(3, 4, 8).sum(1) == 1).all()
    assert not (np.asarray(mask) & ~np.asarray(allowed)).any()


def test_repair_of_a_sparse_model_revives_nothing():
    kernel, x, _ = layer(7, unseen=0)
    base = jaxprune.magnitude({"kernel": kernel}, 0.7)
    sparse = jaxprune.apply({"kernel": kernel}, base)
    masks = jaxprune.random(jax.random.key(0), sparse, 0.3)
    new = oneshot.repair(linear, sparse, masks, [x], within=base)["kernel"]
    np.testing.assert_array_equal(new != 0, masks["kernel"] & base["kernel"])


def test_nan_in_weights_or_data_is_said_by_path_and_batch():
    kernel, x, _ = layer(8, unseen=0)
    broken = {"kernel": kernel.at[3, 2].set(jnp.nan)}
    for run in (
        lambda: jaxprune.sparsegpt(linear, broken, [x]),
        lambda: jaxprune.admm(linear, broken, [x]),
        lambda: oneshot.prune(linear, broken, [x], layerwise.Wanda()),
        lambda: oneshot.repair(linear, broken, {"kernel": jnp.ones((48, 8), bool)}, [x]),
    ):
        with pytest.raises(ValueError, match="weights of 'kernel' hold NaN"):
            run()
    batches = [x, x, x.at[7, 1].set(jnp.inf), x]
    for statistic in ("norm", "variance", "gram"):
        with pytest.raises(ValueError, match="Batch 2 gives statistics with NaN or infinity for 'kernel'"):
            jaxprune.calibrate(linear, {"kernel": kernel}, batches, statistic=statistic)
    for method in (layerwise.SparseGPT(), layerwise.ADMM(), layerwise.Wanda()):
        with pytest.raises(ValueError, match="'kernel': batch 2 gives inputs with NaN"):
            oneshot.prune(linear, {"kernel": kernel}, batches, method)
    measured = {
        "kernel": statistics.Norm(
            jnp.full((48, 1), jnp.nan), jnp.full((48, 1), 5), jaxprune.typing.Axes((0,), (1,), ())
        )
    }
    with pytest.raises(ValueError, match="statistics of 'kernel' hold NaN"):
        jaxprune.wanda({"kernel": kernel}, measured)


@pytest.mark.wrong_types
def test_batches_that_are_none_are_said():
    kernel, x, _ = layer(9, unseen=0)
    params = {"kernel": kernel}
    for run in (
        lambda batches, **options: jaxprune.calibrate(linear, params, batches, **options),
        lambda batches, **options: jaxprune.sparsegpt(linear, params, batches, **options),
        lambda batches, **options: oneshot.repair(linear, params, {"kernel": kernel > 0}, batches, **options),
    ):
        with pytest.raises(ValueError, match="`batches` is empty"):
            run([])
        with pytest.raises(ValueError, match="Batch 1 has no samples"):
            run([x, x[:0]])
        with pytest.raises(TypeError, match=r"got an array of shape \(256, 48\).*`\[batch\]`"):
            run(x)
        for wrong in (lambda: [x], {"x": x}, "x", None, 3):
            with pytest.raises(TypeError, match="`batches` is an iterable"):
                run(wrong)
    with pytest.raises(ValueError, match="No sample counts for 'kernel'"):
        jaxprune.calibrate(linear, params, [x], valid=lambda x: jnp.zeros(len(x), bool))


class Graph(typing.NamedTuple):
    nodes: jax.Array
    scale: jax.Array


def test_a_named_tuple_is_one_argument():
    kernel, x, _ = layer(10, unseen=0)

    def fun(p, graph):
        return (graph.nodes * graph.scale) @ p["kernel"]

    got = jaxprune.calibrate(fun, {"kernel": kernel}, [Graph(x, jnp.float32(2))])["kernel"]
    np.testing.assert_allclose(got.norm[:, 0], 2 * jnp.linalg.norm(x, axis=0), rtol=1e-5)
    jaxprune.sparsegpt(fun, {"kernel": kernel}, [Graph(x, jnp.float32(2))])


def test_what_nothing_multiplies_stays_dense_and_is_said():
    kernel, _, _ = layer(11)
    params = {"table": jnp.ones((5, 48)), "kernel": kernel}

    def fun(p, tokens):
        return (p["table"][tokens] * jnp.arange(1.0, 49)[None]) @ p["kernel"]

    tokens = jnp.arange(5)
    with pytest.warns(UserWarning, match="stay dense.*'table'.*looked up"):
        measured = jaxprune.calibrate(fun, params, [tokens])
    assert measured["table"] is None
    assert jaxprune.wanda(params, measured)["table"] is None

    def other(p, tokens):
        return fun(p, tokens)

    with pytest.warns(UserWarning, match="stay dense.*'table'"):
        _, masks = jaxprune.sparsegpt(other, params, [tokens], damping=0.5)
    assert masks["table"] is None
    assert not np.asarray(masks["kernel"]).all()
    with pytest.raises(ValueError, match=r"'table'.*looked up.*where="):
        jaxprune.calibrate(fun, params, [tokens], where=filters.is_kernel)


def test_calibrate_compiles_once_for_a_function():
    kernel, x, _ = layer(12, unseen=0)
    traces = []

    def fun(p, x):
        traces.append(x)
        return x @ p["kernel"]

    for i in range(4):
        got = jaxprune.calibrate(fun, {"kernel": kernel + i}, [x * i + 1, x])
    assert len(traces) == 1
    both = np.concatenate([np.asarray(x) * 3 + 1, np.asarray(x)])
    np.testing.assert_allclose(got["kernel"].norm[:, 0], np.linalg.norm(both, axis=0), rtol=1e-5)
    jaxprune.calibrate(fun, {"kernel": kernel}, [x[:10]])
    jaxprune.calibrate(fun, {"kernel": kernel}, [x], statistic="gram")
    assert len(traces) == 3
    alive = weakref.ref(fun)
    del fun
    gc.collect()
    assert alive() is None


def test_calibrate_keeps_no_parameters_alive():
    kernel, x, _ = layer(13, unseen=0)
    array = kernel + 1
    alive = weakref.ref(array)
    jaxprune.calibrate(linear, {"kernel": array}, [x])
    del array
    gc.collect()
    assert alive() is None


def test_what_is_not_picked_needs_no_axis_and_may_have_one():
    params = {"kernel": jnp.ones((8, 4)), "turned": jnp.ones((4, 8)), "table": jnp.ones((8, 8)), "bias": jnp.ones(4)}

    def fun(p, x):
        return (p["table"][0] * x) @ p["kernel"] + p["bias"] + p["turned"] @ x

    axes = jaxprune.layout(fun, params, jnp.ones(8)).summed(params)
    pattern = NM(2, 4, axis=axes)
    masks = jaxprune.magnitude(params, pattern=pattern, where=filters.is_kernel & ~filters.named("table"))
    assert (masks["kernel"].reshape(2, 4, 4).sum(1) == 2).all()
    assert (masks["turned"].reshape(4, 2, 4).sum(2) == 2).all()
    assert masks["table"] is None
    alone = jaxprune.magnitude(params, pattern=pattern, where=filters.named("turned"))
    np.testing.assert_array_equal(alone["turned"], masks["turned"])
    with pytest.raises(ValueError, match=r"axis tree of `NM` has no axis for 'table'.*where="):
        jaxprune.magnitude(params, pattern=pattern)
    with pytest.raises(ValueError, match="axis tree of `NM`"):
        jaxprune.magnitude(params, pattern=NM(2, 4, axis={"kernel": 0}))
    elsewhere = {"kernel_": 0, "turned": 1, "table": 1, "bias": None}  # as many entries, of other names
    with pytest.raises(ValueError, match="axis tree of `NM`"):
        jaxprune.magnitude(params, pattern=NM(2, 4, axis=elsewhere), where=filters.named("turned"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, g: layerwise.sparsegpt(k, g, damping=-1.0), "`damping` must be 0 or more"),
        (lambda k, g: layerwise.sparsegpt(k, g, block=0), "`block` is a number of inputs, at least 1"),
        (lambda k, g: layerwise.sparsegpt(k, g, within="row"), "`within` must be 'block' or 'output'"),
        (lambda k, g: layerwise.SparseGPT(damping=np.nan), "`damping` must be 0 or more"),
        (lambda k, g: layerwise.admm(k, g, iterations=0), "`iterations` must be at least 1"),
        (lambda k, g: layerwise.admm(k, g, penalty=-1.0), "`penalty` must be 0 or more"),
        (lambda k, g: layerwise.ADMM(iterations=2.5), "`iterations` must be at least 1"),
        (lambda k, g: layerwise.ADMM(within="block"), "`within` must be 'layer' or 'output'"),
        (lambda k, g: layerwise.Wanda(within="block"), "`within` must be 'layer' or 'output'"),
        (lambda k, g: layerwise.obs(k, g, damping=-0.1), "`damping` must be 0 or more"),
        (lambda k, g: layerwise.damp(g, damping=np.inf), "`damping` must be 0 or more"),
        (lambda k, g: layerwise.refit(k, g, k > 0, damping=-1.0), "`damping` must be 0 or more"),
        (lambda k, g: layerwise.swap(k, g, k > 0, steps=0), "`steps` must be at least 1"),
        (lambda k, g: layerwise.correct(k, g, g, damping=-1.0), "`damping` must be 0 or more"),
        (lambda k, g: layerwise.correct(k, g, g, share=2.0), "`share` must be in"),
    ],
)
@pytest.mark.wrong_types
def test_options_out_of_range_are_said(call, message):
    kernel, x, _ = layer(14, unseen=0)
    with pytest.raises(ValueError, match=message):
        call(kernel, x.T @ x)


@pytest.mark.wrong_types
@pytest.mark.parametrize("sparsity", [np.float32(0.5), np.float64(0.5), jnp.float32(0.5), np.array(0.5)])
def test_a_sparsity_may_come_from_anywhere(sparsity):
    kernel, x, _ = layer(15, unseen=0)
    expected = jaxprune.sparsegpt(linear, {"kernel": kernel}, [x], 0.5)[1]["kernel"]
    np.testing.assert_array_equal(jaxprune.sparsegpt(linear, {"kernel": kernel}, [x], sparsity)[1]["kernel"], expected)
    np.testing.assert_array_equal(layerwise.wanda(kernel, jnp.ones(48), sparsity)[1].sum(0), np.full(8, 24))


def test_admm_is_that_of_the_paper_step_by_step():
    """Against a plain NumPy loop: the schedule of the sparsity, the projection, and the dual."""
    kernel, x, _ = layer(16, unseen=0)
    weights, gram = np.asarray(kernel, np.float64), np.asarray(x.T @ x, np.float64)
    norm = np.sqrt(np.diag(gram))
    correlation = gram / norm[:, None] / norm[None] + 0.1 * np.eye(48)
    scaled = weights * norm[:, None]
    inverse = np.linalg.inv(correlation + np.eye(48))
    solved, dual = scaled, np.zeros_like(scaled)
    for step in range(6):
        sparsity = 0.75 * (1 - (1 - (step + 1) / 6) ** 3)
        proposed = solved + dual
        kept = np.zeros(proposed.size, bool)
        kept[np.argsort(-np.abs(proposed).ravel(), kind="stable")[: round(384 * (1 - sparsity))]] = True
        kept = kept.reshape(proposed.shape)
        sparse = np.where(kept, proposed, 0)
        dual = proposed - sparse
        solved = inverse @ (correlation @ scaled + sparse - dual)
    _, mask = layerwise.admm(kernel, x.T @ x, 0.75, iterations=6, damping=0.1, penalty=1.0)
    np.testing.assert_array_equal(mask, kept)
