"""Tests that need eight devices; `test_meshes.py` runs them in a process that has as many."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from benchmarks import collectives as exchanged
from jaxprune import budgets, patterns

pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]

SPECS = {
    "rows": P("data", None),  # fully sharded data parallel
    "columns": P(None, "model"),  # tensor parallel
    "both": P("data", "model"),
    "bias": P("model"),
}
SHAPES = {"rows": (64, 24), "columns": (24, 64), "both": (32, 32)}
KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.fixture(params=KINDS)
def mesh(request):
    assert jax.device_count() == 8
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(KINDS[request.param],) * 2)


def whole(dtype=np.float32):
    """Few different values, hence ties, and sums that no order of addition can change."""
    rng = np.random.default_rng(0)
    tree = {name: rng.integers(-40, 40, shape).astype(dtype) for name, shape in SHAPES.items()}
    return {**tree, "bias": np.ones(64, dtype)}


def spread(tree, mesh):
    return {name: jax.device_put(leaf, NamedSharding(mesh, SPECS[name])) for name, leaf in tree.items()}


def shared_axes(name, mask):
    """How a mask lies that is split as its parameter, along the axes that are not broadcast."""
    names = [axis if size > 1 else None for axis, size in zip(SPECS[name], mask.shape, strict=True)]
    return P(*names)


def collectives(compiled):
    """The number of values in the result of each operation between devices."""
    return [found.numbers for found in exchanged.collectives(compiled.as_text())]


@functools.cache
def on_one_device(strategy):
    """The masks that a strategy makes, once for both kinds of mesh."""
    return jax.jit(strategy)({name: jnp.asarray(leaf) for name, leaf in whole().items()})


def check(strategy, mesh, *, counts_only=True):
    """The strategy on a mesh: the masks of one device, split as the parameters, by counts alone."""
    expected = on_one_device(strategy)
    tree = spread(whole(), mesh)
    compiled = jax.jit(strategy).lower(tree).compile()
    masks = compiled(tree)
    assert sum(mask is not None for mask in masks.values()) == len(SHAPES)
    for name, mask in masks.items():
        if mask is None:
            continue
        assert np.array_equal(mask, expected[name]), name
        assert 0 < np.asarray(mask).sum() < mask.size
        if counts_only:
            assert mask.sharding.is_equivalent_to(NamedSharding(mesh, shared_axes(name, mask)), mask.ndim), name
    moved = collectives(compiled)
    if counts_only and moved:
        assert max(moved) <= 64


def like(tree):
    return jax.tree.map(lambda leaf: leaf * 0.5 + 1, tree)


def loss(tree):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


def model(tree, x):
    return x @ tree["rows"] @ tree["columns"] + tree["bias"]


def both_ways(tree, x):
    return model(tree, x), x[:, :32] @ tree["both"]


def measured(prune, statistic="norm"):
    """A strategy that looks at what was measured on one device."""
    x = np.random.default_rng(1).integers(-3, 4, (16, 64)).astype(np.float32)
    statistics = jaxprune.calibrate(both_ways, whole(), [x], statistic=statistic)
    return lambda tree, *sparsity: prune(tree, statistics, *sparsity)


COMMON = {
    "uniform": functools.partial(jaxprune.magnitude, sparsity=0.7),
    "n:m": functools.partial(jaxprune.magnitude, pattern=patterns.NM(1, 4)),
    "blocks": functools.partial(jaxprune.magnitude, sparsity=0.5, pattern=patterns.Block((4, 4))),
    "along": functools.partial(jaxprune.magnitude, sparsity=0.7, pattern=patterns.Along()),
}
OTHERS = {
    "global": functools.partial(jaxprune.magnitude, sparsity=0.7, budget=budgets.global_),
    "erk": functools.partial(jaxprune.magnitude, sparsity=0.7, budget=budgets.erk),
    "cumulative": functools.partial(jaxprune.magnitude, budget=budgets.cumulative(0.8)),
    "cumulative, jointly": functools.partial(jaxprune.magnitude, budget=budgets.cumulative(0.8, per_leaf=False)),
    "channels": functools.partial(jaxprune.magnitude, sparsity=0.5, pattern=patterns.Channel()),
    "slim": functools.partial(jaxprune.slim, sparsity=0.5),
    "random": lambda tree: jaxprune.random(jax.random.key(0), tree, 0.7),
    "taylor": lambda tree: jaxprune.taylor(tree, like(tree), 0.7),
    "snip": lambda tree: jaxprune.snip(tree, like(tree), 0.7),
    "grasp": lambda tree: jaxprune.grasp(loss, tree, 0.7),
    "from_scores": lambda tree: jaxprune.from_scores({**tree, "bias": None}, 0.7),
    "global, normalized": functools.partial(
        jaxprune.magnitude, sparsity=0.7, budget=functools.partial(budgets.global_, normalize=True)
    ),
    "by_path": functools.partial(jaxprune.magnitude, sparsity=0.7, budget=budgets.by_path({"rows": 0.3})),
    "owl": functools.partial(jaxprune.magnitude, sparsity=0.7, budget=budgets.owl),
    "along outputs": functools.partial(jaxprune.magnitude, sparsity=0.7, pattern=patterns.Along(-1)),
    "along both": functools.partial(
        jaxprune.magnitude, sparsity=0.7, pattern=patterns.Along({**dict.fromkeys(SHAPES, (1, 0)), "bias": None})
    ),
    "n:m, shared": functools.partial(jaxprune.magnitude, pattern=patterns.NM(2, 4, group=4)),
}
MEASURED = {
    "wanda": lambda tree, statistics: jaxprune.wanda(tree, statistics, 0.7),
    "wanda, owl": lambda tree, statistics: jaxprune.wanda(tree, statistics, 0.7, budget=budgets.owl),
    "wanda, n:m": lambda tree, statistics: jaxprune.wanda(tree, statistics, pattern=patterns.NM(2, 4)),
    "ria": lambda tree, statistics: jaxprune.ria(tree, statistics, 0.7),
}


@pytest.mark.parametrize("name", COMMON)
def test_a_strategy_on_a_mesh_selects_as_on_one_device_and_moves_counts_only(name, mesh):
    check(COMMON[name], mesh)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_strategies_do_so_too(name, mesh):
    check(OTHERS[name], mesh)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_strategies_that_look_at_statistics_do_so_too(name, mesh):
    check(measured(MEASURED[name]), mesh)


@pytest.mark.slow
def test_variances_lie_where_they_were_measured_and_nothing_travels(mesh):
    prune = measured(lambda tree, statistics: jaxprune.variance(tree, statistics, 0.5), "variance")
    check(prune, mesh, counts_only=False)
    assert not collectives(jax.jit(prune).lower(spread(whole(), mesh)).compile())


@pytest.mark.slow
def test_balanced_blocks_are_ranked_and_so_gathered_a_score_for_each_block(mesh):
    prune = functools.partial(jaxprune.magnitude, sparsity=0.5, pattern=patterns.Block((4, 4), balanced=True))
    check(prune, mesh, counts_only=False)
    moved = collectives(jax.jit(prune).lower(spread(whole(), mesh)).compile())
    assert max(moved) == max(math.prod(shape) for shape in SHAPES.values()) // 16


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1), (2, 0), (0, 1, 2)])
def test_ties_along_a_line_go_to_its_first_whatever_is_split(axes, mesh):
    scores = np.random.default_rng(1).integers(0, 4, (8, 6, 32)).astype(np.float32)
    scores[0] = np.nan
    placed = jax.device_put(scores, NamedSharding(mesh, P("data", None, "model")))
    select = jax.jit(functools.partial(jaxprune.select, pattern=patterns.Along(axes)))
    keys, order = np.nan_to_num(scores, nan=-1.0), (*axes, *(a for a in range(3) if a not in axes))
    lines = keys.transpose(order).reshape(math.prod(scores.shape[a] for a in axes), -1)
    for keep in (0, 500, 777, scores.size):
        each = [keep // lines.shape[1] + (line < keep % lines.shape[1]) for line in range(lines.shape[1])]
        ranks = np.argsort(np.argsort(-lines, axis=0, kind="stable"), axis=0)
        turned = (ranks < np.array(each)).reshape([scores.shape[a] for a in order])
        mask = select(placed, jnp.int32(keep))
        assert np.array_equal(mask, turned.transpose(np.argsort(order)))
        assert mask.sharding.is_equivalent_to(placed.sharding, 3)
    assert max(collectives(select.lower(placed, jnp.int32(500)).compile()), default=0) <= lines.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("spec", [P(("data", "model"), None), P(None, ("model", "data")), P(None, "data", "model")])
def test_other_layouts(spec, mesh):
    scores = np.random.default_rng(1).integers(0, 30, (3, 16, 32)[3 - len(spec) :]).astype(np.float32)
    placed = jax.device_put(scores, NamedSharding(mesh, spec))
    select = jax.jit(jaxprune.select)
    mask = select(placed, jnp.int32(100))
    assert np.array_equal(mask, select(jnp.asarray(scores), jnp.int32(100)))
    assert mask.sharding.is_equivalent_to(placed.sharding, scores.ndim)
    assert max(collectives(select.lower(placed, jnp.int32(100)).compile())) <= 64


def test_a_mesh_of_one_device():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1])
    kernel = np.arange(64, dtype=np.float32).reshape(8, 8)
    mask = jaxprune.select(jax.device_put(kernel, NamedSharding(mesh, P("data", None))), 10)
    assert np.array_equal(mask, kernel >= 54)


@pytest.mark.slow
def test_lamp_ranks_a_leaf_and_so_gathers_it(mesh):
    check(functools.partial(jaxprune.lamp, sparsity=0.7), mesh, counts_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 40])
def test_groups_that_straddle_devices_are_gathered(size, mesh):
    """24 rows over four devices are six on each: no group of four lies on one device."""
    kernel = np.random.default_rng(0).standard_normal((24, size)).astype(np.float32)
    placed = jax.device_put(kernel, NamedSharding(mesh, P("data", None)))
    for pattern in (patterns.NM(2, 4), patterns.Block((5, 3))):
        prune = jax.jit(functools.partial(jaxprune.magnitude, pattern=pattern))
        mask = prune({"kernel": placed})["kernel"]
        assert np.array_equal(mask, prune({"kernel": jnp.asarray(kernel)})["kernel"])
        if mesh.axis_types[0] == AxisType.Explicit:
            assert mask.sharding.is_equivalent_to(placed.sharding, 2)


@pytest.mark.slow
def test_frequencies(mesh):
    alone = {name: jnp.asarray(leaf) for name, leaf in whole().items()}
    expected = jaxprune.dft(alone, 0.6)
    tree = spread(whole(), mesh)
    compiled = jax.jit(lambda tree: jaxprune.dft(tree, 0.6)).lower(tree).compile()
    masks = compiled(tree)
    if mesh.axis_types[0] == AxisType.Auto:
        share = max(math.prod(shape) for shape in SHAPES.values()) // 8
        assert max(collectives(compiled)) <= share
    pruned, reference = jax.jit(jaxprune.apply)(tree, masks), jaxprune.apply(alone, expected)
    for name in SHAPES:
        assert int(masks[name].count(SHAPES[name])) == int(expected[name].count(SHAPES[name]))
        np.testing.assert_allclose(pruned[name], reference[name], atol=1e-4)


@pytest.mark.slow
def test_synflow_keeps_the_sharding_through_its_rounds(mesh):
    if mesh.axis_types[0] == AxisType.Explicit:
        pytest.skip("products of such parameters need their output shardings spelt out by the user's model")
    x = jnp.ones((1, 64))
    prune = jax.jit(lambda tree: jaxprune.synflow(model, tree, x, 0.5, rounds=3))
    masks = prune(spread(whole(), mesh))
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
    assert kept == sum(math.prod(shape) for shape in SHAPES.values()) // 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats(dtype, mesh):
    tree = {name: jnp.asarray(leaf, dtype) for name, leaf in whole().items()}
    prune = jax.jit(functools.partial(jaxprune.magnitude, sparsity=0.4, budget=budgets.global_))
    expected, masks = prune(tree), prune(spread(tree, mesh))
    assert all(np.array_equal(masks[name], expected[name]) for name in SHAPES)


@pytest.mark.slow
def test_an_extreme_count_or_score(mesh):
    scores = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.0, 3.0] * 8, np.float32).reshape(8, 8)
    placed = jax.device_put(scores, NamedSharding(mesh, P("data", "model")))
    select = jax.jit(jaxprune.select)
    for keep in (0, 1, 7, 8, 9, 20, 40, 63, 64):
        expected = select(jnp.asarray(scores), jnp.int32(keep))
        assert int(expected.sum()) == keep
        assert np.array_equal(select(placed, jnp.int32(keep)), expected)


SCHEDULE = optax.polynomial_schedule(0.0, 0.8, power=3, transition_steps=4)
TRAINED = {
    "gradual": lambda _: jaxprune.gradual(optax.adam(0.1), jaxprune.magnitude, SCHEDULE, end=4, every=2),
    "gradual, packed": lambda _: jaxprune.gradual(
        optax.adam(0.1), jaxprune.magnitude, SCHEDULE, end=4, every=2, packed=True
    ),
    "gradual, gradients": lambda _: jaxprune.gradual(
        optax.sgd(1.0), jaxprune.WithGradients(jaxprune.taylor), 0.5, end=1
    ),
    "gradual, wanda": lambda _: jaxprune.gradual(optax.sgd(0.5), measured(jaxprune.wanda), 0.5, end=4, every=2),
    "keep_masked": lambda masks: optax.chain(optax.adam(0.1), jaxprune.keep_masked(masks)),
    "masked": lambda masks: jaxprune.masked(optax.sgd(1.0), masks),
    "rigl": lambda masks: jaxprune.rigl(optax.adam(0.1), masks, end=4, every=2),
    "rigl, jointly": lambda masks: jaxprune.rigl(optax.adam(0.1), masks, end=4, every=2, per_leaf=False),
    "sparse_evolution": lambda masks: jaxprune.sparse_evolution(
        jax.random.key(0), optax.adam(0.1), masks, end=4, every=2
    ),
    "acdc": lambda _: jaxprune.acdc(optax.sgd(0.5), jaxprune.magnitude, 0.5, end=4, every=2),
    "dpf": lambda _: jaxprune.dpf(optax.sgd(0.5), jaxprune.magnitude, 0.5, end=4, every=2, decay=0.5),
    "movement": lambda _: jaxprune.movement(optax.sgd(0.5), jaxprune.from_scores, 0.5, end=4, every=2),
    "soft_threshold": lambda _: jaxprune.soft_threshold(optax.sgd(0.5), 4.0, end=3),
}


def lie_as(tree, mesh):
    """Whether every array with the shape of a kernel, at whatever depth of a state, is split as that is."""
    specs = {shape: SPECS[name] for name, shape in SHAPES.items()}
    large = [leaf for leaf in jax.tree.leaves(tree) if leaf.shape in specs]
    return bool(large) and all(
        leaf.sharding.is_equivalent_to(NamedSharding(mesh, specs[leaf.shape]), leaf.ndim) for leaf in large
    )


QUICK = {"masked", "soft_threshold"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
)
def test_training_on_a_mesh_is_training_on_one_device(name, mesh):
    """Masks that were made on one device are put where their parameters lie."""
    optimizer = TRAINED[name](jaxprune.magnitude(whole(), 0.5))
    step = jax.jit(functools.partial(one_step, optimizer))
    alone, together = {name: jnp.asarray(leaf) for name, leaf in whole().items()}, spread(whole(), mesh)
    states = [optimizer.init(alone), optimizer.init(together)]
    assert lie_as(jaxprune.masks_of(states[1]), mesh)
    assert lie_as(states[1], mesh)
    compiled = step.lower(together, states[1]).compile()
    assert max(collectives(compiled), default=0) <= 64
    for _ in range(6):
        alone, states[0] = step(alone, states[0])
        together, states[1] = compiled(together, states[1])
        for name in SHAPES:
            assert np.array_equal(jaxprune.masks_of(states[0])[name], jaxprune.masks_of(states[1])[name])
            assert np.array_equal(alone[name], together[name])
        assert lie_as((together, jaxprune.masks_of(states[1]), states[1]), mesh)
    assert jaxprune.sparsity(together) > 0.4


@pytest.mark.slow
def test_group_lasso_on_a_mesh_rounds_its_sums_in_another_order(mesh):
    optimizer = jaxprune.group_lasso(optax.sgd(0.5), 4.0, end=3)
    step = jax.jit(functools.partial(one_step, optimizer))
    alone, together = {name: jnp.asarray(leaf) for name, leaf in whole().items()}, spread(whole(), mesh)
    states = [optimizer.init(alone), optimizer.init(together)]
    for _ in range(5):
        alone, states[0] = step(alone, states[0])
        together, states[1] = step(together, states[1])
    for name in SHAPES:
        assert np.array_equal(states[0].masks[name], states[1].masks[name])
        np.testing.assert_allclose(alone[name], together[name], rtol=1e-5, atol=1e-5)
    assert max(collectives(step.lower(together, states[1]).compile())) <= 64


@pytest.mark.slow
def test_straight_through_and_rewind(mesh):
    alone, together = {name: jnp.asarray(leaf) for name, leaf in whole().items()}, spread(whole(), mesh)
    masks = jaxprune.magnitude(alone, 0.5)
    for function in (
        lambda tree, masks: jax.grad(lambda tree: loss(jaxprune.straight_through(tree, masks)))(tree),
        lambda tree, masks: jaxprune.rewind(tree, like(tree), masks),
    ):
        expected = function(alone, masks)
        compiled = jax.jit(function).lower(together, jaxprune.magnitude(together, 0.5)).compile()
        got = compiled(together, jaxprune.magnitude(together, 0.5))
        assert all(np.array_equal(got[name], expected[name]) for name in SHAPES)
        assert lie_as(got, mesh)
        assert not collectives(compiled)
    assert lie_as(jaxprune.apply(together, masks), mesh)


LAYOUTS = {(64, 30): P("data", None), (32, 24): P("data", "model"), (3, 3, 64, 10): P(None, None, "data", None)}


@pytest.mark.slow
def test_packed_masks_lie_as_their_parameters_where_devices_hold_whole_bytes(mesh):
    """Not where eight divides no axis, as in (20, 30); such a mask is gathered."""
    rng = np.random.default_rng(0)
    for shape, spec in {**LAYOUTS, (20, 30): P("data", "model")}.items():
        kernel = rng.standard_normal(shape).astype(np.float32)
        optimizer = TRAINED["gradual, packed"](None)
        step = jax.jit(functools.partial(one_step, optimizer))
        alone, together = jnp.asarray(kernel), jax.device_put(kernel, NamedSharding(mesh, spec))
        states = [optimizer.init(alone), optimizer.init(together)]
        compiled = step.lower(together, states[1]).compile()
        alone, states[0] = step(alone, states[0])
        together, states[1] = compiled(together, states[1])
        assert np.array_equal(alone, together)
        assert np.array_equal(*(state.masks.bits for state in states))
        if shape in LAYOUTS:
            bits = states[1].masks.bits
            assert bits.sharding.is_equivalent_to(NamedSharding(mesh, spec), bits.ndim)
            assert max(collectives(compiled)) <= 64


def one_step(optimizer, params, state):
    updates, state = optimizer.update(like(params), state, params)
    return optax.apply_updates(params, updates), state


def test_a_step_of_gradual_pruning_moves_counts_only(mesh):
    schedule = optax.linear_schedule(0.5, 0.8, 4)
    optimizer = jaxprune.gradual(optax.adam(0.1), jaxprune.magnitude, schedule, end=4)
    params = spread(whole(), mesh)
    state = optimizer.init(params)
    assert all(state.masks[name].sharding.is_equivalent_to(params[name].sharding, 2) for name in SHAPES)
    compiled = jax.jit(functools.partial(one_step, optimizer)).lower(params, state).compile()
    assert max(collectives(compiled)) <= 64
    params, state = compiled(params, state)
    for name, shape in SHAPES.items():
        assert int((params[name] != 0).sum()) == math.prod(shape) // 2
        assert state.masks[name].sharding.is_equivalent_to(NamedSharding(mesh, SPECS[name]), 2)


@pytest.mark.parametrize("statistic", ["norm", "variance", "gram"])
def test_statistics_of_a_batch_on_all_devices_are_those_of_one(mesh, statistic):
    def fun(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])
        return jnp.einsum("btd,dhk->bthk", x, p["heads"])

    rng = np.random.default_rng(0)
    params = {"layers": rng.normal(size=(3, 6, 6)), "heads": rng.normal(size=(6, 2, 4))}
    params = {name: leaf.astype(np.float32) for name, leaf in params.items()}
    batches = [rng.normal(size=(8, 5, 6)).astype(np.float32) for _ in range(2)]
    padding = [rng.integers(0, 2, (8, 5)).astype(bool) for _ in range(2)]

    def measure(put):
        pairs = [(put(x), put(m)) for x, m in zip(batches, padding, strict=True)]
        return jaxprune.calibrate(
            lambda p, x, _: fun(p, x), params, pairs, statistic=statistic, valid=lambda _, valid: valid
        )

    expected = measure(jnp.asarray)
    with jax.set_mesh(mesh):
        got = measure(lambda x: jax.device_put(x, NamedSharding(mesh, P("data"))))
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert ours.sharding.is_fully_replicated
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def by_tensor_parallel_layers(p, x):
    return jax.lax.psum(jax.nn.relu(x @ p["up"]) @ p["down"], "devices")


def by_gathered_kernels(p, x):
    up, down = (jax.lax.all_gather(p[name], "devices", axis=a, tiled=True) for name, a in (("up", 1), ("down", 0)))
    return jax.nn.relu(x @ up) @ down / jax.lax.psum(1, "devices")


def by_an_exchange(p, x):
    hidden = jax.lax.all_to_all(jax.nn.relu(x @ p["up"]), "devices", 1, 0, tiled=True)
    return jax.lax.psum(hidden @ p["down"], "devices")


def by_scattered_sums(p, x):
    hidden = jax.lax.psum_scatter(x @ p["up"], "devices", scatter_dimension=1, tiled=True)
    return jax.lax.psum(
        jax.lax.ppermute(jax.nn.relu(hidden), "devices", [(i, i) for i in range(8)]) @ p["down"], "devices"
    )


BY_BATCH, BY_OUT, BY_IN, WHOLE = P("devices"), P(None, "devices"), P("devices"), P()


@pytest.mark.parametrize(
    ("layers", "specs", "out", "width"),
    [
        (by_tensor_parallel_layers, ({"up": BY_OUT, "down": BY_IN}, WHOLE), WHOLE, 4),
        (by_gathered_kernels, ({"up": BY_OUT, "down": BY_IN}, BY_BATCH), BY_BATCH, 4),
        (by_an_exchange, ({"up": WHOLE, "down": BY_IN}, BY_BATCH), WHOLE, 4),
        (by_scattered_sums, ({"up": P("devices"), "down": BY_IN}, P(None, "devices")), WHOLE, 4),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_layers_on_a_mesh_keep_the_same_units_on_every_device(layers, specs, out, width):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))

    def fun(p, x):
        return jax.shard_map(layers, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)(p, x)

    rng = np.random.default_rng(0)
    params = {"up": jnp.asarray(rng.normal(size=(8, 32)), "f"), "down": jnp.asarray(rng.normal(size=(32, 3)), "f")}
    x = rng.normal(size=(16, 8)).astype("f")
    coupling = jaxprune.couple(fun, params, x)
    assert [(group.width, {m.path for m in group.members}) for group in coupling.groups] == [(width, {"up", "down"})]
    assert coupling.macs() == jaxprune.macs(fun, params, x).dense
    units = coupling.units["up"][1]
    masks = {"up": np.broadcast_to(units % 2 == 1, (8, 32)), "down": np.broadcast_to(units[:, None] % 2 == 1, (32, 3))}
    small, small_params, _ = jaxprune.shrink(fun, params, masks, coupling)
    assert small_params["up"].shape == (8, 16)
    got = jax.jit(small)(small_params, x)
    expected = jax.jit(fun)({name: params[name] * masks[name] for name in params}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
