"""A Pallas kernel for strips of blocks: each program multiplies one strip, and reads only the inputs that it keeps."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

_BATCH = 128  # samples per program


def strip_products(
    x: Float[Array, "batch in"],
    index: Int[Array, "strip kept"],
    values: Float[Array, "strip column weight"],
    rows: int,
    *,
    interpret: bool | None = None,
) -> Float[Array, "batch out"]:
    """`x @ kernel` for a kernel stored in strips.

    Args:
      x: Samples.
      index: Which blocks of inputs a strip reads.
      values: Their weights, block after block.
      rows: Inputs of a block. On a TPU they and the columns should be multiples of 128, on a GPU powers of two from 16.
      interpret: Run it as ordinary operations; `None` does so on a CPU.
    """
    (strips, _), columns = index.shape, values.shape[1]
    samples = min(_BATCH, pl.next_power_of_2(x.shape[0]))
    padded = jnp.pad(x, ((0, -x.shape[0] % samples), (0, 0)))
    # The index comes first: a TPU keeps it in scalar memory, a GPU reads it like any array.
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(strips, padded.shape[0] // samples),
        in_specs=[
            pl.BlockSpec((samples, x.shape[1]), lambda strip, batch, _: (batch, 0)),
            pl.BlockSpec((1, *values.shape[1:]), lambda strip, batch, _: (strip, 0, 0)),
        ],
        out_specs=pl.BlockSpec((samples, columns), lambda strip, batch, _: (batch, strip)),
    )
    out = pl.pallas_call(
        functools.partial(_strip, rows=rows, kept=index.shape[1]),
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct((padded.shape[0], strips * columns), x.dtype),
        interpret=jax.default_backend() == "cpu" if interpret is None else interpret,
    )(index, padded, values)
    return out[: x.shape[0]]


def _strip(index: Any, x: Any, values: Any, out: Any, *, rows: int, kept: int) -> None:
    """The product of one strip with some samples, block by block."""
    strip = pl.program_id(0)

    def add(i: Any, total: Array) -> Array:
        start = pl.multiple_of(index[strip, i] * rows, rows)
        read, weights = x[:, pl.ds(start, rows)], values[0, :, pl.ds(pl.multiple_of(i * rows, rows), rows)]
        return total + jnp.dot(read, weights.T, preferred_element_type=jnp.float32)

    total = lax.fori_loop(0, kept, add, jnp.zeros(out.shape, jnp.float32))
    out[...] = total.astype(out.dtype)
