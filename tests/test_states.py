"""States of optimizers taken from a full model to a small one: every optimizer of optax, and one more update."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxprune
from jaxprune.structured._leaf_plan import LeafPlan

pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]  # optax promotes by itself

KEPT = np.array([0, 2, 3, 7])
PLAN = jaxprune.Plan({
    "a/bias": LeafPlan((8,), {0: KEPT}), "a/kernel": LeafPlan((6, 8), {1: KEPT}),
    "b/bias": LeafPlan((3,)), "b/kernel": LeafPlan((8, 3), {0: KEPT}),
})  # fmt: skip
ADAM = optax.adam(0.1)
ARGUMENTS = {
    "learning_rate": 0.1, "decay": 0.9, "max_delta": 1.0, "threshold": 1.0, "max_norm": 1.0, "clipping": 0.1,
    "inner": ADAM, "base_optimizer": ADAM, "optimizer": ADAM, "fast_optimizer": ADAM, "tx": ADAM, "step_size": 0.1,
    "eta": 0.01, "gamma": 0.5, "key": 0, "seed": 0, "max_consecutive_errors": 3, "mask": False, "freeze_mask": False,
    "step_size_fn": lambda step: 0.1, "inner_factory": optax.adam, "should_transform_fn": lambda step, **_: step > 0,
    "transforms": {"all": ADAM}, "param_labels": "all", "sync_period": 2, "slow_step_size": 0.5,
    "l2_norm_clip": 1.0, "noise_multiplier": 0.0, "adv_optimizer": optax.sgd(0.05),
}  # fmt: skip
NOT_OPTIMIZERS = {
    # They take functions, wrap what is tested in its own right, or search along a line for themselves.
    "chain", "named_chain", "stateless", "stateless_with_tree_map", "measure_with_ema", "snapshot", "lookahead",
    "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch", "sam", "sophia", "scale_by_muon",
    "differentially_private_aggregate", "dpsgd",
}  # fmt: skip
REFUSED = {"lbfgs", "scale_by_lbfgs", "galore", "scale_by_galore"}
NOT_ELEMENTWISE = {
    # Norms, means or noise of whole leaves: the small update is another.
    "adafactor", "adaptive_grad_clip", "add_noise", "centralize", "clip_by_block_rms", "clip_by_global_norm", "fromage",
    "lamb", "lars", "noisy_sgd", "normalize", "normalize_by_update_norm", "novograd", "scale_by_novograd",
    "scale_by_param_block_norm", "scale_by_param_block_rms", "scale_by_trust_ratio", "muon",
}  # fmt: skip


def factories():
    found = []
    for module in (optax, optax.contrib):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            returned = str(inspect.signature(function).return_annotation)
            if "GradientTransformation" in returned and name not in NOT_OPTIMIZERS and name[0] != "_":
                marks = [pytest.mark.slow] if name.startswith("scale_by_") else []  # the optimizers are made of these
                found.append(pytest.param(name, function, id=name, marks=marks))
    return found


def made(factory):
    parameters = inspect.signature(factory).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return optax.with_extra_args_support(factory(**{p.name: ARGUMENTS[p.name] for p in needed}))


def full_params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (6, 8)), "bias": jnp.ones(8)},
        "b": {"kernel": jax.random.normal(keys[1], (8, 3)), "bias": jnp.ones(3)},
    }


def gradients(params, step):
    return jax.tree.map(
        lambda leaf: jnp.sin(step + jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params
    )


def numbers(*shape):
    return jnp.arange(float(np.prod(shape))).reshape(shape)


def value(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def update(optimizer, grads, state, params, loss):
    return optimizer.update(grads, state, params, value=loss, grad=grads, value_fn=value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "factory"), factories())
def test_a_state_takes_one_more_update(name, factory):
    if name == "inject_hyperparams":
        factory = lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1)  # noqa: E731
    elif name == "inject_stateful_hyperparams":
        factory = lambda: optax.inject_stateful_hyperparams(optax.adam)(learning_rate=0.1)  # noqa: E731
    optimizer, params = made(factory), full_params()
    state = optimizer.init(params)
    for step in range(0 if name in REFUSED else 1):
        _, state = update(optimizer, gradients(params, step), state, params, value(params))
    if name in REFUSED:
        with pytest.raises(ValueError, match=r"'0|'diff_params_memory|projected coordinates"):
            PLAN.take(state)
        return
    small, grads = PLAN.take(params), gradients(params, 5)
    taken = PLAN.take(state)
    assert jax.tree.map(np.shape, taken) == jax.tree.map(np.shape, optimizer.init(small))
    expected, _ = update(optimizer, grads, state, params, value(params))
    found, after = update(optimizer, PLAN.take(grads), taken, small, value(params))
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, taken)
    if name in NOT_ELEMENTWISE:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    else:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, PLAN.take(expected))


def moments(state):
    holders = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, "v_row"))
    return next({name: getattr(node, name)["w"] for name in ("v_row", "v_col", "v")} for node in holders)


@pytest.mark.parametrize(
    ("shape", "keep", "least"),
    [
        ((8, 4), {0: 4}, 3), ((8, 4), {0: 3}, 3), ((4, 8), {1: 4}, 3), ((4, 8), {1: 3}, 3), ((4, 8), {0: 3}, 3),
        ((6, 6), {0: 5}, 3), ((6, 6), {1: 5}, 3), ((3, 8, 4), {1: 4}, 3), ((5, 8, 6), {1: 4}, 3), ((8, 4), {0: 1}, 2),
        ((5, 8, 6), {2: 4}, 3), ((512, 256), {0: 256}, 128), ((256, 384), {1: 192}, 128), ((256, 384), {1: 100}, 128),
        ((200, 130), {1: 128}, 128), ((200, 130), {1: 127}, 128), ((100, 90), {1: 40}, 128), ((4, 8), {0: 3, 1: 3}, 3),
    ],
    ids=str,
)  # fmt: skip
def test_the_factored_moments_of_adafactor_follow_the_larger_axis(shape, keep, least):
    """Moments of a product of one vector per axis are the same product, whichever axes are the largest."""
    plan = jaxprune.Plan({"w": LeafPlan(shape, {axis: np.arange(n) for axis, n in keep.items()})})
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=least)
    params = {"w": jnp.full(shape, 1e-3)}
    for axis, size in enumerate(shape):
        factor = 1 + jnp.arange(size, dtype=jnp.float32) / size
        params["w"] *= factor.reshape([-1 if a == axis else 1 for a in range(len(shape))])

    def stepped(params):
        return optimizer.update(params, optimizer.init(params), params)[1]

    small, state = plan.take(params), stepped(params)
    taken = plan.take(state)
    assert jax.tree.map(np.shape, taken) == jax.tree.map(np.shape, optimizer.init(small))
    abstract = plan.take(jax.eval_shape(stepped, params))
    assert jax.tree.map(np.shape, abstract) == jax.tree.map(np.shape, taken)
    for found, own in zip(moments(taken).values(), moments(stepped(small)).values(), strict=True):
        np.testing.assert_allclose(found / max(jnp.max(found), 1e-30), own / max(jnp.max(own), 1e-30), rtol=1e-4)


def test_factored_moments_of_nothing_stay_zero():
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=3)
    state = optimizer.init({"w": jnp.ones((8, 4))})
    taken = jaxprune.Plan({"w": LeafPlan((8, 4), {0: np.arange(3)})}).take(state)
    for moment, shape in zip(moments(taken).values(), [(3,), (4,), (1,)], strict=True):
        np.testing.assert_array_equal(moment, np.zeros(shape))


def test_factored_moments_keep_their_values():
    rows, columns = numbers(8) + 1, numbers(4) + 1
    state = optax.scale_by_factored_rms(min_dim_size_to_factor=3).init({"w": jnp.ones((8, 4))})
    state = state._replace(v_row={"w": columns}, v_col={"w": rows}, v={"w": jnp.ones(1)})
    full = np.outer(rows, columns / 2.5)
    for keep, expected in (
        ({0: [1, 2, 4, 5, 7]}, (columns, rows[np.array([1, 2, 4, 5, 7])], np.ones(1))),  # the larger axis stays it
        ({1: [0, 2, 3]}, (columns[np.array([0, 2, 3])], rows, np.ones(1))),
        ({1: [3]}, (np.zeros(1), np.zeros(1), full[:, [3]])),  # no longer factored
    ):
        plan = jaxprune.Plan({"w": LeafPlan((8, 4), {axis: np.array(kept) for axis, kept in keep.items()})})
        for found, wanted in zip(moments(plan.take(state)).values(), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_factored_moments_of_layers_that_keep_different_units():
    kept = np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 2, 4, 6, 7]])
    state = optax.scale_by_factored_rms(min_dim_size_to_factor=4).init({"w": jnp.ones((3, 8, 6))})
    state = state._replace(v_row={"w": numbers(3, 6)}, v_col={"w": numbers(3, 8)})
    taken = moments(jaxprune.Plan({"w": LeafPlan((3, 8, 6), {1: kept}, 0)}).take(state))
    # The units were the larger axis and no longer are.
    np.testing.assert_array_equal(taken["v_row"], np.take_along_axis(np.arange(24.0).reshape(3, 8), kept, 1))
    np.testing.assert_array_equal(taken["v_col"], np.arange(18.0).reshape(3, 6))
    tall = optax.scale_by_factored_rms(min_dim_size_to_factor=4).init({"w": jnp.ones((8, 6, 3))})
    with pytest.raises(ValueError, match="is a mean over layers that keep different units"):
        jaxprune.Plan({"w": LeafPlan((8, 6, 3), {1: np.tile(kept[:1], (8, 1))}, 0)}).take(tall)


def test_what_is_not_factored_tells_from_which_size_on_others_are():
    params = {"small": jnp.ones((2, 2)), "w": jnp.ones((8, 4))}
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=3)
    plan = jaxprune.Plan({"small": LeafPlan((2, 2)), "w": LeafPlan((8, 4), {1: np.array([0, 3])})})
    taken, expected = plan.take(optimizer.init(params)), optimizer.init(plan.take(params))
    assert jax.tree.map(np.shape, taken) == jax.tree.map(np.shape, expected)


def test_packed_masks_in_a_state_are_taken():
    params = full_params()
    optimizer = jaxprune.gradual(
        ADAM, jaxprune.magnitude, optax.constant_schedule(0.5), begin=0, end=4, every=2, packed=True
    )
    _, state = update(optimizer, gradients(params, 0), optimizer.init(params), params, 0.0)
    small, taken = PLAN.take(params), PLAN.take(state)
    expected = PLAN.take(jaxprune.masks_of(state))
    jax.tree.map(np.testing.assert_array_equal, jaxprune.masks_of(taken), expected)
    updates, _ = update(optimizer, PLAN.take(gradients(params, 1)), taken, small, 0.0)
    full, _ = update(optimizer, gradients(params, 1), state, params, 0.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, PLAN.take(full))
    abstract = PLAN.take(jax.eval_shape(lambda s: s, state))
    assert jax.tree.map(np.shape, abstract) == jax.tree.map(np.shape, taken)


def test_a_mask_over_frequencies_of_what_shrinks_is_refused():
    masks = {"b": {"kernel": jaxprune.dft(jnp.ones((8, 3)), 0.5)}}
    with pytest.raises(ValueError, match="'b/kernel' is over frequencies"):
        PLAN.take(masks)
    # A leaf that the plan does not know, and one that keeps all of itself.
    others = {"c": {"kernel": masks["b"]["kernel"]}, "b": {"bias": jaxprune.dft(jnp.ones((1, 3)), 0.5)}}
    assert jax.tree.leaves(PLAN.take(others)) == jax.tree.leaves(others)


@pytest.mark.skipif(not hasattr(optax.contrib, "galore"), reason="optax before 0.2.7")
def test_the_projected_state_of_a_square_kernel_is_refused():
    """Its shape is the parameter's, but its coordinates are not."""
    plan = jaxprune.Plan({"w": LeafPlan((8, 8), {1: KEPT})})
    state = optax.contrib.galore(0.1, rank=8).init({"w": jnp.ones((8, 8))})
    with pytest.raises(ValueError, match="projected coordinates"):
        plan.take(state)


