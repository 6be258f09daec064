"""A Flax Linen network of handwritten digits, for `jaxprune run examples/digits_linen.py -o out`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

pixels, digits = load_digits(return_X_y=True)
images, test_images, labels, test_labels = map(
    jnp.asarray, train_test_split((pixels / 16).reshape(-1, 8, 8, 1).astype(np.float32), digits, random_state=0)
)


class Network(nn.Module):
    """Two convolutions and two dense layers."""

    @nn.compact
    def __call__(self, x):
        """Logits of images (batch, 8, 8, 1)."""
        x = nn.relu(nn.Conv(16, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(32, (3, 3), (2, 2), name="second")(x))
        x = nn.relu(nn.Dense(64, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, name="head")(x)


fun = Network().apply
batches = [images[:256], images[256:512]]


def train(fun, params, masks, steps):
    """Trains under masks; without masks, all of it."""
    optimizer = optax.adam(2e-3) if masks is None else jaxprune.masked(optax.adam(2e-3), masks)

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (128,), 0, len(images))

        def loss(params):
            logits = fun(params, images[batch])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))
    return params


def retrain(fun, params, masks):
    """Half as long as the dense model."""
    return train(fun, params, masks, 150)


def evaluate(fun, params):
    """On images that training has not seen."""
    logits = jax.jit(fun)(params, test_images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, test_labels).mean()
    return {"accuracy": (jnp.argmax(logits, -1) == test_labels).mean(), "loss": loss}


def loss(params):
    """For methods that need gradients."""
    return optax.softmax_cross_entropy_with_integer_labels(fun(params, images[:512]), labels[:512]).mean()


params = train(fun, Network().init(jax.random.key(0), images[:1]), None, 300)
