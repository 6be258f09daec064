"""Arrays whose values lie in host memory: what is done with them by NumPy has nothing to compile."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding


def is_here(array: Any) -> bool:
    """Whether an array is concrete and lies in host memory in one piece."""
    if isinstance(array, np.ndarray):
        return True
    if not isinstance(array, jax.Array) or isinstance(array, Tracer):
        return False
    devices = list(array.devices())
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return len(devices) == 1 and devices[0].platform == "cpu" and not is_key


def view(array: Any) -> Any:
    """The array as one of NumPy, without a copy, if it lies in host memory; else as it is."""
    return np.asarray(array) if is_here(array) or not isinstance(array, jax.Array) else array


def placed(array: Any, like: Any) -> Any:
    """An array of NumPy on the device of another of JAX, committed if that is; any other pair as it is.

    By `device_put`, as `jnp.asarray` compiles a copy for every shape.
    """
    if not isinstance(array, np.ndarray) or not isinstance(like, jax.Array):
        return array
    if like.committed or not isinstance(like.sharding, SingleDeviceSharding):
        return jax.device_put(array, like.sharding)
    (device,) = like.devices()
    with jax.default_device(device):
        return jax.device_put(array)


def copied(array: Any) -> Any:
    """A copy of an array, of NumPy as one of JAX: nothing is compiled for one in host memory."""
    if not is_here(array):
        return jnp.copy(array)
    copy = np.array(array)
    return placed(copy, array) if isinstance(array, jax.Array) else jax.device_put(copy)
