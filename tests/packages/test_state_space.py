"""State-space models in NNX."""

import importlib

import pytest
from zoo.case import integers

from packages import build
from packages.case import MARKS, TABLE, Model, check

pytestmark = MARKS


def _mamba(version: int):
    module = importlib.import_module(f"mamba{version}_jax")
    config = getattr(module, f"Mamba{version}Config")(
        vocab_size=20, hidden_size=16, state_size=8, head_dim=8, chunk_size=4, num_hidden_layers=2
    )
    make = getattr(module, f"Mamba{version}ForCausalLM")
    return build.nnx(lambda rngs: make(config, rngs=rngs), integers(2, 8), call=lambda model, x: model(x)["logits"])


_SUMMED = {r"_proj/kernel": 0, r"embedding": 1}

MODELS = {
    "mamba2": Model(
        "Mamba 2",
        "mamba2-jax",
        lambda: _mamba(2),
        0.65,
        {**TABLE, r"conv/kernel\[[01]\]": "axis of one"},  # taps one by one
        _SUMMED,
        (r"conv/kernel",),  # multiplied elementwise
    ),
    "mamba3": Model(
        "Mamba 3", "mamba3-jax", lambda: _mamba(3), 0.65, {**TABLE, r"_bias\[1\]": "axis of one"}, _SUMMED, (r"_bias",)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
