"""Every model of the zoo shrinks by half, computes what its masked self does, and misses nothing prunable."""

import jax
import pytest
from zoo import equinox_models, haiku_models, linen, nnx_models, plain
from zoo.case import check


def check_framework(case):
    """The frameworks' own layers promote implicitly."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        check(case)


@pytest.mark.parametrize("name", plain.CASES)
def test_plain(name):
    check(plain.CASES[name])


@pytest.mark.parametrize("name", linen.CASES)
def test_linen(name):
    check_framework(linen.CASES[name])


@pytest.mark.parametrize("name", nnx_models.CASES)
def test_nnx(name):
    check_framework(nnx_models.CASES[name])


@pytest.mark.parametrize("name", equinox_models.CASES)
def test_equinox(name):
    check_framework(equinox_models.CASES[name])


@pytest.mark.parametrize("name", haiku_models.CASES)
def test_haiku(name):
    check_framework(haiku_models.CASES[name])
