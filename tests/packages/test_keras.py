"""Keras on JAX, by `stateless_call`."""

import os

import pytest
from zoo.case import floats, integers

from packages.case import INPUT, MARKS, ONE, OUTPUT, TABLE, TAPS, Model, check

pytestmark = MARKS


def _built(model, x):
    """The variables by their paths; a `/` in a path would look like a level of the tree."""
    names = [
        [v.path.replace("/", ".") for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    ]
    params = {v.path.replace("/", "."): v.value for v in model.variables}

    def fun(params, x):
        return model.stateless_call(*([params[name] for name in part] for part in names), x, training=False)[0]

    return fun, params, (x,)


def _keras():
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    return keras


def _convolutional():
    keras, layers = _keras(), _keras().layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.SeparableConv2D(12, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    return _built(model, floats(2, 8, 8, 3))


def _transformer():
    keras, layers = _keras(), _keras().layers
    tokens = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(20, 16)(tokens)
    for _ in range(2):
        normed = layers.LayerNormalization()(hidden)
        hidden = hidden + layers.MultiHeadAttention(2, 8)(normed, normed, use_causal_mask=True)
        normed = layers.LayerNormalization()(hidden)
        hidden = hidden + layers.Dense(16)(layers.Dense(24, activation="gelu")(normed))
    return _built(keras.Model(tokens, layers.Dense(20)(hidden)), integers(2, 6))


def _recurrent():
    keras, layers = _keras(), _keras().layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Embedding(20, 8),
            layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
            layers.GRU(8),
            layers.Dense(3),
        ]
    )
    return _built(model, integers(2, 6))


_LAST = r"(dense|dense_\d+)\.(kernel\[1\]|bias)"

MODELS = {
    "convolutional": Model(
        "Convolutions, separable too, and batch norm",
        "keras",
        _convolutional,
        0.5,
        {
            r"(conv2d|separable_conv2d)\.\w*kernel\[[01]\]": TAPS,
            r"conv2d\.kernel\[2\]": INPUT,
            r"depthwise_kernel\[3\]": ONE,
            _LAST: OUTPUT,
        },
        {r"conv2d\.(kernel|pointwise_kernel)": 2, r"depthwise_kernel": 1, r"dense": 0},
    ),
    "transformer": Model(
        "Transformer, a causal decoder",
        "keras",
        _transformer,
        0.7,
        {**TABLE, _LAST: OUTPUT},
        {r"(query|key|value|dense|dense_\d+)\.kernel": 0, r"attention_output\.kernel": 1},
        (r"embeddings|(query|key|value)\.bias",),
    ),
    "recurrent": Model(
        "LSTM both ways, then GRU",
        "keras",
        _recurrent,
        0.6,
        {**TABLE, _LAST: OUTPUT, r"gru_cell\.bias\[0\]": ONE, r"seed_generator_state": "never reads it"},
        {r"kernel": 0},
        (r"embeddings|gru_cell\.bias",),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
