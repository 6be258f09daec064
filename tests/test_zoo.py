"""Every model of the zoo shrinks by half, computes what its masked self does, and misses nothing prunable."""

import jax
import pytest
from zoo import equinox_models, haiku_models, linen, nnx_models, plain
from zoo.case import check

_MODELS = {"plain": plain, "linen": linen, "nnx": nnx_models, "equinox": equinox_models, "haiku": haiku_models}


@pytest.mark.parametrize(
    ("framework", "name"), [(framework, name) for framework, module in _MODELS.items() for name in module.CASES]
)
def test_model(framework, name):
    case = _MODELS[framework].CASES[name]
    if framework == "plain":
        check(case)
    else:
        # The frameworks' own layers promote implicitly.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            check(case)
