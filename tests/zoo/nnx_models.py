"""Flax NNX models: modules split into a graph and a state, the state being the parameters."""

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.case import Case, floats


def build(make, x, train=False):
    def made():
        graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        state = nnx.to_pure_dict(state)

        def fun(state, x):
            model = nnx.merge(graph, state)
            if not train:
                model.eval()
                return model(x)
            model.train()
            y = model(x)
            return y, nnx.to_pure_dict(nnx.state(model))

        return fun, state, (x,)

    return made


class ConvNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.third = nnx.Conv(8, 6, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        x = nnx.relu(x + self.second(x))
        return self.head(nnx.relu(self.third(x)).mean((1, 2)))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm_2 = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        x = x + self.attention(self.norm(x))
        x = x + self.down(jax.nn.gelu(self.up(self.norm_2(x))))
        return self.head(x)


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.cell = nnx.RNN(nnx.LSTMCell(3, 6, rngs=rngs))
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.cell(x)[:, -1].astype(jnp.float32))


_HEAD = {r"head/(kernel\[1\]|bias\[0\])": "output"}
_IMAGE = {r"first/kernel\[2\]": "argument", r"(first|second|third)/kernel\[[01]\]": "taps"}

CASES = {
    "conv_eval": Case(build(ConvNet, floats(2, 6, 6, 3)), 0.6, {**_HEAD, **_IMAGE}),
    "conv_train": Case(build(ConvNet, floats(2, 6, 6, 3), train=True), 0.6, {**_HEAD, **_IMAGE}),
    "transformer": Case(build(Transformer, floats(2, 5, 3)), 0.6, {**_HEAD, r"embed/kernel\[0\]": "argument"}),
    "recurrent": Case(build(Recurrent, floats(2, 5, 3)), 0.5, {**_HEAD, r"cell/i\w+/kernel\[0\]": "argument"}),
}
