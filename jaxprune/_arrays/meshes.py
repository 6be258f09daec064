"""Arrays that are spread over the devices of a mesh: what their types say of it, and how to ask for a layout.

While a function is traced, an array on a mesh is known by its type. On a mesh with explicit axes the type also says how
the array is split, and a reshape that would cut through the parts on single devices has to be asked for. With automatic
axes the partitioner decides after tracing, and the functions here that ask for a layout do nothing.
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


def is_spread(array: Any) -> bool:
    """Whether an array, traced or not, may lie on more than one device as one array.

    On a mesh with explicit axes it counts as spread in any case: it cannot be reshaped at will there.
    """
    mesh = jax.typeof(array).sharding.mesh
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(kind == AxisType.Explicit or (kind == AxisType.Auto and size > 1) for size, kind in axes)


def flat_index(shape: tuple[int, ...]) -> Int[Array, "..."]:
    """The place of each entry in row-major order, int32."""
    return index_along(shape, tuple(range(len(shape))))


def index_along(shape: tuple[int, ...], axes: tuple[int, ...]) -> Int[Array, "..."]:
    """The place of each entry along a line that runs along these axes, the last of them fastest; int32."""
    strides = [math.prod(shape[axis] for axis in axes[number + 1 :]) for number in range(len(axes))]
    places = [stride * lax.broadcasted_iota(jnp.int32, shape, axis) for axis, stride in zip(axes, strides, strict=True)]
    return sum(places, jnp.zeros(shape, jnp.int32))


def whole(array: Any, *axes: int) -> Any:
    """The array, on an explicit mesh gathered along these axes; elsewhere as it is."""
    sharding = jax.typeof(array).sharding
    gathered = {axis % array.ndim for axis in axes}
    spec = [None if axis in gathered else names for axis, names in enumerate(sharding.spec)]
    return _moved(array, sharding.mesh, spec)


def grouped(array: Any, axis: int, size: int) -> Any:
    """Cuts an axis into groups of `size`: `(..., n / size, size, ...)`.

    On an explicit mesh, an axis whose groups would straddle devices is gathered first.

    Args:
      array: `size` divides its axis.
      axis: Not negative.
      size: Of a group.
    """
    mesh, names = jax.typeof(array).sharding.mesh, jax.typeof(array).sharding.spec[axis]
    parts = math.prod(mesh.shape[name] for name in _names(names))
    groups = array.shape[axis] // size
    if groups % parts:
        array = whole(array, axis)
    return array.reshape(*array.shape[:axis], groups, size, *array.shape[axis + 1 :])


def like(array: Any, other: Any) -> Any:
    """The array, lying where `other` does and split as it is, along the axes in which they have the same size.

    While a function is traced, the partitioner decides that, unless the mesh is explicit.

    Args:
      array: Of as many axes as `other`, or of fewer, which are then its last.
      other: An array, traced or not.
    """
    lying = _beside(array.shape, other)
    if isinstance(array, Tracer) or isinstance(other, Tracer):
        return _moved(array, lying.mesh, list(lying.spec))
    return array if lying.mesh.empty else jax.device_put(array, lying)


def ones(shape: tuple[int, ...], leaf: Any) -> Bool[Array, "..."]:
    """A mask that keeps everything and lies where its leaf does; see `like`."""
    lying = _beside(shape, leaf)
    if isinstance(leaf, Tracer) or lying.mesh.empty:
        return like(jnp.ones(shape, jnp.bool_), leaf)
    return jnp.ones(shape, jnp.bool_, device=lying)


def gathered(array: Any) -> NamedSharding | None:
    """The `out_sharding` of a product that sums over `array`: on an explicit mesh every device gets all of it."""
    mesh = jax.typeof(array).sharding.mesh
    return NamedSharding(mesh, PartitionSpec()) if _is_explicit(mesh) else None


def _beside(shape: tuple[int, ...], leaf: Any) -> NamedSharding:
    """How an array of this shape lies that lies as a leaf does; on an empty mesh, if that is on none."""
    sharding = getattr(leaf, "sharding", None)
    if isinstance(leaf, Tracer) or not isinstance(sharding, NamedSharding):
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


def _moved(array: Any, mesh: Any, spec: list[Any]) -> Any:
    if not _is_explicit(mesh) or tuple(spec) == tuple(jax.typeof(array).sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec(*spec)))


def _names(names: Any) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)
