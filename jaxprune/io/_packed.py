"""Pruned arrays in a safetensors file, at the size of what is left of them.

An array `NAME` with zeros becomes `NAME:shape`, `NAME:values`, the numbers that are not 0 in order, and `NAME:bitmask`,
a bit for each number, the first in the highest bit; or, where at most n of every m along an axis are not 0,
`NAME:values`, `NAME:nm`, the numbers n, m and the axis, and `NAME:groups`: for each group, as many bits as it takes to
say which of the choices of n from m it is, in the order of `itertools.combinations`. The smallest form is taken.

A kernel masked over frequencies becomes `NAME:transform`, 0 for Fourier and 1 for cosine, `NAME:axes`, a bit for each
coefficient that does not follow from another, and `NAME:values`, the real and then the imaginary parts of those kept.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Generator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._masks import frequency
from jaxprune._masks.frequency import Spectral
from jaxprune.io import _layouts, _sinks, _sources
from jaxprune.io._safetensors import Leaf
from jaxprune.io._sinks import Write
from jaxprune.io._sources import Named, Source

PACKED = {"jaxprune": "packed 1"}
"""The metadata of such a file."""

_PARTS = ("shape", "values", "bitmask", "nm", "groups", "transform", "axes")
_GROUPS = (4, 8, 16)
_ROWS = 2**20  # groups at a time, so that their bits fit into memory


@contextlib.contextmanager
def writing(target: Path, source: Source, layout: _layouts.Layout = "auto") -> Generator[Write]:
    """As `_sinks.writing`, packed.

    Raises:
      ValueError: The target is to be no safetensors file; or see there.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"What is packed is a `.safetensors` file; got '{target}'. Name it so.")
    # The most and longest names that an array can get: all others fit into their room.
    parts = ("shape", "values", "bitmask", "transform", "axes")
    room = [Leaf(f"{name}:{part}", leaf.shape, leaf.dtype) for name, leaf in source.leaves.items() for part in parts]
    metadata = {**source.metadata, **PACKED}
    with _sinks.safetensors(target, room, metadata) as write:

        def write_packed(name: str, array: np.ndarray, mask: Spectral | None = None) -> None:
            path = name.replace(source.separator, "/")
            axes = _layouts.axes_of(path, array.shape, layout) if array.ndim > 1 else None
            parts = (
                packed(array, None if axes is None else axes.inputs) if mask is None else of_frequencies(array, mask)
            )
            for part, values in parts.items():
                write(f"{name}:{part}" if part else name, values)

        yield write_packed


class Unpacked(Named):
    """A checkpoint whose arrays are packed, as if they were not."""

    def __init__(self, source: Source):
        self.path, self.separator, self._source = source.path, source.separator, source
        self.metadata = {key: value for key, value in source.metadata.items() if PACKED.get(key) != value}
        self.leaves = dict[str, Leaf]()
        for name, leaf in source.leaves.items():
            whole, _, part = name.rpartition(":")
            if not whole or part not in _PARTS:
                self.leaves[name] = leaf
            elif part == "values":
                self.leaves[whole] = Leaf(whole, self._shape(whole), leaf.dtype)

    def _shape(self, name: str) -> tuple[int, ...]:
        sizes = self._source.read(f"{name}:shape") if f"{name}:shape" in self._source.leaves else None
        if sizes is None or sizes.ndim != 1 or sizes.dtype != np.int64 or (sizes < 0).any():
            raise ValueError(f"'{self.path}' is damaged: '{name}:values' has no shape beside it.")
        return tuple(int(size) for size in sizes)

    def read(self, name: str) -> np.ndarray:
        """One array, unpacked."""
        if name in self._source.leaves:
            return self._source.read(name)
        parts = {part: f"{name}:{part}" for part in _PARTS}
        found = {part: self._source.read(stored) for part, stored in parts.items() if stored in self._source.leaves}
        try:
            return unpacked(found)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"'{self.path}' is damaged within '{name}': {error}.") from error


