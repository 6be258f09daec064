"""Corruptions of inputs: a pruned model may lose accuracy on corrupted samples that it keeps on clean ones.

A corruption is a function from inputs to inputs of the same shape. Random ones are made with a key, so that all models
that are compared see the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.typing import PRNGKey

Corruption: TypeAlias = Callable[[Any], Any]
"""From inputs `(n, ...)` to inputs of the same shape."""


def standard(key: PRNGKey) -> dict[str, Corruption]:
    """A set for images: noise at two levels, blur, less contrast, and a tenth covered.

    Args:
      key: From `jax.random.key`.

    Returns:
      Corruptions by name, for `jaxprune.report(..., corruptions=)`.

    Examples:
      >>> list(standard(jax.random.key(0)))
      ['noise 0.5', 'noise 1', 'blur 1', 'contrast 0.3', 'occlusion 10 %']

    References:
      After Hendrycks and Dietterich, 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
      Perturbations".
    """
    _check_key(key)
    low, high, place = jax.random.split(key, 3)
    return {
        "noise 0.5": noise(low, 0.5),
        "noise 1": noise(high, 1.0),
        "blur 1": blur(1.0),
        "contrast 0.3": contrast(0.3),
        "occlusion 10 %": occlusion(place, 0.1),
    }


def noise(key: PRNGKey, level: float) -> Corruption:
    """Adds Gaussian noise to inputs of any kind.

    Args:
      key: From `jax.random.key`.
      level: The noise's standard deviation over that of all inputs.

    Examples:
      >>> noisy = noise(jax.random.key(0), 0.5)(jnp.array([[-1.0, 1.0]] * 1000))
      >>> print(noisy.shape, noisy[:, 0].std().round(1))
      (1000, 2) 0.5
    """
    _check_key(key)
    _check("level", level, 0, math.inf)

    def corrupt(inputs: Any) -> Any:
        inputs = jnp.asarray(inputs)
        return inputs + level * jnp.std(inputs) * jax.random.normal(key, inputs.shape, inputs.dtype)

    return corrupt


def blur(sigma: float) -> Corruption:
    """Blurs images `(n, height, width, ...)` by a Gaussian; beyond an edge, its pixels are repeated.

    Args:
      sigma: Its standard deviation in pixels, above 0.
    """
    _check("sigma", sigma, math.ulp(0), math.inf)
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = [float(weight) for weight in weights / weights.sum()]

    def corrupt(images: Any) -> Any:
        images = jnp.asarray(images)
        for axis in (1, 2):
            edges = [(reach, reach) if a == axis else (0, 0) for a in range(images.ndim)]
            wide, size = jnp.pad(images, edges, mode="edge"), images.shape[axis]
            images = sum(w * lax.slice_in_dim(wide, i, i + size, axis=axis) for i, w in enumerate(weights))
        return images

    return corrupt


def contrast(factor: float) -> Corruption:
    """Draws every sample towards its mean.

    Args:
      factor: What the distance to the mean is multiplied by; 0 makes every sample constant.
    """
    _check("factor", factor, -math.inf, math.inf)

    def corrupt(inputs: Any) -> Any:
        inputs = jnp.asarray(inputs)
        mean = jnp.mean(inputs, axis=tuple(range(1, inputs.ndim)), keepdims=True)
        return mean + factor * (inputs - mean)

    return corrupt


def occlusion(key: PRNGKey, share: float) -> Corruption:
    """Covers a square in each image `(n, height, width, ...)`, at a random place, with the mean over all images.

    Args:
      key: From `jax.random.key`.
      share: The share of each image that is covered, in [0, 1].

    References:
      DeVries and Taylor, 2017, "Improved Regularization of Convolutional Neural Networks with Cutout".
    """
    _check_key(key)
    _check("share", share, 0, 1)

    def corrupt(images: Any) -> Any:
        images = jnp.asarray(images)
        number, sizes = len(images), images.shape[1:3]
        covered = jnp.ones((number, 1, 1), jnp.bool_)
        for axis, (size, draw) in enumerate(zip(sizes, jax.random.split(key), strict=True)):
            side = round(size * math.sqrt(share))
            first = jax.random.randint(draw, (number, 1), 0, size - side + 1)
            at = jnp.arange(size)[None]
            covered &= jnp.expand_dims((at >= first) & (at < first + side), 2 - axis)
        covered = covered.reshape(number, *sizes, *[1] * (images.ndim - 3))
        return jnp.where(covered, jnp.mean(images), images)

    return corrupt


def _check(name: str, value: Any, least: float, most: float) -> None:
    """Raises where an option of a corruption is not a finite number from `least` to `most`."""
    if isinstance(value, bool | str) or np.ndim(value):
        raise TypeError(f"`{name}` must be a number; got {value!r}.")
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"`{name}` must be finite and from {least} to {most}; got {value}.")


def _check_key(key: Any) -> None:
    if not isinstance(key, jax.Array):
        raise TypeError(f"A random corruption takes a key first, such as `jax.random.key(0)`; got {key!r}.")
