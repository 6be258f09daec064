"""One-shot pruning of a layer against float64 NumPy references, brute force and each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import layerwise
from jaxprune.layerwise import _choice
from jaxprune.patterns import NM, Block, Unstructured


def inputs(samples, width, seed=0, outliers=0.0):
    """Correlated inputs, a fraction of which is 20 times as large."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, width // 2)) @ rng.normal(size=(width // 2, width)) / np.sqrt(width // 2)
    x += 0.3 * rng.normal(size=x.shape)
    large = rng.permutation(width)[: round(width * outliers)]
    x[:, large] *= 20
    return x


def layer(width, out, samples, seed=0, outliers=0.0):
    x = inputs(samples, width, seed, outliers)
    kernel = np.random.default_rng(seed + 1).normal(size=(width, out)) / np.sqrt(width)
    return kernel.astype(np.float32), (x.T @ x).astype(np.float32)


def error(kernel, pruned, gram):
    """The squared error of the layer's outputs, relative to the outputs."""
    k, p, g = (np.asarray(a, np.float64) for a in (kernel, pruned, gram))
    return np.trace((k - p).T @ g @ (k - p)) / np.trace(k.T @ g @ k)


def highest(scores, keep):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.reshape(-1), kind="stable")[:keep]] = True
    return mask.reshape(scores.shape)


def reference_sparsegpt(kernel, gram, block, choose, group, damping=0.01):
    """Input by input, from the inverse of the damped Gram matrix and its Cholesky factor, as the paper states it."""
    w, h = kernel.astype(np.float64), gram.astype(np.float64)
    dead = np.diag(h) == 0
    h[dead, dead] = np.diag(h)[~dead].mean()
    w[dead] = 0
    h += damping * np.diag(gram)[~dead].mean() * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    mask = np.ones(w.shape, bool)
    for start in range(0, len(w), block):
        end = min(start + block, len(w))
        for i in range(start, end):
            if (i - start) % group == 0:
                rows = slice(i, min(i + group, end))
                mask[rows] = choose((w[rows] / np.diag(upper)[rows, None]) ** 2)
            error = np.where(mask[i], 0, w[i]) / upper[i, i]
            w[i + 1 :] -= upper[i, i + 1 :, None] * error
            w[i] = np.where(mask[i], w[i], 0)
    return w, mask


def best_of_columns(scores, keep):
    return np.stack([highest(column, keep) for column in scores.T], axis=1)


