"""Frequency masks: which Fourier or cosine coefficients of a kernel are kept, as a projection.

A real kernel of n weights has exactly n degrees of freedom in either basis. In the Fourier basis most of them come as
Hermitian pairs, two real numbers for a coefficient and its conjugate, and a few coefficients are their own conjugate
and hence real. Masks always keep pairs together, so that masking is an orthogonal projection of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from jaxprune._arrays import meshes, tree

Transform: TypeAlias = Literal["dft", "dct"]
Kernel: TypeAlias = Float[Array, "..."]
Spectrum: TypeAlias = Complex[Array, "..."] | Float[Array, "..."]


class Spectral(NamedTuple):
    """The mask of a frequency-pruned kernel. A `NamedTuple`, so that Flax serialises it as any other state.

    Attributes:
      keep: Which coefficients stay, in the layout of `jnp.fft.rfftn` over `axes` (`transform="dft"`) or of the
        cosine transform (`"dct"`, the kernel's own shape): boolean, or `Packed`.
      axes: The transformed axes, negative, so that a stacked or vmapped kernel needs no other mask.
      transform: The basis.
    """

    keep: Any
    axes: tuple[int, ...]
    transform: Transform = "dft"

    def project(self, kernel: Kernel) -> Kernel:
        """The kernel without the frequencies that are not kept; same shape and dtype."""
        spectrum = analyse(kernel, self.axes, self.transform)
        kept = jnp.where(self.keep, spectrum, jnp.zeros_like(spectrum))
        projected = synthesise(kept, kernel.shape, self.axes, self.transform).astype(kernel.dtype)
        return meshes.like(projected, kernel)

    def count(self, shape: tuple[int, ...]) -> Int[Array, ""]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The number of real degrees of freedom that a kernel of this shape keeps."""
        multiplicity = jnp.asarray(_multiplicity(shape, self.axes, self.transform), jnp.int32)
        return jnp.sum(jnp.where(self.keep, multiplicity, jnp.int32(0)), dtype=jnp.int32)


def _restored(fixed: Any, children: Iterable[Any]) -> Spectral:
    axes, transform = fixed
    return Spectral(next(iter(children)), axes, transform)


jax.tree_util.register_pytree_with_keys(
    Spectral,
    lambda mask: (((jax.tree_util.GetAttrKey("keep"), mask.keep),), (mask.axes, mask.transform)),
    _restored,
)


def normalise_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes counted from the end, ascending.

    Raises:
      ValueError: An axis is out of range or named twice, or there are none or more than three.
    """
    ndim = len(shape)
    if any(not -ndim <= axis < ndim for axis in axes):
        raise ValueError(f"axes {axes} do not all exist in shape {shape}")
    negative = tuple(sorted(axis - ndim if axis >= 0 else axis for axis in axes))
    if len(set(negative)) < len(negative) or not 1 <= len(negative) <= 3:
        raise ValueError(f"one to three different axes are needed, got {axes} for shape {shape}")
    return negative


def analyse(kernel: Kernel, axes: tuple[int, ...], transform: Transform) -> Spectrum:
    """The orthonormal coefficients of a kernel, computed in float32 or wider."""
    # No transform works across devices: on a mesh the axes are gathered.
    wide = meshes.gather(kernel, *axes).astype(tree.promote(kernel.dtype, jnp.float32))
    if transform == "dct":
        return jax.scipy.fft.dctn(wide, axes=axes, norm="ortho")
    return jnp.fft.rfftn(wide, axes=axes, norm="ortho")


def synthesise(spectrum: Spectrum, shape: tuple[int, ...], axes: tuple[int, ...], transform: Transform) -> Kernel:
    """The kernel of shape `shape` that has these coefficients."""
    if transform == "dct":
        return jax.scipy.fft.idctn(spectrum, axes=axes, norm="ortho")
    return jnp.fft.irfftn(spectrum, s=[shape[axis] for axis in axes], axes=axes, norm="ortho")


def energy(kernel: Kernel, axes: tuple[int, ...], transform: Transform) -> Float[Array, "..."]:
    """The squared magnitude of each coefficient; -1 where it is not a number, so that it goes first."""
    spectrum = analyse(kernel, axes, transform)
    squared = jnp.square(jnp.real(spectrum))
    if transform == "dft":
        squared = squared + jnp.square(jnp.imag(spectrum))
    return jnp.where(jnp.isnan(squared), jnp.full_like(squared, -1), squared)


def radius(shape: tuple[int, ...], axes: tuple[int, ...], transform: Transform) -> np.ndarray:
    """The distance of each coefficient from frequency 0, in cycles per sample, broadcastable to the spectrum."""
    squared = np.zeros((1,) * len(shape))
    for axis in axes:
        size = shape[axis]
        if transform == "dct":
            frequencies = np.arange(size) / (2 * size)
        elif axis == axes[-1]:
            frequencies = np.fft.rfftfreq(size)
        else:
            frequencies = np.fft.fftfreq(size)
        squared = squared + _along(frequencies, axis, len(shape)) ** 2
    return np.sqrt(squared)


def spread(energies: Float[Array, "..."], shape: tuple[int, ...], axes: tuple[int, ...], transform: Transform) -> Array:
    """One score per degree of freedom, for budgets: a flat vector with exactly as many entries as the kernel.

    Both numbers of a Hermitian pair carry the energy of the coefficient.
    """
    if transform == "dct":
        return energies.reshape(-1)
    last = axes[-1]
    size = shape[last]
    interior = jax.lax.slice_in_dim(energies, 1, (size + 1) // 2, axis=energies.ndim + last)
    return jnp.concatenate([energies.reshape(-1), interior.reshape(-1)])


def slots(shape: tuple[int, ...], axes: tuple[int, ...], transform: Transform) -> np.ndarray:
    """How many degrees of freedom a decision about each stored coefficient controls, broadcastable to the spectrum.

    Two for one of each Hermitian pair and zero for its partner, where both are stored; one for a real coefficient.
    """
    multiplicity = _multiplicity(shape, axes, transform)
    if transform == "dct":
        return multiplicity
    index = np.arange(math.prod(_spectrum_shape(shape, axes))).reshape(_spectrum_shape(shape, axes))
    partner = _mirror(index, axes, np)
    paired = np.where(index < partner, 2, np.where(index > partner, 0, 1))
    return np.where(multiplicity == 2, 2, paired)


def with_partners(keep: Bool[Array, "..."], shape: tuple[int, ...], axes: tuple[int, ...]) -> Bool[Array, "..."]:
    """Gives each stored conjugate the decision of its partner."""
    return jnp.where(jnp.asarray(slots(shape, axes, "dft") == 0), _mirror(keep, axes, jnp), keep)


def _multiplicity(shape: tuple[int, ...], axes: tuple[int, ...], transform: Transform) -> np.ndarray:
    ndim = len(shape)
    if transform == "dct":
        return np.ones((1,) * ndim, np.int32)
    size = shape[axes[-1]]
    index = np.arange(size // 2 + 1)
    return _along(np.where((index == 0) | (2 * index == size), 1, 2), axes[-1], ndim).astype(np.int32)


def _spectrum_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The extent of the spectrum along the transformed axes, 1 elsewhere."""
    extent = [1] * len(shape)
    for axis in axes:
        extent[axis] = shape[axis] if axis != axes[-1] else shape[axis] // 2 + 1
    return tuple(extent)


def _mirror(array: Any, axes: tuple[int, ...], xp: Any) -> Any:
    """The entry at the negated frequency along every transformed axis but the last.

    For the planes 0 and n/2 of the last axis, which negation maps to themselves.
    """
    others = axes[:-1]
    return xp.roll(xp.flip(array, others), (1,) * len(others), others) if others else array


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)
