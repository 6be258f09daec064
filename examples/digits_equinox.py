"""An Equinox vision transformer of digits, for `jaxprune run examples/digits_equinox.py --method admm -o out`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

pixels, digits = load_digits(return_X_y=True)
images, test_images, labels, test_labels = map(
    jnp.asarray, train_test_split((pixels / 16).reshape(-1, 8, 8).astype(np.float32), digits, random_state=0)
)


class Block(eqx.Module):
    """Attention and an MLP."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width, key):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
        self.attention = eqx.nn.MultiheadAttention(4, width, key=keys[0])
        self.up = eqx.nn.Linear(width, 2 * width, key=keys[1])
        self.down = eqx.nn.Linear(2 * width, width, key=keys[2])

    def __call__(self, x):
        """The stream (patches, width), with what the block adds."""
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norms[1])(x))))


class Network(eqx.Module):
    """Patches of two by two pixels."""

    embed: eqx.nn.Linear
    places: jax.Array
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.embed = eqx.nn.Linear(4, 32, key=keys[0])
        self.places = 0.02 * jax.random.normal(keys[1], (16, 32))
        self.blocks = [Block(32, keys[2]), Block(32, keys[3])]
        self.head = eqx.nn.Linear(32, 10, key=keys[4])

    def __call__(self, image):
        """Logits of one image (8, 8)."""
        patches = image.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4)
        x = jax.vmap(self.embed)(patches) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=0))


def fun(network, images):
    """Logits of a batch."""
    return jax.vmap(network)(images)


def _loss(network, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(fun(network, images), labels).mean()


def _trained(network, steps):
    optimizer = optax.adam(3e-3)
    arrays, static = eqx.partition(network, eqx.is_inexact_array)

    def step(carry, key):
        arrays, state = carry
        batch = jax.random.randint(key, (128,), 0, len(images))
        grads = jax.grad(lambda a: _loss(eqx.combine(a, static), images[batch], labels[batch]))(arrays)
        updates, state = optimizer.update(grads, state, arrays)
        return (optax.apply_updates(arrays, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    (arrays, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((arrays, optimizer.init(arrays)))
    return eqx.combine(arrays, static)


def evaluate(fun, network):
    """On images that training has not seen."""
    logits = eqx.filter_jit(fun)(network, test_images)
    return {"accuracy": (jnp.argmax(logits, -1) == test_labels).mean()}


params = _trained(Network(jax.random.key(0)), 300)
batches = [images[:256], images[256:512]]
