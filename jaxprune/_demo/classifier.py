"""A small convolutional classifier in Flax, and its training on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune._demo.data import Images
from jaxprune.typing import Params

Optimizer = Callable[[Any], optax.GradientTransformation]
"""From one traced number, such as the final sparsity, to an optimizer: another number needs no compilation."""


class Classifier(nn.Module):
    """Strided convolutions and two dense layers."""

    channels: tuple[int, ...]
    hidden: int
    classes: int = 10
    first_stride: int = 1

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `(batch, classes)` of images `(batch, height, width, 1)`."""
        x = images
        for i, channels in enumerate(self.channels):
            stride = self.first_stride if i == 0 else 2
            x = nn.relu(nn.Conv(channels, (3, 3), (stride, stride), name=f"conv_{i}")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.classes, name="head")(x)


def initialise(model: nn.Module, images: np.ndarray, seed: int) -> Params:
    """Fresh parameters."""
    return model.init(jax.random.key(seed), jnp.asarray(images[:1]))["params"]


def apply(model: nn.Module) -> Callable[[Params, Any], jax.Array]:
    """The model as a pure function `fun(params, images)`."""
    return lambda params, images: jnp.asarray(model.apply({"params": params}, images))


def loss_of(fun: Callable[..., Any]) -> Callable[[Params, Any, Any], jax.Array]:
    """The mean cross-entropy of a classifier."""

    def loss(params: Params, images: Any, labels: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(fun(params, images), labels).mean()

    return loss


def train_step(fun: Callable[..., Any], optimizer: Optimizer) -> Callable[..., Any]:
    """One jitted step: `step(params, state, images, labels, number) -> (params, state, loss)`."""
    loss = loss_of(fun)

    @jax.jit
    def step(params: Params, state: Any, images: Any, labels: Any, number: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimizer(number).update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def batches(data: Images, epochs: int, size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled training batches, all of one size."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(data.train_images))
        for start in range(0, len(order) - size + 1, size):
            index = order[start : start + size]
            yield data.train_images[index], data.train_labels[index]


def accuracy(fun: Callable[..., Any], params: Params, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose highest logit is the label's, in per cent."""
    return 100 * float(np.mean(np.asarray(predict(fun, params, images)) == labels))


def predict(fun: Callable[..., Any], params: Params, images: np.ndarray) -> np.ndarray:
    """Predicted classes, in batches of a thousand."""
    classify = jax.jit(lambda p, x: jnp.argmax(fun(p, x), axis=-1))
    return np.concatenate([np.asarray(classify(params, images[i : i + 1000])) for i in range(0, len(images), 1000)])