@pytest.mark.parametrize("keep", [0, 1, 17, 40, 59, 60])
def test_the_highest_are_chosen_exactly(keep):
    """Few different values, so that ties decide; NaN goes first, -0 is 0."""
    rng = np.random.default_rng(keep)
    scores = rng.integers(-2, 3, (12, 5)).astype(np.float32) * np.float32(0.7)
    scores[rng.integers(0, 12, 6), rng.integers(0, 5, 6)] = np.nan
    scores[rng.integers(0, 12, 6), rng.integers(0, 5, 6)] = -0.0
    ranked = np.nan_to_num(scores, nan=-9)
    got = _choice.highest(jnp.asarray(scores), jnp.int32(keep), False)
    np.testing.assert_array_equal(got, highest(ranked, keep))
    got = _choice.highest(jnp.asarray(scores), jnp.int32(keep // 5), True)
    np.testing.assert_array_equal(got, best_of_columns(ranked, keep // 5))


_CHOICES = {
    "block": (Unstructured(), {}, 64, lambda s: highest(s, s.size // 2)),
    "output": (Unstructured(), {"within": "output"}, 64, lambda s: best_of_columns(s, len(s) // 2)),
    "2:4": (NM(2, 4), {}, 4, lambda s: best_of_columns(s, 2)),
    "1:4": (NM(1, 4), {}, 4, lambda s: best_of_columns(s, 1)),
}


@pytest.mark.parametrize("name", list(_CHOICES))
def test_sparsegpt_equals_the_reference(name):
    """The last block is not whole."""
    pattern, options, group, choose = _CHOICES[name]
    kernel, gram = layer(168, 96, 1024, outliers=0.01)
    expected, expected_mask = reference_sparsegpt(kernel, gram, 64, choose, group)
    pruned, mask = layerwise.sparsegpt(jnp.asarray(kernel), jnp.asarray(gram), pattern=pattern, block=64, **options)
    assert (np.asarray(mask) == expected_mask).mean() >= 0.995
    assert mask.sum() == expected_mask.sum()
    assert not np.asarray(pruned)[~np.asarray(mask)].any()
    np.testing.assert_allclose(error(kernel, pruned, gram), error(kernel, expected, gram), rtol=0.01)
    without_repair = error(kernel, np.where(mask, kernel, 0), gram)
    assert error(kernel, pruned, gram) < 0.8 * without_repair


def test_admm_beats_sparsegpt_where_inputs_have_outliers():
    kernel, gram = layer(256, 256, 1024, outliers=0.01)
    errors = {}
    for method in (layerwise.sparsegpt, layerwise.admm):
        pruned, mask = method(jnp.asarray(kernel), jnp.asarray(gram), 0.5)
        assert mask.sum() == mask.size // 2
        assert not np.asarray(pruned)[~np.asarray(mask)].any()
        errors[method] = error(kernel, pruned, gram)
    assert errors[layerwise.admm] <= errors[layerwise.sparsegpt] / 3


@pytest.mark.parametrize(
    ("pattern", "within"), [(Unstructured(), "layer"), (Unstructured(), "output"), (NM(2, 4), "layer")]
)
def test_admm_is_the_least_squares_solution_on_its_mask(pattern, within):
    kernel, gram = layer(64, 32, 512, outliers=0.05)
    damped = gram.astype(np.float64) + 0.01 * np.diag(np.diag(gram))
    for refit in (False, True):
        pruned, mask = layerwise.admm(
            jnp.asarray(kernel), jnp.asarray(gram), pattern=pattern, within=within, refit=refit
        )
        expected = np.zeros(kernel.shape)
        for column, kept in enumerate(np.asarray(mask).T):
            right = damped[kept] @ kernel[:, column]
            expected[kept, column] = np.linalg.solve(damped[np.ix_(kept, kept)], right)
        assert error(expected, pruned, damped) < (1e-9 if refit else 1e-6)
        assert mask.sum() == mask.size // 2
        if within == "output":
            assert (mask.sum(axis=0) == 32).all()
        if isinstance(pattern, NM):
            assert (mask.reshape(-1, 4, 32).sum(axis=1) == 2).all()


def least_squares(kernel, gram, mask):
    """The float64 solution for each output on its own support."""
    k, g = np.asarray(kernel, np.float64), np.asarray(gram, np.float64)
    solved = np.zeros(k.shape)
    for column, kept in enumerate(np.asarray(mask).T):
        solved[kept, column] = np.linalg.solve(g[np.ix_(kept, kept)], g[kept] @ k[:, column])
    return solved


@pytest.mark.parametrize("exact", [False, True])
def test_refit_is_least_squares_on_any_mask(exact):
    kernel, gram = layer(64, 32, 512, outliers=0.05)
    mask = np.random.default_rng(3).random(kernel.shape) < 0.4
    mask[:, 0], mask[:, 1] = True, False
    best = error(kernel, least_squares(kernel, gram, mask), gram)
    got = layerwise.refit(jnp.asarray(kernel), jnp.asarray(gram), jnp.asarray(mask), damping=0.0, exact=exact)
    np.testing.assert_allclose(error(kernel, got, gram), best, rtol=1e-3)
    assert best < 0.6 * error(kernel, np.where(mask, kernel, 0), gram)
    assert not np.asarray(got)[~mask].any()
    np.testing.assert_allclose(got[:, 0], kernel[:, 0], atol=1e-4)
    damped = layerwise.refit(jnp.asarray(kernel), jnp.asarray(gram), jnp.asarray(mask), exact=exact)
    wide = gram.astype(np.float64) + 0.01 * np.diag(np.diag(gram))
    assert error(least_squares(kernel, wide, mask), damped, wide) < 1e-8


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_corrected_kernels_are_least_squares(share):
    """Changed inputs are asked for a mixture of what the given kernel makes of either."""
    x = inputs(200, 32)
    changed = x + 0.5 * inputs(200, 32, seed=7)
    kernel = np.random.default_rng(1).normal(size=(32, 12))
    drift = np.random.default_rng(2).normal(size=(200, 12))
    goal = share * (x @ kernel + drift) + (1 - share) * changed @ kernel
    gram, cross = changed.T @ changed, changed.T @ x
    pull = 0.2 * np.diag(np.diag(gram))
    expected = np.linalg.solve(gram + pull, changed.T @ goal + pull @ kernel)
    kernel, gram, cross, residual = (jnp.asarray(a, jnp.float32) for a in (kernel, gram, cross, changed.T @ drift))
    got = layerwise.correct(kernel, gram, cross, share=share, damping=0.2, residual=residual)
    np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.wrong_types
def test_corrections_that_do_not_fit_are_said():
    kernel, gram = jnp.ones((4, 2)), jnp.eye(4)
    with pytest.raises(ValueError, match=r"`cross` must have the shape \(4, 4\).*got \(3, 4\) and 1.0"):
        layerwise.correct(kernel, gram, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\].*and 1.5"):
        layerwise.correct(kernel, gram, gram, share=1.5)
    with pytest.raises(ValueError, match=r"`residual` must have the shape \(4, 2\) of the kernel; got \(2, 4\)"):
        layerwise.correct(kernel, gram, gram, residual=kernel.T)
    with pytest.raises(ValueError, match=r"Transpose an \(out, in\) kernel"):
        layerwise.correct(kernel.T, gram, gram)


def swapped_by_brute_force(kernel, mask, gram, m=None):
    """Tries every swap of each output, with the error computed anew, and makes the best until none helps."""
    w, h, mask = kernel.astype(np.float64), gram.astype(np.float64), mask.copy()

    def cost(column, kept):
        lost = np.where(kept, 0, w[:, column])
        return lost @ h @ lost

    for column in range(w.shape[1]):
        while True:
            kept, tried = mask[:, column], {}
            for i, j in itertools.product(np.flatnonzero(~kept), np.flatnonzero(kept)):
                if m is None or i // m == j // m:
                    other = kept.copy()
                    other[[i, j]] = True, False
                    tried[i, j] = cost(column, other)
            best = min(tried, key=tried.get)
            if tried[best] >= cost(column, kept) * (1 - 1e-5):
                break
            mask[best, column] = True, False
    return mask


def test_swaps_in_groups_are_those_of_brute_force():
    kernel, gram = layer(16, 6, 64, outliers=0.1)
    start = best_of_columns(np.abs(kernel).reshape(4, 4, 6).transpose(1, 0, 2).reshape(4, 24), 2)
    start = start.reshape(4, 4, 6).transpose(1, 0, 2).reshape(16, 6)
    got = layerwise.swap(jnp.asarray(kernel), jnp.asarray(gram), jnp.asarray(start), pattern=NM(2, 4))
    np.testing.assert_array_equal(got, swapped_by_brute_force(kernel, start, gram, 4))
    assert (got != start).any()
    assert (got.reshape(4, 4, 6).sum(axis=1) == 2).all()


def test_swaps_come_near_the_best_mask():
    """On a layer small enough to try every mask; and no error ever rises."""
    kernel, gram = layer(10, 8, 64, outliers=0.1)
    start = best_of_columns(np.abs(kernel), 5)
    got = np.asarray(layerwise.swap(jnp.asarray(kernel), jnp.asarray(gram), jnp.asarray(start)))
    assert (got.sum(axis=0) == 5).all()
    h = gram.astype(np.float64)

    def cost(mask, column):
        lost = np.where(mask, 0, kernel[:, column].astype(np.float64))
        return lost @ h @ lost

    masks = [np.isin(np.arange(10), kept) for kept in itertools.combinations(range(10), 5)]
    before, after, best = (
        np.array([min(cost(mask, c) for mask in tried(c)) for c in range(8)])
        for tried in (lambda c: [start[:, c]], lambda c: [got[:, c]], lambda c: masks)
    )
    assert (after <= before * (1 + 1e-6)).all()
    assert (after >= best * (1 - 1e-6)).all()
    assert after.sum() < 0.6 * before.sum()
    assert after.sum() < 1.3 * best.sum()


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)])
def test_swaps_lower_the_error_of_a_large_layer(pattern):
    kernel, gram = layer(128, 64, 1024, outliers=0.02)
    norm = np.sqrt(np.diag(gram))
    pruned, mask = layerwise.wanda(jnp.asarray(kernel), jnp.asarray(norm), pattern=pattern)
    got = layerwise.swap(jnp.asarray(kernel), jnp.asarray(gram), mask, pattern=pattern)
    np.testing.assert_array_equal(got.sum(axis=0), mask.sum(axis=0))
    assert error(kernel, np.where(got, kernel, 0), gram) < 0.8 * error(kernel, pruned, gram)
    few = layerwise.swap(jnp.asarray(kernel), jnp.asarray(gram), mask, pattern=pattern, steps=1)
    assert 0 < (few != mask).sum() <= 2 * 64
    for extreme in (jnp.ones_like(mask), jnp.zeros_like(mask)):
        np.testing.assert_array_equal(layerwise.swap(jnp.asarray(kernel), jnp.asarray(gram), extreme), extreme)


@pytest.mark.wrong_types
@pytest.mark.parametrize("method", [layerwise.refit, layerwise.swap])
def test_masks_that_do_not_fit_are_said(method):
    kernel, gram = (jnp.asarray(a) for a in layer(12, 8, 64))
    with pytest.raises(ValueError, match=r"boolean and of the kernel's shape \(12, 8\); got bool \(12, 1\)"):
        method(kernel, gram, jnp.ones((12, 1), bool))
    with pytest.raises(ValueError, match="got float32"):
        method(kernel, gram, jnp.ones((12, 8)))
    with pytest.raises(ValueError, match=r"Transpose an"):
        method(kernel.T, gram, jnp.ones((8, 12), bool))
    if method is layerwise.swap:
        with pytest.raises(ValueError, match="Take `group=1`"):
            method(kernel, gram, jnp.ones((12, 8), bool), pattern=NM(2, 4, group=2))
        with pytest.raises(ValueError, match=r"`NM\(2, 8\)` runs along the inputs"):
            method(kernel, gram, jnp.ones((12, 8), bool), pattern=NM(2, 8))


def greedy_by_brute_force(kernel, gram, removed, n=None, m=None):
    """Tries every single removal with an exact solution each time, and takes the cheapest, for one output."""
    kept, h, w = list(range(len(kernel))), gram.astype(np.float64), kernel.astype(np.float64)

    def solved(kept):
        values = np.zeros(len(w))
        values[kept] = np.linalg.solve(h[np.ix_(kept, kept)], h[kept] @ w)
        return values

    def cost(kept):
        difference = w - solved(kept)
        return difference @ h @ difference

    for _ in range(removed):
        allowed = [i for i in kept if m is None or sum(j // m == i // m for j in kept) > n]
        gone = min(allowed, key=lambda i: cost([j for j in kept if j != i]))
        kept.remove(gone)
    return solved(kept), np.isin(np.arange(len(w)), kept)


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)])
def test_obs_equals_brute_force(pattern):
    kernel, gram = layer(8, 6, 64)
    groups = () if pattern == Unstructured() else (2, 4)
    columns = [greedy_by_brute_force(column, gram, 4, *groups) for column in kernel.T]
    pruned, mask = layerwise.obs(jnp.asarray(kernel), jnp.asarray(gram), 0.5, pattern=pattern, within="output")
    np.testing.assert_array_equal(mask, np.stack([kept for _, kept in columns], axis=1))
    np.testing.assert_allclose(pruned, np.stack([values for values, _ in columns], axis=1), atol=2e-4)


def test_obs_over_a_layer_takes_the_cheapest_weight_of_any_output():
    """The layer is block diagonal if its outputs are laid end to end, and so a single output of brute force."""
    kernel, gram = layer(5, 3, 64)
    values, kept = greedy_by_brute_force(kernel.T.reshape(-1), np.kron(np.eye(3), gram), 7)
    pruned, mask = layerwise.obs(jnp.asarray(kernel), jnp.asarray(gram), 7 / 15)
    np.testing.assert_array_equal(mask, kept.reshape(3, 5).T)
    np.testing.assert_allclose(pruned, values.reshape(3, 5).T, atol=2e-4)


@pytest.mark.wrong_types
@pytest.mark.parametrize("within", ["layer", "output"])
def test_wanda_removes_what_adds_least(within):
    kernel, gram = layer(12, 7, 64, outliers=0.2)
    norm = np.sqrt(np.diag(gram))
    scores = np.abs(kernel) * norm[:, None]
    expected = highest(scores, 42) if within == "layer" else best_of_columns(scores, 6)
    pruned, mask = layerwise.wanda(jnp.asarray(kernel), jnp.asarray(norm), 0.5, within=within)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(pruned, np.where(expected, kernel, 0))
    with pytest.raises(ValueError, match=r"got \(12, 7\)"):
        layerwise.wanda(jnp.asarray(kernel), jnp.asarray(norm[:5]), 0.5)


def test_errors_are_ordered():
    """The best mask <= exact greedy <= ADMM, SparseGPT <= magnitude, on a layer small enough to try every mask."""
    kernel, gram = layer(10, 6, 64)
    h = gram.astype(np.float64)

    def of_mask(kept, column):
        right = h[list(kept)] @ column
        values = np.zeros(10)
        values[list(kept)] = np.linalg.solve(h[np.ix_(kept, kept)], right)
        return (column - values) @ h @ (column - values)

    best = sum(min(of_mask(kept, c) for kept in itertools.combinations(range(10), 5)) for c in kernel.T)
    best /= np.trace(kernel.T @ h @ kernel)
    k, g = jnp.asarray(kernel), jnp.asarray(gram)
    greedy = error(kernel, layerwise.obs(k, g, within="output")[0], gram)
    others = [error(kernel, method(k, g, within="output")[0], gram) for method in (layerwise.sparsegpt, layerwise.admm)]
    magnitude = error(kernel, kernel * best_of_columns(np.abs(kernel), 5), gram)
    assert best <= greedy * (1 + 1e-4)
    assert greedy < 1.3 * best
    assert all(best * (1 - 1e-4) <= other < 0.7 * magnitude for other in others)


def test_dead_inputs_go_first():
    kernel, gram = layer(64, 32, 512)
    dead = np.arange(0, 64, 3)
    gram[dead] = gram[:, dead] = 0
    for method in (layerwise.sparsegpt, layerwise.admm, layerwise.obs):
        pruned, mask = method(jnp.asarray(kernel), jnp.asarray(gram), 0.5, within="output")
        assert not np.asarray(mask)[dead].any()
        assert np.isfinite(pruned).all()
        assert error(kernel, pruned, gram) < 0.1
    expected, expected_mask = reference_sparsegpt(kernel, gram, 128, lambda s: highest(s, s.size // 2), 128)
    pruned, mask = layerwise.sparsegpt(jnp.asarray(kernel), jnp.asarray(gram), 0.5)
    assert (np.asarray(mask) == expected_mask).mean() >= 0.995
    np.testing.assert_allclose(error(kernel, pruned, gram), error(kernel, expected, gram), rtol=0.01)


def deficient(width=64):
    x = inputs(width // 4, width)
    return jnp.asarray((x.T @ x).astype(np.float32))


def test_a_gram_matrix_of_low_rank_is_damped_more_and_that_is_said():
    kernel, _ = layer(64, 32, 64)
    gram = deficient()
    for method in (layerwise.sparsegpt, layerwise.obs):
        with pytest.warns(UserWarning, match=r"damping was raised [1-9] times, to 1e-0[3-6] of the mean"):
            pruned, mask = method(jnp.asarray(kernel), gram, 0.5, damping=0.0)
        assert mask.sum() == mask.size // 2
        assert error(kernel, pruned, gram) < 0.1
    with pytest.warns(UserWarning, match="damping was raised"):
        damped = layerwise.damp(gram, damping=0.0)
    assert damped.steps >= 1
    assert damped.damping > 0
    pruned, _ = layerwise.sparsegpt(jnp.asarray(kernel), damped, 0.5)
    assert error(kernel, pruned, gram) < 0.1
    with pytest.warns(UserWarning, match="damping was raised"):
        layerwise.admm(jnp.asarray(kernel), gram, 0.25, damping=0.0, refit=True)
    pruned, _ = layerwise.admm(jnp.asarray(kernel), gram, 0.5, damping=0.0)
    assert error(kernel, pruned, gram) < 1e-4, "a quarter of the weights can reproduce the outputs"


@pytest.mark.filterwarnings("default")
def test_damping_raised_under_jit_is_said_when_the_program_runs(recwarn):
    jax.block_until_ready(jax.jit(layerwise.damp)(deficient(), damping=0.0))
    jax.effects_barrier()
    assert any("damping was raised" in str(warning.message) for warning in recwarn)


def test_damping_factorises():
    _, gram = layer(96, 4, 512)
    damped = layerwise.damp(jnp.asarray(gram))
    mean = np.diag(gram).mean()
    np.testing.assert_allclose(damped.gram, gram + 0.01 * mean * np.eye(96), rtol=1e-4)
    np.testing.assert_array_equal(damped.upper, np.triu(damped.upper))
    identity = np.asarray(damped.upper, np.float64).T @ damped.upper @ np.asarray(damped.gram, np.float64)
    np.testing.assert_allclose(identity, np.eye(96), atol=1e-3)
    assert damped.steps == 0


@pytest.mark.parametrize(("beyond", "steps", "damping"), [(0.0, 1, 1e-6), (3e-4, 4, 1e-3), (499.0, 10, 1e3)])
def test_damping_rises_tenfold_from_a_millionth_up_to_ten_times(beyond, steps, damping):
    gram = jnp.array([[1.0, 1 + beyond], [1 + beyond, 1.0]])
    with pytest.warns(UserWarning, match=f"raised {steps} times, to {damping:g} of"):
        damped = layerwise.damp(gram, damping=0.0)
    assert damped.steps == steps
    np.testing.assert_allclose(damped.damping, damping, rtol=1e-6)
    np.testing.assert_allclose(damped.gram, gram + damping * jnp.eye(2), rtol=1e-6)
    with pytest.raises(ValueError, match="could not be factorised, even with 1000 of its mean"):
        layerwise.damp(gram.at[0, 1].set(1200.0).at[1, 0].set(1200.0), damping=0.0)


def test_the_mean_for_damping_is_over_inputs_that_were_seen():
    damped = layerwise.damp(jnp.diag(jnp.array([1.0, 0.0, 3.0, 0.0])), damping=0.5)
    np.testing.assert_allclose(jnp.diagonal(damped.gram)[jnp.array([0, 2])], [2.0, 4.0], rtol=1e-6)
    assert 0 < damped.gram[1, 1] < 1e-3
    assert damped.steps == 0


def test_under_transformations():
    kernel, gram = (jnp.asarray(a) for a in layer(64, 32, 128))
    for method in (layerwise.sparsegpt, layerwise.admm):
        expected, mask = method(kernel, gram, 0.5)
        both = jax.jit(jax.vmap(method, in_axes=(0, 0, None)))
        stacked, masks = both(jnp.stack([kernel[::-1], kernel]), jnp.stack([gram] * 2), jnp.float32(0.5))
        np.testing.assert_array_equal(masks[1], mask)
        np.testing.assert_allclose(stacked[1], expected, atol=1e-3)
        small, _ = method(kernel.astype(jnp.bfloat16), gram, 0.5)
        assert small.dtype == jnp.bfloat16
        assert error(kernel, small.astype(jnp.float32), gram) < 1.1 * error(kernel, expected, gram) + 1e-3


@pytest.mark.parametrize("method", [layerwise.sparsegpt, layerwise.admm, layerwise.obs])
def test_extremes(method):
    kernel, gram = (jnp.asarray(a) for a in layer(64, 32, 128))
    whole, mask = method(kernel, gram, 0.0)
    assert mask.all()
    np.testing.assert_allclose(whole, kernel, atol=1e-4)
    empty, mask = method(kernel, gram, 1.0)
    assert not mask.any()
    assert not empty.any()
    _, mask = method(kernel[:, :1], gram, 0.5)
    assert mask.sum() == 32


@pytest.mark.wrong_types
@pytest.mark.parametrize("method", [layerwise.sparsegpt, layerwise.admm, layerwise.obs])
def test_what_does_not_fit_is_said(method):
    kernel, gram = (jnp.asarray(a) for a in layer(10, 8, 64))
    with pytest.raises(ValueError, match=r"got \(8, 10\) and \(10, 10\)\. Transpose"):
        method(kernel.T, gram, 0.5)
    with pytest.raises(ValueError, match=r"`NM\(2, 4\)` runs along the inputs.*\(10, 8\)"):
        method(kernel, gram, pattern=NM(2, 4))
    with pytest.raises(ValueError, match="axis -1"):
        method(kernel, gram, pattern=NM(1, 2, axis=-1))
    with pytest.raises(ValueError, match=r"fixes the sparsity at 0\.5; got 0\.7"):
        method(kernel, gram, 0.7, pattern=NM(1, 2))
    with pytest.raises(ValueError, match=r"between 0 and 1; got 50"):
        method(kernel, gram, 50)
    with pytest.raises(TypeError, match=r"must be `Unstructured\(\)` or `NM\(n, m\)`; got Block"):
        method(kernel, gram, 0.5, pattern=Block((2, 2)))
    with pytest.raises(TypeError, match="'kernel' must be a floating-point array"):
        method(kernel.astype(jnp.int32), gram, 0.5)
    with pytest.raises(ValueError, match=r"could not be factorised.*Look for NaN"):
        method(kernel, gram.at[3, 3].set(jnp.nan), 0.5)
    with pytest.raises(ValueError, match=r"square, \(in, in\)|\(in, in\); got"):
        layerwise.damp(gram[:, :4])
    with pytest.raises(ValueError, match="`block` is a number of inputs"):
        layerwise.sparsegpt(kernel, gram, 0.5, block=0)
    with pytest.raises(ValueError, match="`iterations` must be at least 1"):
        layerwise.admm(kernel, gram, 0.5, iterations=0)
