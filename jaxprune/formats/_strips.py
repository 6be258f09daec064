"""Strips of outputs that each read equally many blocks of inputs: one gather and one dense product a strip.

Balanced blocks are strips as wide as a block; vector-wise N:M, where a group of outputs shares one pattern, is strips
as wide as a group with blocks of a single input; and strips of one output hold any sparsity, at the cost of a gather
for every weight.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune.formats._blocks import strip_products
from jaxprune.typing import Kernel, Mask

Method: TypeAlias = Literal["strip by strip", "batched", "pallas"]

_OUTPUTS = 64  # of a step of "strip by strip": narrower strips are batched up to it


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["index", "values"], meta_fields=["rows", "inputs", "method"]
)
@dataclasses.dataclass(frozen=True)
class Strips:
    """A kernel `(in, out)` cut into strips of outputs, each of which keeps as many blocks of `rows` inputs.

    Attributes:
      index: Which blocks of inputs a strip reads, int32, ascending.
      values: Their weights, block after block, for each output. A strip with fewer blocks than the fullest is filled
        up with zeros.
      rows: Inputs of a block.
      inputs: Of the kernel.
      method: "strip by strip" gathers and multiplies in a loop, which stays in a processor's cache; "batched" is one
        gather and one batched product; "pallas" is a kernel of its own that gathers nothing, for GPU and TPU.
    """

    index: Int[Array, "strip kept"]
    values: Float[Array, "strip column weight"]
    rows: int
    inputs: int
    method: Method = "strip by strip"

    @classmethod
    def of(
        cls,
        kernel: Kernel | np.ndarray,
        mask: Mask | np.ndarray,
        *,
        block: tuple[int, int],
        method: Method = "strip by strip",
    ) -> Strips:
        """Stores what a mask keeps of a kernel.

        Args:
          kernel: `(in, out)`.
          mask: Of the same shape.
          block: Inputs and outputs of a block; they divide the kernel's.
          method: How to multiply.

        Raises:
          ValueError: The block does not divide the kernel.

        Examples:
          >>> kernel = jnp.arange(8.0).reshape(4, 2)
          >>> stored = Strips.of(kernel, kernel > 3, block=(2, 1))
          >>> stored.index.tolist(), stored.values[:, 0].tolist()
          ([[1], [1]], [[4.0, 6.0], [5.0, 7.0]])
        """
        (inputs, outputs), (rows, columns) = kernel.shape, block
        if inputs % rows or outputs % columns:
            raise ValueError(f"`Strips` needs blocks that divide the kernel {kernel.shape}; got {block}.")
        tiles = np.where(mask, kernel, 0).reshape(inputs // rows, rows, outputs // columns, columns)
        tiles = tiles.transpose(2, 3, 0, 1)
        filled = block_fill(np.asarray(mask), block).T
        kept = max(1, int(filled.sum(1).max()))
        index = np.sort(np.argsort(~filled, axis=1, kind="stable")[:, :kept], axis=1).astype(np.int32)
        values = np.take_along_axis(tiles, index[:, None, :, None], 2).reshape(len(index), columns, kept * rows)
        return cls(jnp.asarray(index), jnp.asarray(values, kernel.dtype), rows, inputs, method)

    @property
    def nbytes(self) -> int:
        """The size in memory, in bytes."""
        return self.index.nbytes + self.values.nbytes

    @property
    def columns(self) -> int:
        """Outputs of a block."""
        return self.values.shape[1]

    def dense(self) -> Kernel:
        """The kernel, `(in, out)`."""
        strips, kept = self.index.shape
        tiles = self.values.reshape(strips, self.columns, kept, self.rows)
        empty = jnp.zeros((strips, self.inputs // self.rows, self.rows, self.columns), self.values.dtype)
        filled = empty.at[jnp.arange(strips)[:, None], self.index].set(jnp.moveaxis(tiles, 1, 3))
        return jnp.moveaxis(filled, 0, 2).reshape(self.inputs, strips * self.columns)

    def astype(self, dtype: Any) -> Strips:
        """The same kernel in another dtype."""
        return dataclasses.replace(self, values=self.values.astype(dtype))

    def by(self, method: Method) -> Strips:
        """The same kernel, multiplied in another way."""
        return dataclasses.replace(self, method=method)

    def matmul(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """`x @ kernel`."""
        if self.method == "pallas":
            return strip_products(x, self.index, self.values, self.rows)
        # The barrier keeps XLA from fusing the transpose into the gather, which then copies whole rows.
        blocks = lax.optimization_barrier(x.T.reshape(-1, self.rows, x.shape[0]))

        def strip(part: tuple[Array, Array]) -> Array:
            index, values = part
            return values @ blocks.at[index].get(mode="promise_in_bounds").reshape(-1, x.shape[0])

        if self.method == "batched":
            out = jax.vmap(strip)((self.index, self.values))
        else:
            batch = _OUTPUTS // self.columns
            out = lax.map(strip, (self.index, self.values), batch_size=batch if batch > 1 else None)
        return out.reshape(-1, x.shape[0]).T

    def __str__(self) -> str:
        return f"blocks of {self.rows}×{self.columns}, {self.method}"


def block_fill(mask: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Which blocks hold a kept weight: `(in / rows, out / columns)`."""
    rows, columns = block
    tiles = mask.reshape(mask.shape[0] // rows, rows, mask.shape[1] // columns, columns)
    return np.logical_or.reduce(tiles, axis=(1, 3))
