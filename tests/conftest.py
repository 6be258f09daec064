"""Settings for the tests of this folder alone: the code of the docs runs as its reader would run it."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict_ranks(request):
    """Raises where arrays of different rank meet, unless the test says that its model is written so."""
    allowed = request.node.get_closest_marker("rank_promotion") is not None
    with jax.numpy_rank_promotion("allow" if allowed else "raise"):
        yield


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") is not None and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
