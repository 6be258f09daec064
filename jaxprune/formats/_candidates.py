"""Which forms of a kernel are worth timing: a few, and only those that leave out much of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxprune.formats import _blocks
from jaxprune.formats._rows import Rows
from jaxprune.formats._strips import Method, Strips, block_fill

_BLOCKS = ((128, 128), (64, 64), (32, 32), (16, 16), (1, 256), (1, 128), (1, 64), (1, 32))
_WORTH = 0.8  # the largest share of the kernel that a form may store to be timed
_SCATTERED = 0.3  # the largest density at which forms of single weights are timed
_TRIED = 3  # blocks that are timed, at most
_GATHERED = 2**27  # numbers that a batched gather may copy


def candidates(kernel: np.ndarray, mask: np.ndarray, batch: int) -> Iterator[Any]:
    """Sparse forms of a kernel.

    Args:
      kernel: `(in, out)`, masked.
      mask: Of the same shape.
      batch: How many rows it is multiplied with.
    """
    for block in worthwhile(mask):
        first = Strips.of(kernel, mask, block=block)
        yield first
        if batch * first.values.size // block[1] <= _GATHERED:
            yield first.by("batched")
        device = jax.default_backend()
        if (device == "gpu" or device == "tpu") and _blocks.fits(block, device):
            yield first.by("pallas")
    density = mask.mean()
    if density <= _SCATTERED:
        single = Strips.of(kernel, mask, block=(1, 1))
        methods: tuple[Method, ...] = ("batched", "strip by strip") if batch * single.values.size <= _GATHERED else ()
        yield from (single.by(method) for method in methods)
        yield Rows.of(kernel, mask)


def worthwhile(mask: np.ndarray) -> list[tuple[int, int]]:
    """At most three blocks that leave out most; one is skipped if a larger one leaves out nearly as much."""
    stored = {
        block: _stored(mask, block)
        for block in _BLOCKS
        if not any(n % b for n, b in zip(mask.shape, block, strict=True))
    }
    useful = [
        block
        for block, share in stored.items()
        if share <= _WORTH
        and not any(other <= 1.05 * share and math.prod(bigger) > math.prod(block) for bigger, other in stored.items())
    ]
    return sorted(useful, key=lambda block: stored[block])[:_TRIED]


def _stored(mask: np.ndarray, block: tuple[int, int]) -> float:
    """The share of the kernel that strips of these blocks store."""
    filled = block_fill(mask, block)
    return float(filled.sum(0).max()) / filled.shape[0]