def test_the_parts_of_a_state_below_each_parameter_are_taken():
    state = {"a": {"kernel": {"m": jnp.ones((6, 8)), "v": (jnp.ones((6, 8)), jnp.ones(()))}, "bias": [jnp.ones(8)]}}
    taken = PLAN.take(state)
    assert jax.tree.map(np.shape, taken) == {
        "a": {"kernel": {"m": (6, 4), "v": ((6, 4), ())}, "bias": [(4,)]}
    }  # fmt: skip
    with pytest.raises(ValueError, match="'a/kernel/m' has shape"):
        PLAN.take({"a": {"kernel": {"m": jnp.ones((2, 9))}}})


def test_each_part_keeps_its_own_values():
    flat, kernel = np.arange(83.0), np.arange(24.0).reshape(8, 3)
    state = {
        "mu": {"b": {"kernel": numbers(8, 3)}},
        "b": {"kernel": {"m": numbers(8, 3), "0": numbers(8), "1": numbers(3), "count": jnp.ones(())}},
        "flat": numbers(83),
        "other": numbers(8, 3),
        "83": jnp.arange(83),  # no moments, since these are floating
    }
    expected = {
        "mu": {"b": {"kernel": kernel[KEPT]}},
        "b": {"kernel": {"m": kernel[KEPT], "0": KEPT, "1": np.arange(3), "count": 1}},
        "flat": np.concatenate([
            flat[:8][KEPT], flat[8:56].reshape(6, 8)[:, KEPT].ravel(), flat[56:59],
            flat[59:].reshape(8, 3)[KEPT].ravel(),
        ]),
        "other": kernel,
        "83": np.arange(83),
    }  # fmt: skip
    taken = PLAN.take(state)
    jax.tree.map(np.testing.assert_array_equal, taken, expected)
    assert jax.tree.map(np.shape, PLAN.take(jax.eval_shape(lambda: state))) == jax.tree.map(np.shape, expected)
    back = PLAN.put({"b": {"kernel": {"m": taken["b"]["kernel"]["m"], "row": jnp.ones((1, 3))}}}, -1.0)["b"]["kernel"]
    wide = np.full((8, 3), -1.0)
    wide[KEPT] = kernel[KEPT]
    np.testing.assert_array_equal(back["m"], wide)
    np.testing.assert_array_equal(back["row"], np.ones((1, 3)))


