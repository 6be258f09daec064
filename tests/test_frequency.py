"""Frequency masks: projections, degrees of freedom, and exact counts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import budgets
from jaxprune._selection.frequencies import Ranking, select_frequencies

SHAPES = [(6, 8), (5, 7), (6, 7), (5, 8), (1, 9), (3, 3, 4, 6), (2, 1)]


def kernel(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.partial(jax.jit, static_argnums=1)
def rank_of_projection(mask, shape):
    """The dimension of what a mask lets through: the trace of the projection, column by column."""
    size = int(np.prod(shape))
    columns = jax.vmap(lambda e: mask.project(e.reshape(shape)).reshape(-1))(jnp.eye(size))
    return jnp.trace(columns)


# A cosine basis has no pairs of frequencies, so that odd and even sizes are alike to it.
QUICK = {"dft": SHAPES, "dct": [(5, 8), (3, 3, 4, 6)]}


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        pytest.param(
            transform, shape, marks=() if shape in QUICK[transform] else pytest.mark.slow, id=f"{transform}-{shape}"
        )
        for transform, shape in itertools.product(QUICK, SHAPES)
    ],
)
@pytest.mark.parametrize("keep", ["energy", "low", "high"])
def test_counts_are_exact_degrees_of_freedom(transform, shape, keep):
    size = int(np.prod(shape))
    for axes, sparsity in itertools.product([(-2, -1), (-2,), (-1,)], (0.0, 0.3, 0.77, 1.0)):
        mask = jaxprune.dft([kernel(shape)], sparsity, axes=axes, transform=transform, keep=keep)[0]
        expected = round(size * (1 - sparsity))
        assert int(mask.count(shape)) == expected, (axes, sparsity)
        if size <= 64:
            assert float(rank_of_projection(mask, shape)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transform", ["dft", "dct"])
def test_a_mask_is_an_orthogonal_projection(shape, transform):
    mask = jaxprune.dft([kernel(shape)], 0.6, transform=transform)[0]
    u, v = kernel(shape, 1), kernel(shape, 2)
    once = mask.project(u)
    np.testing.assert_allclose(mask.project(once), once, atol=1e-5)
    np.testing.assert_allclose(jnp.vdot(once, v), jnp.vdot(u, mask.project(v)), atol=1e-4)


def test_energy_keeps_more_of_the_kernel_than_any_other_choice():
    w = kernel((8, 9))
    error = {
        keep: float(jnp.sum((w - jaxprune.dft([w], 0.6, keep=keep)[0].project(w)) ** 2))
        for keep in ("energy", "low", "high")
    }
    assert error["energy"] < 0.6 * min(error["low"], error["high"])


def test_low_keeps_a_smooth_kernel_and_high_a_rough_one():
    smooth = jnp.outer(jnp.cos(2 * jnp.pi * jnp.arange(8.0) / 8), jnp.ones(8))
    rough = jnp.outer((-1.0) ** jnp.arange(8.0), (-1.0) ** jnp.arange(8.0))
    low, high = (jaxprune.dft([smooth], 0.8, keep=keep)[0] for keep in ("low", "high"))
    np.testing.assert_allclose(low.project(smooth), smooth, atol=1e-5)
    np.testing.assert_allclose(high.project(smooth), 0, atol=1e-5)
    np.testing.assert_allclose(high.project(rough), rough, atol=1e-5)
    np.testing.assert_allclose(low.project(rough), 0, atol=1e-5)


def test_spatial_axes_and_a_global_budget():
    tree = {"conv": kernel((3, 3, 4, 6)), "dense": 0.1 * kernel((8, 8))}
    masks = jaxprune.dft(tree, 0.75, axes=(0, 1), budget=budgets.global_)
    assert masks["conv"].axes == (-4, -3)
    assert sum(int(masks[k].count(tree[k].shape)) for k in tree) == round((216 + 64) * 0.25)
    assert int(masks["dense"].count((8, 8))) < 10  # its energy is small


def test_a_traced_sparsity_and_bfloat16():
    w = kernel((6, 8)).astype(jnp.bfloat16)
    run = jax.jit(lambda sparsity: jaxprune.dft([w], sparsity)[0])
    assert int(run(jnp.float32(0.75)).count(w.shape)) == 12
    assert run(jnp.float32(0.5)).project(w).dtype == jnp.bfloat16


@pytest.mark.parametrize("share", [0, 0.05, 0.48, 0.5, 0.9, 1])
def test_ties_are_broken_alike_in_host_memory_and_traced(share):
    shapes = [(8, 6), (6, 5), (1, 7), (3, 4, 4)]
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 3, (*shape[:-1], shape[-1] // 2 + 1)).astype(np.float32) for shape in shapes]
    keep = [round(share * np.prod(shape)) for shape in shapes]

    def chosen(values):
        rankings = [Ranking(v, shape, (-2, -1), "dft") for v, shape in zip(values, shapes, strict=True)]
        return select_frequencies(rankings, keep)

    here = chosen(list(map(jnp.asarray, values)))
    for mask, traced, shape, number in zip(here, jax.jit(chosen)(values), shapes, keep, strict=True):
        np.testing.assert_array_equal(mask, traced)
        assert int(jaxprune.Spectral(mask, (-2, -1)).count(shape)) == number


def test_parameters_of_numpy_have_frequencies_too():
    w = kernel((6, 8))
    np.testing.assert_array_equal(jaxprune.dft([np.asarray(w)])[0].keep, jaxprune.dft([w])[0].keep)


def test_nan_goes_first_and_errors_name_the_path():
    mask = jaxprune.dft([jnp.full((4, 4), jnp.nan)], 0.5)[0]
    assert int(mask.count((4, 4))) == 8
    with pytest.raises(ValueError, match=r"axes \(-3,\) do not all exist in shape \(4, 4\); this is 'a/b'"):
        jaxprune.dft({"a": {"b": jnp.ones((4, 4))}}, axes=(-3,))
    with pytest.raises(ValueError, match="one to three different axes"):
        jaxprune.dft([jnp.ones((4, 4))], axes=(-1, 1))


@pytest.mark.wrong_types
def test_an_unknown_choice_says_which_there_are():
    with pytest.raises(ValueError, match=r"keep='energy', 'low' or 'high'.* got 'middle'"):
        jaxprune.dft([jnp.ones((4, 4))], keep="middle")
