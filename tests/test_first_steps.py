"""Where parameters go in the first steps of every transform, against the same steps in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import patterns

pytestmark = pytest.mark.dtype_promotion
RATE, STEPS = 0.1, 5
RNG = np.random.default_rng(0)
START = RNG.standard_normal((8, 4)).astype(np.float32)
TARGET = RNG.standard_normal((8, 4)).astype(np.float32)
OPTIMIZERS = {"momentum": optax.sgd(RATE, momentum=0.9), "adam": optax.adam(RATE)}
FIXED = {
    "single": jaxprune.magnitude({"kernel": START}, 0.5),
    "2:4": jaxprune.magnitude({"kernel": START}, pattern=patterns.NM(2, 4)),
    "channel": {"kernel": np.array([[True, False, True, True]])},
    "frequencies": jaxprune.dft({"kernel": jnp.asarray(START)}, 0.5),
}


class Momentum:
    def __init__(self):
        self.trace = np.zeros(START.shape)

    def __call__(self, grad):
        self.trace = 0.9 * self.trace + grad
        return -RATE * self.trace

    def forget(self, kept):
        self.trace = np.where(kept, self.trace, 0)


class Adam:
    def __init__(self):
        self.step, self.first, self.second = 0, np.zeros(START.shape), np.zeros(START.shape)

    def __call__(self, grad):
        self.step += 1
        self.first, self.second = 0.9 * self.first + 0.1 * grad, 0.999 * self.second + 0.001 * grad**2
        first, second = self.first / (1 - 0.9**self.step), self.second / (1 - 0.999**self.step)
        return -RATE * first / (np.sqrt(second) + 1e-8)

    def forget(self, kept):
        self.first, self.second = np.where(kept, self.first, 0), np.where(kept, self.second, 0)


BY_HAND = {"momentum": Momentum, "adam": Adam}


def projection(mask):
    """What a mask does to a kernel, by NumPy."""
    if isinstance(mask, jaxprune.Spectral):
        keep = np.asarray(mask.keep)
        return lambda w: np.fft.irfft2(np.where(keep, np.fft.rfft2(w, norm="ortho"), 0), s=w.shape, norm="ortho")
    return lambda w: np.where(np.asarray(mask), w, 0)


def gradient(weights):
    return weights - TARGET


def largest(weights, sparsity):
    kept = np.zeros(weights.size, bool)
    kept[np.argsort(-np.abs(weights.ravel()), kind="stable")[: round(weights.size * (1 - sparsity))]] = True
    return kept.reshape(weights.shape)


def run(optimizer, steps=STEPS, grads=gradient):
    """The weights after each step, and the masks."""
    params, found, masks = {"kernel": jnp.asarray(START)}, [], []
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = update({"kernel": grads(params["kernel"])}, state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(params["kernel"]))
        masks.append(jaxprune.masks_of(state)["kernel"])
    return found, masks


def agree(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("masks", FIXED)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masked_follows_the_projected_gradient(optimizer, masks):
    project, by_hand, weights, expected = projection(FIXED[masks]["kernel"]), BY_HAND[optimizer](), START, []
    for _ in range(STEPS):
        # Adam's step of a projected gradient need not be projected itself.
        weights = project(weights + by_hand(project(gradient(weights))))
        expected.append(weights)
    agree(run(jaxprune.masked(OPTIMIZERS[optimizer], FIXED[masks]))[0], expected)


@pytest.mark.parametrize("masks", FIXED)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_keep_masked_projects_what_the_dense_gradient_does(optimizer, masks):
    project, by_hand, weights, expected = projection(FIXED[masks]["kernel"]), BY_HAND[optimizer](), START, []
    for _ in range(STEPS):
        weights = project(weights + by_hand(gradient(weights)))
        expected.append(weights)
    agree(run(optax.chain(OPTIMIZERS[optimizer], jaxprune.keep_masked(FIXED[masks])))[0], expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradual_prunes_by_its_schedule(optimizer, begin, packed):
    schedule = optax.linear_schedule(0.25, 0.75, 2)
    by_hand, weights, kept, expected = BY_HAND[optimizer](), START, np.ones(START.shape, bool), []
    for step in range(STEPS):
        if begin <= step <= begin + 2:
            kept = largest(weights, 0.25 + 0.25 * (step - begin))
            by_hand.forget(kept)
        weights = np.where(kept, weights + by_hand(np.where(kept, gradient(weights), 0)), 0)
        expected.append(weights)
    gradual = jaxprune.gradual(
        OPTIMIZERS[optimizer], jaxprune.magnitude, schedule, begin=begin, end=begin + 2, packed=packed
    )
    agree(run(gradual)[0], expected)


@pytest.mark.parametrize("begin", [0, 2])
def test_gradual_over_frequencies_follows_the_projected_gradient(begin):
    found, masks = run(jaxprune.gradual(optax.sgd(RATE), jaxprune.dft, 0.5, begin=begin, end=begin))
    weights, expected = START, []
    for step in range(STEPS):
        if step < begin:
            weights = weights - RATE * gradient(weights)
        else:
            project = projection(masks[begin])
            weights = project(weights - RATE * project(gradient(weights)))
        expected.append(weights)
    agree(found, expected)
    chosen_from = START if begin == 0 else found[begin - 1]
    expected_mask = jaxprune.dft({"kernel": jnp.asarray(chosen_from)}, 0.5)["kernel"]
    np.testing.assert_array_equal(masks[begin].keep, expected_mask.keep)


@pytest.mark.parametrize("method", ["rigl", "sparse_evolution"])
@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exchanged_weights_start_from_nothing(optimizer, begin, method):
    drop = optax.linear_schedule(0.5, 0.125, 3)
    kept = np.asarray(FIXED["single"]["kernel"])
    options = {"begin": begin, "end": begin + 3, "every": 2, "drop": drop}
    masks = {"kernel": jnp.asarray(kept)}
    transform = (
        jaxprune.rigl(OPTIMIZERS[optimizer], masks, **options)
        if method == "rigl"
        else jaxprune.sparse_evolution(jax.random.key(0), OPTIMIZERS[optimizer], masks, **options)
    )
    found, chosen = run(transform, steps=begin + 4)
    by_hand, weights, expected = BY_HAND[optimizer](), START, []
    for step in range(begin + 4):
        before = kept
        grad = gradient(weights)
        if step >= begin and ((step - begin) % 2 == 0 or step == begin + 3):
            stay = round(16 * (1 - (0.5 - 0.125 * (step - begin))))
            # Of the weights as they are: a step of Adam moves many by the same, up to rounding.
            actual = found[step - 1] if step else START
            size = np.where(before, np.abs(actual), -1).ravel()
            staying = np.zeros(32, bool)
            staying[np.argsort(-size, kind="stable")[:stay]] = True
            if method == "rigl":
                growth = np.where(staying, np.inf, np.abs(gradient(actual)).ravel())
                kept = np.zeros(32, bool)
                kept[np.argsort(-growth, kind="stable")[:16]] = True
                kept = kept.reshape(START.shape)
            else:
                kept = np.asarray(chosen[step])
                assert kept.sum() == 16
                assert kept.ravel()[staying].all()
        np.testing.assert_array_equal(chosen[step], kept)
        visible = kept & before
        by_hand.forget(visible)
        weights = np.where(visible, weights + by_hand(np.where(visible, grad, 0)), 0)
        expected.append(weights)
    agree(found, expected)


@pytest.mark.parametrize(("end", "staying"), [(3, [11, 14, 16]), (1, [11])])
def test_rigl_exchanges_by_a_falling_cosine_unless_told_otherwise(end, staying):
    masks = {"kernel": jnp.asarray(FIXED["single"]["kernel"])}
    found, chosen = run(jaxprune.rigl(optax.sgd(RATE), masks, begin=1, end=end, every=1), steps=end + 1)
    np.testing.assert_array_equal(chosen[0], masks["kernel"])
    for step, stay in enumerate(staying, 1):
        weights, before = found[step - 1], np.asarray(chosen[step - 1])
        kept = np.zeros(32, bool)
        kept[np.argsort(-np.where(before, np.abs(weights), -1).ravel(), kind="stable")[:stay]] = True
        grown = np.where(kept, np.inf, np.abs(gradient(weights)).ravel())
        expected = np.zeros(32, bool)
        expected[np.argsort(-grown, kind="stable")[:16]] = True
        np.testing.assert_array_equal(np.asarray(chosen[step]).ravel(), expected)


@pytest.mark.parametrize("begin", [0, 1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_acdc_trains_sparse_and_dense_in_turn(optimizer, begin):
    by_hand, weights, kept, expected = BY_HAND[optimizer](), START, np.ones(START.shape, bool), []
    for step in range(STEPS):
        before = kept
        if begin <= step <= begin + 3:
            is_sparse = (step - begin) % 2 == 0 or step == begin + 3
            kept = largest(weights, 0.5) if is_sparse else np.ones(START.shape, bool)
        visible = kept & before
        by_hand.forget(visible)
        weights = np.where(visible, weights + by_hand(np.where(visible, gradient(weights), 0)), 0)
        expected.append(weights)
    agree(
        run(jaxprune.acdc(OPTIMIZERS[optimizer], jaxprune.magnitude, 0.5, begin=begin, end=begin + 3, every=1))[0],
        expected,
    )


@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dpf_trains_dense_weights_by_gradients_of_the_pruned_model(optimizer, begin):
    by_hand, dense, shown, kept, expected = BY_HAND[optimizer](), START, START, np.ones(START.shape, bool), []
    for step in range(STEPS):
        dense = dense + by_hand(gradient(shown) + 0.01 * np.where(kept, 0, dense))
        if begin <= step <= begin + 2:
            kept = largest(dense, 0.5)
        shown = np.where(kept, dense, 0)
        expected.append(shown)
    transform = jaxprune.dpf(OPTIMIZERS[optimizer], jaxprune.magnitude, 0.5, begin=begin, end=begin + 2, decay=0.01)
    agree(run(transform)[0], expected)


@pytest.mark.parametrize("begin", [0, 2])
def test_movement_keeps_what_moves_away_from_zero(begin):
    dense, shown, scores, kept, expected = START, START, np.zeros(START.shape), np.ones(START.shape, bool), []
    for step in range(STEPS):
        grad = gradient(shown)
        scores = scores - grad * dense
        dense = dense - RATE * np.where(kept, grad, 0)
        if begin <= step <= begin + 2:
            kept = np.zeros(32, bool)
            kept[np.argsort(-scores.ravel(), kind="stable")[:16]] = True
            kept = kept.reshape(START.shape)
        shown = np.where(kept, dense, 0)
        expected.append(shown)
    agree(run(jaxprune.movement(optax.sgd(RATE), jaxprune.from_scores, 0.5, begin=begin, end=begin + 2))[0], expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_soft_threshold_pulls_to_zero_until_its_end(optimizer):
    by_hand, weights, kept, expected = BY_HAND[optimizer](), START, START != 0, []
    for step in range(STEPS):
        pulling = step < 3
        visible = kept | pulling
        by_hand.forget(visible)
        weights = np.where(visible, weights + by_hand(np.where(visible, gradient(weights), 0)), 0)
        if pulling:
            kept = np.abs(weights) > 0.3
            weights = np.sign(weights) * np.maximum(np.abs(weights) - 0.3, 0)
        expected.append(weights)
    found, masks = run(jaxprune.soft_threshold(OPTIMIZERS[optimizer], 0.3, end=3))
    agree(found, expected)
    np.testing.assert_array_equal(masks[-1], kept)
    assert 0 < kept.sum() < 32


def test_group_lasso_pulls_groups_by_their_root_mean_square():
    weights, expected = START, []
    for _ in range(STEPS):
        weights = weights - RATE * gradient(weights)
        sizes = np.sqrt(np.mean(weights**2, axis=0, keepdims=True))
        weights = weights * np.maximum(1 - 0.4 / sizes, 0)
        expected.append(weights)
    found, masks = run(jaxprune.group_lasso(optax.sgd(RATE), 0.4))
    agree(found, expected)
    np.testing.assert_array_equal(np.asarray(masks[-1])[0], expected[-1].any(axis=0))


def test_straight_through_has_the_gradient_at_the_pruned_weights():
    mask = FIXED["single"]
    grad = jax.grad(lambda p: 0.5 * jnp.sum((jaxprune.straight_through(p, mask)["kernel"] - TARGET) ** 2))
    got = grad({"kernel": jnp.asarray(START)})["kernel"]
    np.testing.assert_allclose(got, np.where(np.asarray(mask["kernel"]), START, 0) - TARGET, rtol=1e-6)


@pytest.mark.parametrize("masks", ["single", "2:4", "frequencies"])
def test_straight_through_inside_every_transformation(masks):
    mask, weights = FIXED[masks]["kernel"], jnp.asarray(START)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), mask)
    expected = projection(mask)(START)

    def forward(w, m):
        return jaxprune.straight_through({"kernel": w}, {"kernel": m})["kernel"]

    def layers(w, m):
        _, out = jax.lax.scan(lambda c, wm: (c, jax.checkpoint(forward)(*wm)), 0.0, (jnp.stack([w, w]), m))
        return jax.lax.cond(w[0, 0] > -9, lambda: forward(w, mask) + out.sum(0), lambda: out[0])

    np.testing.assert_allclose(jax.jit(layers)(weights, stacked), 3 * expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda w, m: layers(w, m).sum(), argnums=0))(weights, stacked),
        np.full(START.shape, 3.0),
        rtol=1e-6,
    )
    batched = jax.vmap(jax.grad(lambda w, m: forward(w, m).sum()))(jnp.stack([weights, weights]), stacked)
    np.testing.assert_array_equal(batched, np.ones((2, *START.shape)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pruned_weight_is_zero_whatever_it_was(value):
    params = {"kernel": jnp.asarray(START).at[0, 0].set(value), "bias": jnp.ones(4)}
    masks = {"kernel": jnp.ones((8, 4), bool).at[0].set(False), "bias": None}
    adamw = optax.adamw(0.1)
    for transform in (
        jaxprune.masked(adamw, masks),
        optax.chain(optax.sgd(0.1), jaxprune.keep_masked(masks)),
        jaxprune.gradual(adamw, lambda p, s: masks, 0.5, end=9),
        jaxprune.rigl(adamw, masks, end=9, drop=0.0, every=9),
        jaxprune.acdc(adamw, lambda p, s: masks, 0.5, end=9, every=9),
    ):
        new, state = params, transform.init(params)
        for _ in range(2):
            updates, state = transform.update(jax.tree.map(jnp.ones_like, params), state, new)
            new = jaxprune.apply_updates(new, updates, state)
            assert np.isfinite(new["kernel"]).all()
            assert not np.asarray(new["kernel"])[0].any()
        jaxprune.check_masked(new, state)


def test_a_gradient_that_was_infinite_leaves_nothing_in_a_pruned_weight():
    params = {"kernel": jnp.asarray(START)}
    transform = jaxprune.gradual(optax.adamw(0.1), jaxprune.magnitude, 0.5, end=9)
    state = transform.init(params)
    for step in range(4):
        grads = {"kernel": jnp.full((8, 4), 0.1).at[1].set(jnp.inf if step == 1 else 0.1)}
        updates, state = transform.update(grads, state, params)
        params = jaxprune.apply_updates(params, updates, state)
    assert np.isfinite(params["kernel"]).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.inner))


@pytest.mark.parametrize("wrapped", ["decay before Adam", "flattened", "l-bfgs"])
def test_nothing_is_remembered_of_what_is_pruned(wrapped):
    inner = {
        "decay before Adam": optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_adam(), optax.scale(-0.1)),
        "flattened": optax.flatten(optax.adam(0.1)),
        "l-bfgs": optax.scale_by_lbfgs(memory_size=3),
    }[wrapped]
    params = {"a": jnp.asarray(START), "b": jnp.asarray(TARGET)}
    transform = jaxprune.gradual(inner, jaxprune.magnitude, 0.75, begin=2, end=2)
    state = transform.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda w: w**3 + 1, params)
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    pruned = np.concatenate([~np.asarray(mask).ravel() for mask in jax.tree.leaves(jaxprune.masks_of(state))])
    found = 0
    for name in ("mu", "nu", "diff_params_memory", "diff_updates_memory"):
        for _, moment in optax.tree.get_all_with_path(state.inner, name):
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(moment)]
            flat = leaves[0][None] if len(leaves) == 1 else np.concatenate([x.reshape(-1, 32) for x in leaves], axis=1)
            assert not flat[:, pruned].any()
            assert flat[:, ~pruned].any()
            found += 1
    assert found == 2


def test_a_caller_keeps_its_masks_when_a_step_overwrites_the_state():
    masks = jaxprune.magnitude({"kernel": jnp.asarray(START)}, 0.5)
    params = {"kernel": jnp.asarray(START)}
    for transform in (
        jaxprune.masked(optax.adam(0.1), masks),
        jaxprune.keep_masked(masks),
        jaxprune.rigl(optax.adam(0.1), masks, end=9),
        jaxprune.sparse_evolution(jax.random.key(0), optax.adam(0.1), masks, end=9),
    ):
        step = jax.jit(lambda p, s, t=transform: t.update(p, s, p), donate_argnums=1)
        step(params, transform.init(params))
        assert int(masks["kernel"].sum()) == 16


@pytest.mark.parametrize(
    ("dtype", "unit", "most"), [(jnp.bfloat16, 2.0**-7, 4), (jnp.float32, 2.0**-20, 10)], ids=["bfloat16", "float32"]
)
def test_frequencies_may_be_off_by_their_rounding_and_no_more(dtype, unit, most):
    keep = jnp.zeros((8, 5), bool).at[0, 0].set(True)
    mask = {"kernel": jaxprune.dft({"kernel": jnp.ones((8, 8), dtype)}, 0.5)["kernel"]}
    mask = {"kernel": jax.tree.map(lambda _: keep, mask["kernel"])}

    def off(units):
        return {"kernel": jnp.ones((8, 8), dtype).at[3, 3].add(units * unit)}

    jaxprune.check_masked(off(most), mask)
    with pytest.raises(ValueError, match=r"'kernel' \(off by"):
        jaxprune.check_masked(off(most + 1), mask)


def test_a_state_owns_each_of_its_arrays_once():
    """Else a step that is given the state to overwrite would delete the parameters, or overwrite an array twice."""
    params = {"kernel": jnp.asarray(START)}
    own = jnp.ones(3)
    inner = optax.GradientTransformation(lambda p: (p, p, own), lambda updates, state, p=None: (updates, state))
    for transform in (
        jaxprune.masked(inner, FIXED["single"]),
        jaxprune.gradual(inner, jaxprune.magnitude, 0.5, end=3),
        jaxprune.dpf(inner, jaxprune.magnitude, 0.5, end=3),
        jaxprune.movement(inner, jaxprune.from_scores, 0.5, end=3),
        jaxprune.soft_threshold(inner, 0.1),
    ):
        state = transform.init(params)
        arrays = jax.tree.leaves((state, params))
        assert len(set(map(id, arrays))) == len(arrays)
        expected = np.where(np.asarray(jaxprune.masks_of(state)["kernel"]), START, 0)
        for copy in (*state.inner[:2], jax.jit(transform.init)(params).inner[1]):
            np.testing.assert_array_equal(copy["kernel"], expected)
        assert state.inner[2] is own


@pytest.mark.parametrize("name", ["gradual", "acdc", "dpf", "movement", "rigl", "sparse_evolution"])
def test_a_schedule_is_checked_at_both_of_its_ends(name):
    def transform(wrong):
        optimizer, schedule = optax.sgd(RATE), lambda step: jnp.where(step == wrong, 2.0, 0.5)
        options = {"begin": 2, "end": 5, "every": 1}
        if name == "rigl":
            return jaxprune.rigl(optimizer, FIXED["single"], drop=schedule, **options)
        if name == "sparse_evolution":
            return jaxprune.sparse_evolution(jax.random.key(0), optimizer, FIXED["single"], drop=schedule, **options)
        strategy = jaxprune.from_scores if name == "movement" else jaxprune.magnitude
        return getattr(jaxprune, name)(optimizer, strategy, schedule, **options)

    params, word = (
        {"kernel": jnp.asarray(START)},
        "sparsity" if name in ("gradual", "acdc", "dpf", "movement") else "drop",
    )
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=rf"`{word}\({wrong}\)` must be a fraction .* got 2"):
            transform(wrong).init(params)
    transform(4).init(params)


def test_every_leaf_is_checked_behind_dense_and_frequency_masks():
    params = {name: jnp.asarray(START) for name in ("a", "b", "c", "d")}
    masks = {
        "a": None,
        "b": FIXED["frequencies"]["kernel"],
        "c": FIXED["single"]["kernel"],
        "d": FIXED["2:4"]["kernel"],
    }
    with pytest.raises(ValueError, match=r"'b' \(off by \S+\), 'c' \(16 of 16\), 'd' \(16 of 16\)"):
        jaxprune.check_masked(params, masks)
    jaxprune.check_masked(jaxprune.apply(params, masks), masks)