def test_layers_that_keep_different_units_are_taken_and_put_back():
    kept = np.array([[0, 2], [1, 3], [0, 3]])
    for shape, stack, axis in (((3, 2, 4), 0, 2), ((4, 3), 1, 0), ((2, 3, 4), 1, 2)):
        plan = jaxprune.Plan({"w": LeafPlan(shape, {axis: kept}, stack)})
        full = np.arange(float(np.prod(shape))).reshape(shape)
        # With the layers in front and the units behind.
        turned = np.moveaxis(full, (stack, axis), (0, -1)).reshape(3, -1, 4)
        small = np.stack([turned[layer][:, kept[layer]] for layer in range(3)])
        wide = np.full(turned.shape, 9.0)
        for layer in range(3):
            wide[layer][:, kept[layer]] = small[layer]
        taken = plan.take({"w": jnp.asarray(full)})
        back = plan.put(taken, 9.0)
        for found, expected in ((taken, small), (back, wide)):
            np.testing.assert_array_equal(
                np.moveaxis(found["w"], (stack, axis), (0, -1)).reshape(expected.shape), expected
            )


def test_moments_by_axis_of_a_square_kernel_are_told_apart():
    plan = jaxprune.Plan({"w": LeafPlan((8, 8), {1: KEPT})})
    taken = plan.take({"w": {"0": numbers(8), "1": numbers(8)}})
    assert jax.tree.map(list, taken) == {"w": {"0": list(range(8)), "1": list(KEPT)}}
