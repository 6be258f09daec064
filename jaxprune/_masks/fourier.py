"""Fourier and cosine transforms as products with small matrices: what a TPU's matrix unit is made for.

There, an FFT of a kernel of a few thousand compiles for minutes. An axis of n = first * second positions is
transformed by two products instead, with the matrices of the two factors and a rotation between them (Cooley and Tukey,
1965, "An Algorithm for the Machine Calculation of Complex Fourier Series"), in real numbers. A few lines at a time go
through one loop, so that what is compiled does not grow with the kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Lines = Float[Array, "_ _ _"]

_LINES = 128  # at a time: the width of a TPU's vectors
_DIRECT = 128  # positions that one product is good for
_LARGEST = 1024  # factor whose matrix, of 16 MB, is worth its place in a program


def serves(size: int) -> bool:
    """Whether an axis of this size has factors small enough."""
    return _factors(size)[1] <= _LARGEST


def transformed(array: Float[Array, "_ ..."], axis: int, transform: str, outputs: int) -> Float[Array, "_ ..."]:
    """The orthonormal coefficients along an axis, the first `outputs` of them.

    Args:
      array: The real and, unless it is all real, the imaginary parts, along the first axis.
      axis: Negative.
      transform: "dft", or "dct" for an array that is real and remains so.
      outputs: How many coefficients.

    Returns:
      Real and, of "dft", imaginary parts.
    """
    along = functools.partial(_fourier, outputs=outputs) if transform == "dft" else _cosine
    return _by_lines(array, axis, along)


def _by_lines(array: Any, axis: int, function: Callable[[Lines], Lines]) -> Any:
    moved = jnp.moveaxis(array, axis, 1)
    parts, size, *rest = moved.shape
    lines = moved.reshape(parts, size, math.prod(rest))
    number = lines.shape[2]
    if number <= _LINES:
        done = function(lines)
    else:
        filled = jnp.pad(lines, ((0, 0), (0, 0), (0, -number % _LINES))).reshape(parts, size, -1, _LINES)
        done = jnp.moveaxis(lax.map(function, jnp.moveaxis(filled, 2, 0)), 0, 2)
        done = done.reshape(*done.shape[:2], -1)[:, :, :number]
    return jnp.moveaxis(done.reshape(*done.shape[:2], *rest), 1, axis)


def _fourier(lines: Lines, outputs: int) -> Lines:
    """With position m + second * n and coefficient k + first * j, the phase splits into n k / first, m k and m j."""
    parts, size, number = lines.shape
    first, second = _factors(size)
    if first == 1:
        return _product("pnqk,pnl->qkl", _matrix(size, outputs)[:parts], lines) * _norm(size, lines)
    rows = -(-outputs // first)
    folded = _product("pnqk,pnml->qkml", _matrix(first, first)[:parts], lines.reshape(parts, first, second, number))
    angle = 2 * np.pi * np.outer(np.arange(first), np.arange(second))[:, :, None] / size
    cosine, sine = np.cos(angle).astype(lines.dtype), np.sin(angle).astype(lines.dtype)
    real, imaginary = folded
    turned = jnp.stack([real * cosine + imaginary * sine, imaginary * cosine - real * sine])
    done = _product("pmqj,pkml->qjkl", _matrix(second, rows), turned) * _norm(size, lines)
    return done.reshape(2, rows * first, number)[:, :outputs]


def _cosine(lines: Lines) -> Lines:
    """By the Fourier transform of the even positions and, backwards, the odd ones (Makhoul, 1980)."""
    size = lines.shape[1]
    real, imaginary = _fourier(jnp.concatenate([lines[:, ::2], lines[:, 1::2][:, ::-1]], axis=1), size)
    angle = np.pi * np.arange(size)[:, None] / (2 * size)
    scale = np.where(np.arange(size)[:, None] == 0, 1, math.sqrt(2))
    cosine, sine = (scale * np.cos(angle)).astype(lines.dtype), (scale * np.sin(angle)).astype(lines.dtype)
    return (real * cosine + imaginary * sine)[None]


def _product(equation: str, matrix: np.ndarray, lines: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(equation, matrix.astype(lines.dtype), lines, precision=lax.Precision.HIGHEST)


def _norm(size: int, lines: Lines) -> np.ndarray:
    return np.asarray(size**-0.5, lines.dtype)


@functools.lru_cache(maxsize=64)
def _matrix(size: int, outputs: int) -> np.ndarray:
    """From real and imaginary parts of positions to those of coefficients: `(2, size, 2, outputs)`."""
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(outputs)) % size) / size
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cosine, -sine], axis=1), np.stack([sine, cosine], axis=1)])


@functools.cache
def _factors(size: int) -> tuple[int, int]:
    """The two factors nearest to each other, the larger last; 1 and the size itself where it is small."""
    if size <= _DIRECT:
        return 1, size
    first = max(factor for factor in range(1, math.isqrt(size) + 1) if size % factor == 0)
    return first, size // first
