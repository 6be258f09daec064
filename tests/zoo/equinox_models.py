"""Equinox models: the module itself is the parameter tree, functions and settings among its leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp

from zoo.case import Case, floats


def build(make, x):
    def made():
        model = eqx.filter_eval_shape(make, jax.random.key(0))
        return lambda model, x: jax.vmap(model)(x), model, (x,)

    return made


class ConvNet(eqx.Module):
    first: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    second: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b, c, d = jax.random.split(key, 4)
        self.first = eqx.nn.Conv2d(3, 8, 3, padding=1, key=a)
        self.norm = eqx.nn.GroupNorm(4, 8)
        self.second = eqx.nn.Conv2d(8, 6, 3, padding=1, key=b)
        self.up = eqx.nn.ConvTranspose2d(6, 6, 2, stride=2, key=c)
        self.head = eqx.nn.Linear(6, 3, key=d)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.first(x)))
        return self.head(jax.nn.relu(self.up(jax.nn.relu(self.second(x)))).mean((1, 2)))


class Transformer(eqx.Module):
    """Its layer norm computes a two-pass variance, which removed channels contribute to."""

    embed: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b, c, d = jax.random.split(key, 4)
        self.embed = eqx.nn.Linear(3, 8, key=a)
        self.norm = eqx.nn.LayerNorm(8)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=b)
        self.mlp = eqx.nn.MLP(8, 8, 16, 1, activation=jax.nn.gelu, key=c)
        self.head = eqx.nn.Linear(8, 3, key=d)

    def __call__(self, x):
        x = jax.vmap(self.embed)(x)
        y = jax.vmap(self.norm)(x)
        x = x + self.attention(y, y, y)
        x = x + jax.vmap(self.mlp)(x)
        return jax.vmap(self.head)(x)


class Recurrent(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.cell = eqx.nn.LSTMCell(3, 6, key=a)
        self.head = eqx.nn.Linear(6, 2, key=b)

    def __call__(self, x):
        start = (jnp.zeros(6), jnp.zeros(6))
        (h, _), _ = jax.lax.scan(lambda carry, x_t: (self.cell(x_t, carry), None), start, x)
        return self.head(h)


def mlp(key):
    return eqx.nn.MLP(4, 2, 8, 2, key=key)


_HEAD = {r"head/(weight|bias)\[0\]": "output"}

CASES = {
    "mlp": Case(
        build(mlp, floats(2, 4)), 0.5, {r"layers/0/weight\[1\]": "argument", r"layers/2/(weight|bias)\[0\]": "output"}
    ),
    "conv": Case(
        build(ConvNet, floats(2, 3, 6, 6)),
        0.5,
        {
            **_HEAD,
            r"first/weight\[1\]": "argument",
            r"(first|second|up)/weight\[[23]\]": "taps",
            r"(first|second|up)/bias\[[12]\]": "axis of one",
        },
    ),
    "transformer": Case(
        build(Transformer, floats(2, 5, 3)),
        0.6,
        {**_HEAD, r"embed/weight\[1\]": "argument"},
    ),
    "recurrent": Case(build(Recurrent, floats(2, 5, 3)), 0.5, {**_HEAD, r"weight_ih\[1\]": "argument"}),
}