def opened(path: Path) -> Source:
    """As `_sources.opened`, unpacked."""
    source = _sources.opened(path)
    return Unpacked(source) if all(source.metadata.get(key) == value for key, value in PACKED.items()) else source


def packed(array: np.ndarray, axis: int | None) -> dict[str, np.ndarray]:
    """The parts of an array by their names; the array itself, called "", where that is no larger.

    Args:
      array: Any.
      axis: Along which groups are looked for; `None` tries the last two.
    """
    if array.dtype.kind not in "fV" or array.ndim < 2 or not array.size:
        return {"": array}
    kept = array.view(f"u{array.dtype.itemsize}") != 0  # so that a -0 stays
    number = int(np.count_nonzero(kept))
    forms = [(-(-array.size // 8) + number * array.itemsize, 0, 0, 0)]
    for along in (-2, -1) if axis is None else (axis,):
        for m in (m for m in _GROUPS if array.shape[along] % m == 0):
            n = int(grouped(kept, along, m).sum(axis=1, dtype=np.uint8).max())
            groups = array.size // m
            forms.append((groups * n * array.itemsize + -(-groups * _width(n, m) // 8), n, m, along))
    size, n, m, along = min(forms)
    if array.nbytes <= size:
        return {"": array}
    shape = {"shape": np.array(array.shape, np.int64)}
    if not m:
        return {**shape, "values": array[kept], "bitmask": np.packbits(kept)}
    full, codes = _choices(n, m)
    values, groups = list[np.ndarray](), list[np.ndarray]()
    found, numbers = grouped(kept, along, m), grouped(array, along, m)
    for start in range(0, len(found), _ROWS):
        code = codes[found[start : start + _ROWS] @ (1 << np.arange(m))]
        values.append(numbers[start : start + _ROWS][full[code]])
        groups.append((code[:, None] >> np.arange(_width(n, m))[::-1] & 1).astype(bool))
    bits = np.packbits(np.concatenate(groups))
    return {**shape, "values": np.concatenate(values), "nm": np.array([n, m, along], np.int64), "groups": bits}


def unpacked(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of which `packed` gave these parts.

    Raises:
      ValueError: They do not belong together.
    """
    if "" in parts:
        return parts[""]
    shape, values = tuple(int(size) for size in parts["shape"]), parts["values"]
    size = math.prod(shape)
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape is {shape}")
    if "transform" in parts:
        return _from_frequencies(parts, shape)
    if "bitmask" in parts:
        if parts["bitmask"].size != -(-size // 8):
            raise ValueError(f"there are {parts['bitmask'].size} bytes of mask for {size} numbers")
        kept = np.unpackbits(parts["bitmask"], count=size).astype(bool)
        _check(values.size, int(np.count_nonzero(kept)))
        array = np.zeros(size, values.dtype)
        array[kept] = values
        return array.reshape(shape)
    n, m, axis = (int(number) for number in parts["nm"])
    if m not in _GROUPS or not 0 <= n <= m or not -len(shape) <= axis < len(shape) or shape[axis] % m:
        raise ValueError(f"{n} of every {m} along axis {axis} do not fit the shape {shape}")
    groups, width, (full, _) = size // m, _width(n, m), _choices(n, m)
    _check(values.size, groups * n)
    if parts["groups"].size != -(-groups * width // 8):
        raise ValueError(f"there are {parts['groups'].size} bytes for the choices of {groups} groups")
    choice = np.unpackbits(parts["groups"], count=groups * width).reshape(groups, width)
    code = choice @ (1 << np.arange(width)[::-1])
    if code.size and code.max() >= len(full):
        raise ValueError(f"there is a choice {code.max()}, of {len(full)}")
    array = np.zeros((groups, m), values.dtype)
    array[full[code]] = values
    moved = [other for place, other in enumerate(shape) if place != axis % len(shape)]
    return np.moveaxis(array.reshape(*moved, shape[axis]), -1, axis)


def of_frequencies(array: np.ndarray, mask: Spectral) -> dict[str, np.ndarray]:
    """The parts of a kernel that a frequency mask has been applied to: as many numbers as it keeps.

    They are what the kernel is made of, so that it comes back up to the rounding of a transform.
    """
    shape = {"shape": np.array(array.shape, np.int64), "axes": np.array(mask.axes, np.int64)}
    transform = {"transform": np.array([mask.transform == "dct"], np.uint8)}
    controls = np.broadcast_to(np.asarray(frequency.slots(array.shape, mask.axes, mask.transform)), mask.keep.shape)
    kept = np.asarray(mask.keep) & (controls > 0)
    if mask.transform == "dct":
        values = [np.asarray(jax.scipy.fft.dctn(jnp.asarray(array, jnp.float32), axes=mask.axes, norm="ortho"))[kept]]
    else:
        spectrum = np.fft.rfftn(array.astype(np.float64), axes=mask.axes, norm="ortho")
        values = [spectrum.real[kept], spectrum.imag[kept & (controls == 2)]]
    bits = np.packbits(kept[controls > 0])
    return {**shape, **transform, "values": np.concatenate(values).astype(array.dtype), "bitmask": bits}


def _from_frequencies(parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    axes, values = tuple(int(axis) for axis in parts["axes"]), parts["values"].astype(np.float64)
    if frequency.normalise_axes(shape, axes) != axes:
        raise ValueError(f"the axes are {axes}")
    transform = "dct" if parts["transform"][0] else "dft"
    stored = list(shape)
    if transform == "dft":
        stored[axes[-1]] = shape[axes[-1]] // 2 + 1
    controls = np.broadcast_to(np.asarray(frequency.slots(shape, axes, transform)), stored)
    kept = np.zeros(stored, bool)
    kept[controls > 0] = np.unpackbits(parts["bitmask"], count=int(np.count_nonzero(controls))).astype(bool)
    pairs = kept & (controls == 2)
    reals = int(np.count_nonzero(kept))
    _check(values.size, reals + (0 if transform == "dct" else int(np.count_nonzero(pairs))))
    spectrum = np.zeros(stored, np.float32 if transform == "dct" else np.complex128)
    spectrum[kept] = values[:reals]
    if transform == "dct":
        return np.asarray(jax.scipy.fft.idctn(jnp.asarray(spectrum), axes=axes, norm="ortho")).astype(
            parts["values"].dtype
        )
    spectrum[pairs] += 1j * values[reals:]
    # What is a conjugate of another coefficient that is stored, at the negated frequencies of all axes but the last.
    mirrored = np.roll(np.flip(spectrum, axes[:-1]), 1, axes[:-1]).conj() if axes[:-1] else spectrum
    spectrum = np.where(controls == 0, mirrored, spectrum)
    sizes = [shape[axis] for axis in axes]
    return np.fft.irfftn(spectrum, sizes, axes, norm="ortho").astype(parts["values"].dtype)


def grouped(array: np.ndarray, axis: int, m: int) -> np.ndarray:
    """The groups of m along an axis, one a row."""
    return np.moveaxis(array, axis, -1).reshape(-1, m)


def _width(n: int, m: int) -> int:
    """How many bits a choice of n from m takes."""
    return (math.comb(m, n) - 1).bit_length()


@functools.cache
def _choices(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The choices of n from m as masks; and for every set, as a binary number, the first choice that has all of it."""
    places = list(itertools.combinations(range(m), n))
    full = np.zeros((len(places), m), bool)
    np.put_along_axis(full, np.array(places, np.int64).reshape(len(places), n), True, axis=1)
    sets = (np.arange(2**m)[:, None] >> np.arange(m) & 1).astype(bool)
    missing = n - sets.sum(axis=1, keepdims=True)
    # The first choice takes the first places that are free.
    first = sets | (np.cumsum(~sets, axis=1) <= missing)
    numbers = full @ (1 << np.arange(m))
    order = np.argsort(numbers)
    found = np.searchsorted(numbers, first @ (1 << np.arange(m)), sorter=order)
    return full, order[np.minimum(found, len(order) - 1)]


def _check(got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"there are {got} values for {expected} places")
