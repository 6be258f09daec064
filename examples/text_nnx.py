"""A Flax NNX transformer of text, letter by letter, for `jaxprune run examples/text_nnx.py --method sparsegpt -o out`.

The text is the source of a module of Python's own library, which every machine has.
"""

import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

LETTERS, TIME = 128, 64
text = np.frombuffer(inspect.getsource(textwrap).encode("ascii", "replace"), np.uint8).astype(np.int32)
windows = jnp.asarray(np.lib.stride_tricks.sliding_window_view(text, TIME + 1)[::3])
train_windows, test_windows = windows[: len(windows) * 9 // 10], windows[len(windows) * 9 // 10 :]


class Block(nnx.Module):
    """Attention and an MLP."""

    def __init__(self, width, rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        """The stream, with what the block adds."""
        x = x + self.attention(self.norms[0](x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Network(nnx.Module):
    """A decoder."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(LETTERS, 32, rngs=rngs)
        self.places = nnx.Embed(TIME, 32, rngs=rngs)
        self.blocks = nnx.List([Block(32, rngs) for _ in range(2)])
        self.head = nnx.Linear(32, LETTERS, rngs=rngs)

    def __call__(self, tokens):
        """Logits (batch, time, letters) of letters (batch, time)."""
        x = self.embed(tokens) + self.places(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


graph, state = nnx.split(Network(nnx.Rngs(0)))


def fun(params, tokens):
    """The network as a function of its parameters."""
    return nnx.merge(graph, params)(tokens)


def _loss(fun, params, batch):
    logits = fun(params, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def _trained(params, steps):
    optimizer = optax.adam(3e-3)

    def step(carry, key):
        params, state = carry
        batch = train_windows[jax.random.randint(key, (32,), 0, len(train_windows))]
        updates, state = optimizer.update(jax.grad(lambda p: _loss(fun, p, batch))(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))[0][0]


def evaluate(fun, params):
    """On the end of the text, which training has not seen."""
    return {"perplexity": jnp.exp(jax.jit(lambda p: _loss(fun, p, test_windows[:128]))(params))}


def loss(params):
    """For methods that need gradients."""
    return _loss(fun, params, train_windows[:64])


params = _trained(state, 200)
batches = [train_windows[i : i + 64, :-1] for i in range(0, 256, 64)]
