"""Settings for the tests of this folder alone: the code of the docs runs as its reader would run it."""

import jax
import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """Raises where dtypes or ranks are promoted implicitly: that is how a bfloat16 model turns float32 unnoticed."""
    allowed = {marker.name for marker in request.node.iter_markers()}
    with (
        jax.numpy_dtype_promotion("standard" if "dtype_promotion" in allowed else "strict"),
        jax.numpy_rank_promotion("allow" if "rank_promotion" in allowed else "raise"),
    ):
        yield


@pytest.fixture(autouse=True)
def _annotations(request, monkeypatch):
    """Lets a test see the error that a user sees, who has no checks of annotations in the way."""
    if request.node.get_closest_marker("wrong_types") is not None:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") is not None and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
