"""The coefficients of kernels: their energies, and the projection onto some of them.

By FFT or, on a TPU, by products with small matrices. On a mesh each device transforms lines of its own: a kernel is cut
along one axis while the others are transformed, and along another one while that one is. So no device ever holds more
than its share, and no more travels at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxprune._arrays import meshes, tree
from jaxprune._masks import fourier

Kernel = Float[Array, "..."]
Parts = Float[Array, "_ ..."]  # real and, in the Fourier basis, imaginary parts
Along = Callable[[Parts, int, str], Parts]


class _Cut(NamedTuple):
    """How a kernel is cut for a mesh: along an axis, which counts from the end, for the devices of these names."""

    mesh: Any
    names: tuple[str, ...]
    axis: int

    def spec(self, array: Any) -> PartitionSpec:
        """Of an array that is cut likewise, or broadcasts along that axis."""
        cut = array.ndim >= -self.axis and array.shape[self.axis] > 1
        return PartitionSpec(*(self.names if cut and axis == self.axis else None for axis in range(-array.ndim, 0)))


def energy(kernel: Kernel, axes: tuple[int, ...], transform: str) -> Kernel:
    """The squared magnitude of each coefficient; -1 where it is not a number, so that it goes first."""
    squared = _everywhere(_energy, _energy_by_fft, axes, transform, kernel)
    return jnp.where(jnp.isnan(squared), jnp.full_like(squared, -1), squared)


def project(kernel: Kernel, keep: Bool[Array, "..."], axes: tuple[int, ...], transform: str) -> Kernel:
    """The kernel without the coefficients that are not kept; same shape and dtype."""
    projected = _everywhere(_projected, _projected_by_fft, axes, transform, kernel, keep)
    return meshes.like(projected.astype(kernel.dtype), kernel)


def multiplicity(shape: tuple[int, ...], axes: tuple[int, ...], transform: str) -> np.ndarray:
    """How many degrees of freedom each stored coefficient has, broadcastable to the spectrum."""
    if transform == "dct":
        return np.ones((1,) * len(shape), np.int32)
    size = shape[axes[-1]]
    index = np.arange(size // 2 + 1).reshape(tuple(-1 if axis == axes[-1] else 1 for axis in range(-len(shape), 0)))
    return np.where((index == 0) | (2 * index == size), 1, 2).astype(np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _everywhere(
    function: Callable[..., Any], by_fft: Callable[..., Any], axes: tuple[int, ...], transform: str, *arrays: Any
) -> Any:
    """Computed in float32 or wider, in the way that suits the platform and the mesh."""
    arrays = (arrays[0].astype(tree.promote(arrays[0].dtype, jnp.float32)), *arrays[1:])
    cut = _cut(arrays[0], axes)
    if cut is None:
        arrays = tuple(meshes.gather(array, *axes) for array in arrays)
        on_tpu = functools.partial(function, axes=axes, transform=transform, along=_by_products)
        elsewhere = functools.partial(by_fft, axes=axes, transform=transform)
        return lax.platform_dependent(*arrays, tpu=on_tpu, default=elsewhere)
    specs = tuple(map(cut.spec, arrays))
    body = functools.partial(function, axes=axes, transform=transform, along=_by_platform, cut=cut)
    spread = jax.shard_map(
        body, mesh=cut.mesh, in_specs=specs, out_specs=specs[0], axis_names=set(cut.names), check_vma=False
    )
    return spread(*(meshes.moved(a, cut.mesh, list(spec)) for a, spec in zip(arrays, specs, strict=True)))


def _cut(kernel: Kernel, axes: tuple[int, ...]) -> _Cut | None:
    """The cut for as many devices as possible; along an axis that is not transformed, if there is one."""
    if not meshes.is_sharded(kernel):
        return None
    mesh = jax.typeof(kernel).sharding.mesh
    others = [axis for axis in range(-kernel.ndim, 0) if axis not in axes]
    best, devices = None, 1
    for axis in (*others, *axes[:-1][:1]):
        names, parts = list[str](), 1
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True):
            if kind != AxisType.Manual and kernel.shape[axis] % (parts * size) == 0:
                names.append(name)
                parts *= size
        if parts > devices:
            best, devices = _Cut(mesh, tuple(names), axis), parts
    return best


def _energy(kernel: Kernel, *, axes: tuple[int, ...], transform: str, along: Along, cut: _Cut | None = None) -> Kernel:
    return jnp.sum(jnp.square(_forward(kernel, axes, transform, along, cut)), axis=0)


def _projected(
    kernel: Kernel,
    keep: Bool[Array, "..."],
    *,
    axes: tuple[int, ...],
    transform: str,
    along: Along,
    cut: _Cut | None = None,
) -> Kernel:
    """The basis is orthonormal, so that the transpose of the transform is its inverse."""
    forward = functools.partial(_forward, axes=axes, transform=transform, along=along, cut=cut)
    weights = multiplicity(kernel.shape, axes, transform).astype(kernel.dtype)
    parts = forward(kernel) * weights[None]
    kept = jnp.where(keep.reshape((1,) * (parts.ndim - keep.ndim) + keep.shape), parts, jnp.zeros_like(parts))
    (projected,) = jax.linear_transpose(forward, kernel)(kept)
    return projected


def _forward(kernel: Kernel, axes: tuple[int, ...], transform: str, along: Along, cut: _Cut | None) -> Parts:
    """The parts of the coefficients. Of the last axis half of them say all; the others are transformed after it."""
    parts, last = kernel[None], axes[-1]
    for axis in reversed(axes):
        if cut is None or axis != cut.axis:
            parts = along(parts, axis, transform)
            continue
        devices = math.prod(cut.mesh.shape[name] for name in cut.names)
        size = parts.shape[last]
        filled = jnp.pad(parts, [(0, -size % devices if a == last else 0) for a in range(-parts.ndim, 0)])
        whole = along(_exchanged(filled, cut, last, axis), axis, transform)
        parts = lax.slice_in_dim(_exchanged(whole, cut, axis, last), 0, size, axis=parts.ndim + last)
    return parts


def _exchanged(parts: Parts, cut: _Cut, there: int, here: int) -> Parts:
    """Cut along the axis `there`, no longer along `here`. Part by part, so that less travels at a time."""
    axes = parts.ndim - 1 + there, parts.ndim - 1 + here
    return jnp.stack([lax.all_to_all(part, cut.names, *axes, tiled=True) for part in parts])


def _by_platform(parts: Parts, axis: int, transform: str) -> Parts:
    on_tpu, elsewhere = (functools.partial(along, axis=axis, transform=transform) for along in (_by_products, _by_fft))
    return lax.platform_dependent(parts, tpu=on_tpu, default=elsewhere)


def _by_products(parts: Parts, axis: int, transform: str) -> Parts:
    size = parts.shape[axis]
    if not fourier.serves(size):
        return _by_fft(parts, axis, transform)
    return fourier.transformed(
        parts, axis, transform, size // 2 + 1 if transform == "dft" and len(parts) == 1 else size
    )


def _by_fft(parts: Parts, axis: int, transform: str) -> Parts:
    if transform == "dct":
        return jax.scipy.fft.dct(parts, axis=axis, norm="ortho")
    if len(parts) == 1:
        spectrum = jnp.fft.rfft(parts[0], axis=axis, norm="ortho")
    else:
        spectrum = jnp.fft.fft(lax.complex(*parts), axis=axis, norm="ortho")
    return jnp.stack([spectrum.real, spectrum.imag])


def _energy_by_fft(kernel: Kernel, *, axes: tuple[int, ...], transform: str) -> Kernel:
    if transform == "dct":
        return jnp.square(jax.scipy.fft.dctn(kernel, axes=axes, norm="ortho"))
    spectrum = jnp.fft.rfftn(kernel, axes=axes, norm="ortho")
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def _projected_by_fft(kernel: Kernel, keep: Bool[Array, "..."], *, axes: tuple[int, ...], transform: str) -> Kernel:
    if transform == "dct":
        spectrum = jax.scipy.fft.dctn(kernel, axes=axes, norm="ortho")
        return jax.scipy.fft.idctn(jnp.where(keep, spectrum, jnp.zeros_like(spectrum)), axes=axes, norm="ortho")
    spectrum = jnp.fft.rfftn(kernel, axes=axes, norm="ortho")
    kept = jnp.where(keep, spectrum, jnp.zeros_like(spectrum))
    return jnp.fft.irfftn(kept, s=[kernel.shape[axis] for axis in axes], axes=axes, norm="ortho")
