"""A Pallas kernel for strips of blocks: each program multiplies one strip, and reads only the inputs that it keeps."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

Device: TypeAlias = Literal["gpu", "tpu"]

_SAMPLES = 128  # per program, at most
_TILE = {"gpu": (16, 16), "tpu": (8, 128)}  # samples per program and columns, at least


def strip_products(
    x: Float[Array, "batch in"],
    index: Int[Array, "strip kept"],
    values: Float[Array, "strip column weight"],
    rows: int,
    *,
    device: Device | None = None,
    interpret: bool | None = None,
) -> Float[Array, "batch out"]:
    """`x @ kernel` for a kernel stored in strips.

    Args:
      x: Samples.
      index: Which blocks of inputs a strip reads.
      values: Their weights, block after block.
      rows: Inputs of a block; see `fits` for what a device takes.
      device: What to compile for; `None` is the one at hand, a GPU where that is a CPU.
      interpret: Run it as ordinary operations; `None` does so on a CPU.
    """
    here = jax.default_backend()
    device = device or ("tpu" if here == "tpu" else "gpu")
    (strips, kept), columns = index.shape, values.shape[1]
    samples = min(_SAMPLES, max(_TILE[device][0], pl.next_power_of_2(x.shape[0])))
    padded = jnp.pad(x, ((0, -x.shape[0] % samples), (0, 0)))
    grid = strips, padded.shape[0] // samples
    x_spec = pl.BlockSpec((samples, x.shape[1]), lambda strip, batch, *_: (batch, 0))
    values_spec = pl.BlockSpec((1, *values.shape[1:]), lambda strip, batch, *_: (strip, 0, 0))
    out_spec = pl.BlockSpec((samples, columns), lambda strip, batch, *_: (batch, strip))
    if device == "tpu":
        # A TPU needs all addresses in scalar memory before the first program starts.
        specs: dict[str, Any] = {
            "grid_spec": pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1, grid=grid, in_specs=[x_spec, values_spec], out_specs=out_spec
            )
        }
    else:
        # Imported where it is used, since later versions of JAX may not have it.
        from jax.experimental.pallas import triton

        index_spec = pl.BlockSpec((1, kept), lambda strip, batch: (strip, 0))
        specs = {
            "grid": grid,
            "in_specs": [index_spec, x_spec, values_spec],
            "out_specs": out_spec,
            "compiler_params": triton.CompilerParams(),  # chooses Triton as the compiler
        }
    out = pl.pallas_call(
        functools.partial(_strip, rows=rows, kept=kept, all_strips=device == "tpu"),
        out_shape=jax.ShapeDtypeStruct((padded.shape[0], strips * columns), x.dtype),
        interpret=here == "cpu" if interpret is None else interpret,
        **specs,
    )(index, padded, values)
    return out[: x.shape[0]]


def fits(block: tuple[int, int], device: Device) -> bool:
    """Whether the kernel can be compiled for blocks of so many inputs and outputs.

    A GPU takes powers of two from 16, a TPU multiples of 128.
    """
    if device == "tpu":
        return all(size % _TILE["tpu"][1] == 0 for size in block)
    return all(size >= _TILE["gpu"][1] and size & (size - 1) == 0 for size in block)


def _strip(index: Any, x: Any, values: Any, out: Any, *, rows: int, kept: int, all_strips: bool) -> None:
    """The product of one strip with some samples, block by block."""
    strip = pl.program_id(0) if all_strips else 0

    def add(i: Any, total: Array) -> Array:
        start = pl.multiple_of(index[strip, i] * rows, rows)
        read, weights = x[:, pl.ds(start, rows)], values[0, :, pl.ds(pl.multiple_of(i * rows, rows), rows)]
        return total + jnp.dot(read, weights.T, preferred_element_type=jnp.float32)

    total = lax.fori_loop(0, kept, add, jnp.zeros(out.shape, jnp.float32))
    out[...] = total.astype(out.dtype)
