"""Compressed rows for high sparsity without structure."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Array, Float

from jaxprune._arrays import tree
from jaxprune.typing import Kernel, Mask


@functools.partial(jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Rows:
    """The kernel's transpose in JAX's compressed sparse rows: for each output, its weights and which inputs they read.

    Attributes:
      matrix: `(out, in)`, a `jax.experimental.sparse.BCSR`.
    """

    matrix: Any

    @classmethod
    def of(cls, kernel: Kernel | np.ndarray, mask: Mask | np.ndarray) -> Rows:
        """Stores what a mask keeps of a kernel `(in, out)`; a kept weight that is 0 is not stored.

        Examples:
          >>> kernel = jnp.arange(8.0).reshape(4, 2)
          >>> Rows.of(kernel, kernel > 5).matrix.data.tolist()
          [6.0, 7.0]
        """
        return cls(sparse.BCSR.fromdense(jnp.asarray(np.where(mask, kernel, 0).astype(kernel.dtype).T)))

    @property
    def nbytes(self) -> int:
        """The size in memory, in bytes."""
        return self.matrix.data.nbytes + self.matrix.indices.nbytes + self.matrix.indptr.nbytes

    def dense(self) -> Kernel:
        """The kernel, `(in, out)`."""
        return self.matrix.todense().T

    def astype(self, dtype: Any) -> Rows:
        """The same kernel in another dtype."""
        matrix = self.matrix
        parts = (matrix.data.astype(dtype), matrix.indices, matrix.indptr)
        return Rows(sparse.BCSR(parts, shape=matrix.shape, indices_sorted=True, unique_indices=True))

    def matmul(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """`x @ kernel`, summed in float32 or wider: JAX has no routine for shorter floats on a CPU."""
        wide = tree.promote(x.dtype, jnp.float32)
        return (self.astype(wide).matrix @ x.astype(wide).T).T.astype(x.dtype)

    def __str__(self) -> str:
        return "compressed rows"
