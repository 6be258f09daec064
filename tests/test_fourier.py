"""Frequencies by products with small matrices, as on a TPU: the same as by FFT."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxprune
from jaxprune._masks import fourier, spectra

SLOW = pytest.mark.slow
# Small and large axes, with and without factors, one to three axes, and leading ones.
CASES = [
    ((7, 9), (-2, -1)),
    ((130, 300), (-2, -1)),
    ((3, 3, 16, 12), (-4, -3)),
    *(
        pytest.param(shape, axes, marks=SLOW)
        for shape, axes in [
            ((12, 20), (-2, -1)),
            ((1, 1), (-2, -1)),
            ((3, 257, 40), (-2, -1)),
            ((1031, 6), (-2, -1)),
            ((4, 5, 6), (-3, -2, -1)),
            ((5, 144), (-1,)),
            ((144, 200), (-2,)),
        ]
    ),
]


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def error(found, expected):
    return float(np.max(abs(np.asarray(found) - expected)) / max(np.max(abs(np.asarray(expected))), 1e-30))


@pytest.mark.parametrize("transform", ["dft", "dct"])
@pytest.mark.parametrize(("shape", "axes"), CASES, ids=str)
def test_energies_and_projections_are_those_of_the_fft(shape, axes, transform):
    kernel = random(shape)
    options = {"axes": axes, "transform": transform}
    keep = jaxprune.dft([kernel], 0.6, **options)[0].keep

    @jax.jit
    def by_products(kernel):
        energy, project = (
            functools.partial(function, **options, along=spectra._by_products)
            for function in (spectra._energy, spectra._projected)
        )
        return energy(kernel), project(kernel, keep)

    energies, projected = by_products(kernel)
    assert error(energies, spectra._energy_by_fft(kernel, **options)) < 1e-5
    assert error(projected, spectra._projected_by_fft(kernel, keep, **options)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 1152, 2048, 3000, 4096, 5120, 11008, 14336])
def test_sizes_of_language_models_are_exact_to_float32(size):
    lines = random((2, size, 3))
    found = np.asarray(fourier.transformed(lines, -2, "dft", size))
    expected = np.fft.fft(np.asarray(lines[0]) + 1j * np.asarray(lines[1], np.float64), axis=0, norm="ortho")
    assert error(found[0] + 1j * found[1], expected) < 2e-6


def test_an_axis_without_small_factors_is_left_to_the_fft():
    assert fourier.serves(4096)
    assert fourier.serves(1021)
    assert not fourier.serves(1031)
    assert not fourier.serves(2 * 2053)


@pytest.mark.parametrize(
    ("size", "factors"),
    [(4096, (64, 64)), (128, (1, 128)), (129, (3, 43)), (131, (1, 131)), (1, (1, 1))],
)
def test_a_long_axis_has_two_factors_as_near_to_each_other_as_may_be(size, factors):
    assert fourier._factors(size) == factors


def test_the_largest_factor_has_1024_positions():
    assert fourier.serves(1023 * 1024)
    assert not fourier.serves(1024 * 1025)


def test_a_long_axis_takes_matrices_of_its_factors_alone(monkeypatch):
    made = list[tuple[int, int]]()
    matrix = fourier._matrix
    monkeypatch.setattr(fourier, "_matrix", lambda *sizes: made.append(sizes) or matrix(*sizes))
    # Of 73 coefficients, 12 in a row, there are seven rows.
    for size, outputs, expected in ((144, 73, [(12, 12), (12, 7)]), (12, 7, [(12, 7)])):
        lines = jnp.zeros((1, size, 2))
        jax.eval_shape(functools.partial(fourier.transformed, axis=-2, transform="dft", outputs=outputs), lines)
        assert made == expected
        made.clear()


@pytest.mark.parametrize(("number", "lengths"), [(256, [2]), (129, [2]), (128, [])])
def test_lines_go_through_one_loop_128_at_a_time(number, lengths):
    program = jax.make_jaxpr(lambda lines: fourier.transformed(lines, -2, "dct", 2))(jnp.zeros((1, 2, number)))
    assert [eqn.params["length"] for eqn in program.eqns if eqn.primitive.name == "scan"] == lengths


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((4, 6, 8), (-2, -1), (("x",), -3)),
        ((3, 8, 6), (-2, -1), (("x", "y"), -2)),
        ((3, 4, 8, 8), (-3, -2, -1), (("x",), -3)),
        ((8, 8), (-1,), (("x", "y"), -2)),
        ((6, 8), (-2, -1), (("x",), -2)),
        ((3, 8), (-2, -1), None),
    ],
)
def test_a_kernel_is_cut_for_as_many_devices_as_may_be(shape, axes, expected):
    """Along an axis that is not transformed, or else the first that is; never along the last."""
    mesh = jax.sharding.AbstractMesh((2, 4), ("x", "y"))
    kernel = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    cuts = list[Any]()
    jax.eval_shape(lambda kernel: cuts.append(spectra._cut(kernel, axes)), kernel)
    assert (cuts[0] and (cuts[0].names, cuts[0].axis)) == expected


@pytest.mark.parametrize(("transform", "stored"), [("dft", 5), ("dct", 8)])
def test_a_kernel_that_is_cut_along_a_transformed_axis_changes_hands(transform, stored):
    """From the devices of one axis to those of the other, which is padded, and back."""
    mesh = jax.sharding.AbstractMesh((8,), ("x",))
    kernel = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    program = jax.make_jaxpr(lambda kernel: spectra.energy(kernel, (-2, -1), transform))(kernel)
    assert program.out_avals[0].shape == (16, stored)
    assert len(set(re.findall(r"split_axis=(\d)", str(program)))) == 2
    assert str(program).count("all_to_all[") == (4 if transform == "dft" else 2)


@pytest.mark.parametrize(
    ("shape", "axes", "transform", "expected"),
    [
        ((3, 6), (-2, -1), "dft", [[1, 2, 2, 1]]),
        ((3, 5), (-2, -1), "dft", [[1, 2, 2]]),
        ((6, 3), (-2,), "dft", [[1], [2], [2], [1]]),
        ((3, 6), (-2, -1), "dct", [[1]]),
    ],
)
def test_inner_coefficients_have_two_degrees_of_freedom(shape, axes, transform, expected):
    assert spectra.multiplicity(shape, axes, transform).tolist() == expected


def test_a_projection_by_products_has_a_gradient_and_a_batch():
    kernels = random((3, 130, 12))
    options = {"axes": (-2, -1), "transform": "dft"}
    keep = jaxprune.dft([kernels[0]], 0.6)[0].keep
    project = functools.partial(spectra._projected, keep=keep, **options, along=spectra._by_products)
    each = jnp.stack([project(kernel) for kernel in kernels])
    np.testing.assert_allclose(jax.vmap(project)(kernels), each, atol=1e-5)
    other = random((130, 12), 1)
    # A projection is its own transpose.
    gradient = jax.grad(lambda kernel: jnp.vdot(project(kernel), other))(kernels[0])
    np.testing.assert_allclose(gradient, project(other), atol=1e-5)


def test_lowered_for_a_tpu_there_is_no_fft():
    def step(kernel):
        mask = jaxprune.dft([kernel], 0.5)[0]
        return mask.project(kernel)

    def program(platform):
        return jax.jit(step).trace(jax.ShapeDtypeStruct((160, 144), jnp.float32)).lower(lowering_platforms=(platform,))

    assert "fft" not in program("tpu").as_text()
    assert "fft" in program("cpu").as_text()
