"""Frequency masks: which Fourier or cosine coefficients of a kernel are kept, as a projection.

A real kernel of n weights has exactly n degrees of freedom in either basis. In the Fourier basis most of them come as
Hermitian pairs, two real numbers for a coefficient and its conjugate, and a few coefficients are their own conjugate
and hence real. Masks always keep pairs together, so that masking is an orthogonal projection of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune._arrays import meshes
from jaxprune._masks import spectra

Transform: TypeAlias = Literal["dft", "dct"]
Kernel: TypeAlias = Float[Array, "..."]


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
        return spectra.project(kernel, self.keep, self.axes, self.transform)

    def count(self, shape: tuple[int, ...]) -> Int[Array, ""]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The number of real degrees of freedom that a kernel of this shape keeps."""
        multiplicity = jnp.asarray(spectra.multiplicity(shape, self.axes, self.transform), jnp.int32)
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
    energies = meshes.gather(energies, *range(energies.ndim))
    if transform == "dct":
        return energies.reshape(-1)
    last = axes[-1]
    size = shape[last]
    interior = jax.lax.slice_in_dim(energies, 1, (size + 1) // 2, axis=energies.ndim + last)
    return jnp.concatenate([energies.reshape(-1), interior.reshape(-1)])


def slots(shape: tuple[int, ...], axes: tuple[int, ...], transform: Transform) -> Int[Array, "..."]:
    """How many degrees of freedom a decision about each stored coefficient controls, broadcastable to the spectrum.

    Two for one of each Hermitian pair and zero for its partner, where both are stored; one for a real coefficient. In
    the Fourier basis, computed where it is used, since as a constant it would be as large as a kernel.
    """
    multiplicity = jnp.asarray(spectra.multiplicity(shape, axes, transform))
    if transform == "dct":
        return multiplicity
    extent = tuple(shape[axis] if axis in axes[:-1] else 1 for axis in range(-len(shape), 0))
    index, partner, stride = jnp.zeros(extent, jnp.int32), jnp.zeros(extent, jnp.int32), 1
    for axis in reversed(axes[:-1]):
        place = lax.broadcasted_iota(jnp.int32, extent, len(shape) + axis)
        index, partner = index + stride * place, partner + stride * ((shape[axis] - place) % shape[axis])
        stride *= shape[axis]
    paired = jnp.where(index < partner, 2, jnp.where(index > partner, 0, 1))
    return jnp.where(multiplicity == 2, 2, paired)


def with_partners(keep: Bool[Array, "..."], shape: tuple[int, ...], axes: tuple[int, ...]) -> Bool[Array, "..."]:
    """Gives each stored conjugate the decision of its partner, at the negated frequency along all axes but the last.

    Both are stored for the frequencies 0 and n/2 of the last axis, which negation leaves as they are.
    """
    others, last = axes[:-1], keep.ndim + axes[-1]
    if not others:
        return keep
    is_partner, ends = slots(shape, axes, "dft") == 0, {0, shape[axes[-1]] // 2 if shape[axes[-1]] % 2 == 0 else 0}
    place = lax.broadcasted_iota(jnp.int32, keep.shape, last)
    for end in sorted(ends):
        plane = meshes.gather(lax.slice_in_dim(keep, end, end + 1, axis=last), *others)
        mirrored = jnp.roll(jnp.flip(plane, others), (1,) * len(others), others)
        keep = jnp.where(is_partner & (place == end), meshes.like(mirrored, keep), keep)
    return keep


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)
