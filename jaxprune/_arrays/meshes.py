"""Arrays that are sharded over a mesh: what their types say of it, and how to ask for another sharding.

While a function is traced, only the type of an array tells that it is on a mesh. On a mesh with explicit axes the type
also holds the sharding, and a reshape across shards needs a gather first. With automatic axes the partitioner decides
after tracing, and the functions here that ask for a sharding do nothing.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int


def is_sharded(array: Any) -> bool:
    """Whether an array, traced or not, may lie on more than one device as one array.

    On a mesh with explicit axes it counts as sharded in any case, since it cannot be reshaped at will there.
    """
    mesh = jax.typeof(array).sharding.mesh
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(kind == AxisType.Explicit or (kind == AxisType.Auto and size > 1) for size, kind in axes)


def flat_index(shape: tuple[int, ...], zero: Int[Array, ""] | int = 0) -> Int[Array, "..."]:
    """The place of each entry in row-major order, int32; `zero` as in `index_along`."""
    return index_along(shape, tuple(range(len(shape))), zero)


def index_along(shape: tuple[int, ...], axes: tuple[int, ...], zero: Int[Array, ""] | int = 0) -> Int[Array, "..."]:
    """The place of each entry along a line that runs along these axes, the last of them fastest; int32.

    Args:
      shape: Of the array.
      axes: What a line runs along.
      zero: 0, or one that changes in a loop as far as XLA can tell: then the places stay in the loop, too.
    """
    place, stride = jnp.zeros(shape, jnp.int32), 1
    for axis in reversed(axes if shape else ()):
        place = place + stride * (lax.broadcasted_iota(jnp.int32, shape, axis) + zero)
        stride *= shape[axis]
    return place


def gather(array: Any, *axes: int) -> Any:
    """The array, on an explicit mesh gathered along these axes; elsewhere as it is."""
    sharding = jax.typeof(array).sharding
    gathered = {axis % array.ndim for axis in axes}
    spec = [None if axis in gathered else names for axis, names in enumerate(sharding.spec)]
    return moved(array, sharding.mesh, spec)


def grouped(array: Any, axis: int, size: int) -> Any:
    """Cuts an axis into groups of `size`: `(..., n / size, size, ...)`.

    On an explicit mesh, an axis is gathered first if a group would lie on two devices.

    Args:
      array: `size` divides its axis.
      axis: Not negative.
      size: Of a group.
    """
    mesh, names = jax.typeof(array).sharding.mesh, jax.typeof(array).sharding.spec[axis]
    parts = math.prod(mesh.shape[name] for name in _names(names))
    groups = array.shape[axis] // size
    if groups % parts:
        array = gather(array, axis)
    return array.reshape(*array.shape[:axis], groups, size, *array.shape[axis + 1 :])


def like(array: Any, other: Any) -> Any:
    """The array, sharded as `other` is along the axes in which they have the same size.

    While a function is traced, this asks for a sharding on an explicit mesh only.

    Args:
      array: Of as many axes as `other`, or of fewer, which are then its last.
      other: An array, traced or not.
    """
    sharding = _sharding_like(array.shape, other)
    if isinstance(array, Tracer) or isinstance(other, Tracer):
        return moved(array, sharding.mesh, list(sharding.spec))
    return array if sharding.mesh.empty else jax.device_put(array, sharding)


def ones(shape: tuple[int, ...], leaf: Any) -> Bool[Array, "..."]:
    """A mask that keeps everything, sharded as its leaf is; see `like`."""
    sharding = _sharding_like(shape, leaf)
    if isinstance(leaf, Tracer) or sharding.mesh.empty:
        return like(jnp.ones(shape, jnp.bool_), leaf)
    return jnp.ones(shape, jnp.bool_, device=sharding)


def replicated(array: Any) -> NamedSharding | None:
    """The `out_sharding` of a product that sums over `array`: on an explicit mesh every device gets all of it."""
    mesh = jax.typeof(array).sharding.mesh
    return NamedSharding(mesh, PartitionSpec()) if _is_explicit(mesh) else None


def _sharding_like(shape: tuple[int, ...], leaf: Any) -> NamedSharding:
    """The sharding of a leaf for an array of this shape; its mesh is empty if the leaf is on none."""
    # Asked of a tracer, `sharding` fails, and JAX searches the whole program for what to say about it.
    sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        sharding = jax.typeof(leaf).sharding
    sizes = jnp.shape(leaf)
    names = (*sharding.spec, *(None,) * (len(sizes) - len(sharding.spec)))
    last = slice(len(sizes) - len(shape), None)
    spec = [
        name if ours == theirs else None for name, ours, theirs in zip(names[last], shape, sizes[last], strict=True)
    ]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _is_explicit(mesh: Any) -> bool:
    return any(kind == AxisType.Explicit for kind in mesh.axis_types)


def moved(array: Any, mesh: Any, spec: list[Any]) -> Any:
    """The array, on an explicit mesh sharded as said; elsewhere as it is."""
    if not _is_explicit(mesh) or tuple(spec) == tuple(jax.typeof(array).sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec(*spec)))


def _names(names: Any) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)
