"""Models in the manner of Flax's examples, with its own layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from zoo.case import floats, integers

from packages import build
from packages.case import INPUT, MARKS, ONE, OUTPUT, TABLE, Model, check

pytestmark = MARKS


class Translator(nn.Module):
    """A sequence is read by one LSTM, and another writes from the state that it ends in."""

    @nn.compact
    def __call__(self, read, written):
        state, _ = nn.RNN(nn.LSTMCell(12), return_carry=True)(jax.nn.one_hot(read, 6))
        hidden = nn.RNN(nn.LSTMCell(12))(jax.nn.one_hot(written, 6), initial_carry=state)
        return nn.Dense(6)(hidden)


class Classifier(nn.Module):
    """Embedded words, read both ways, pooled by attention."""

    @nn.compact
    def __call__(self, tokens):
        hidden = nn.Embed(20, 8, name="embed")(tokens)
        hidden = nn.Bidirectional(nn.RNN(nn.LSTMCell(8)), nn.RNN(nn.LSTMCell(8)))(hidden)
        keys = nn.tanh(nn.Dense(12, use_bias=False, name="keys")(hidden))
        weights = jax.nn.softmax(nn.Dense(1, use_bias=False, name="energy")(keys)[..., 0])
        pooled = jnp.einsum("bt,btd->bd", weights, hidden)
        return nn.Dense(3, name="head")(nn.tanh(nn.Dense(12, name="hidden")(pooled)))


class Autoencoder(nnx.Module):
    """Variational; the noise is an argument."""

    def __init__(self, rngs):
        self.encoder = nnx.Linear(16, 24, rngs=rngs)
        self.mean, self.deviation = nnx.Linear(24, 4, rngs=rngs), nnx.Linear(24, 4, rngs=rngs)
        self.decoder, self.last = nnx.Linear(4, 24, rngs=rngs), nnx.Linear(24, 16, rngs=rngs)

    def __call__(self, x, noise):
        hidden = nnx.relu(self.encoder(x))
        mean, deviation = self.mean(hidden), self.deviation(hidden)
        return self.last(nnx.relu(self.decoder(mean + noise * jnp.exp(deviation / 2))))


class Layer(nnx.Module):
    """A block of a decoder: norm first, positions elsewhere."""

    def __init__(self, rngs):
        self.first, self.second = nnx.LayerNorm(16, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(16, 24, rngs=rngs), nnx.Linear(24, 16, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])  # which reads its shape alone
        x = x + self.attention(self.first(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.second(x))))


class Decoder(nnx.Module):
    """A language model whose layers are one stack, scanned with rematerialisation."""

    def __init__(self, rngs):
        self.embed, self.positions = nnx.Embed(20, 16, rngs=rngs), nnx.Param(jnp.ones((8, 16)))
        self.layers = nnx.vmap(Layer, in_axes=0)(rngs.fork(split=2))
        self.norm = nnx.LayerNorm(16, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        x = nnx.scan(nnx.remat(lambda x, layer: layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
        return self.embed.attend(self.norm(x))


MODELS = {
    "translator": Model(
        "Sequence to sequence by LSTMs (seq2seq)",
        "flax",
        lambda: build.linen(Translator(), integers(2, 5), integers(2, 5)),
        0.5,
        {r"Dense_0/(kernel\[1\]|bias)": OUTPUT},
        {r"kernel": 0},
    ),
    "classifier": Model(
        "Text classifier by attention over an LSTM (sst2)",
        "flax",
        lambda: build.linen(Classifier(), integers(2, 5)),
        0.5,
        {**TABLE, r"head/(kernel\[1\]|bias)": OUTPUT, r"energy/kernel\[1\]": ONE},
        {r"kernel": 0},
        ("embed",),
    ),
    "autoencoder": Model(
        "Variational autoencoder (vae)",
        "flax",
        lambda: build.nnx(Autoencoder, floats(2, 16), floats(2, 4), call=lambda model, x, noise: model(x, noise)),
        0.4,
        {r"encoder/kernel\[0\]|(mean|deviation)/(kernel\[1\]|bias)|decoder/kernel\[0\]": INPUT, r"last": OUTPUT},
        {r"kernel": 0},
    ),
    "decoder": Model(
        "Language model, scanned and rematerialised (lm1b, gemma)",
        "flax",
        lambda: build.nnx(Decoder, integers(2, 6), call=lambda model, tokens: model(tokens)),
        0.6,
        {**TABLE, r"layers/.*\[0\]": "'scan' steps along it", r"positions\[0\]": INPUT},
        {r"layers/(attention/(query|key|value)|up|down)/kernel|embed": 1, r"attention/out/kernel": 2},
        (r"bias|scale|positions",),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
