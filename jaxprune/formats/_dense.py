"""The dense kernel, in either layout: what every other format has to beat."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxprune.typing import Kernel


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["transposed"])
@dataclasses.dataclass(frozen=True)
class Dense:
    """A kernel as it is, or with its outputs first: on some devices one is read faster than the other.

    Attributes:
      values: `(in, out)`, or `(out, in)` where `transposed`.
      transposed: Whether the outputs come first.
    """

    values: Float[Array, "a b"]
    transposed: bool = False

    @classmethod
    def of(cls, kernel: Kernel, *, transposed: bool = False) -> Dense:
        """Stores a kernel `(in, out)`."""
        return cls(jnp.copy(kernel.T) if transposed else kernel, transposed)

    @property
    def nbytes(self) -> int:
        """The size in memory, in bytes."""
        return self.values.nbytes

    def dense(self) -> Kernel:
        """The kernel, `(in, out)`."""
        return self.values.T if self.transposed else self.values

    def astype(self, dtype: Any) -> Dense:
        """The same kernel in another dtype."""
        return dataclasses.replace(self, values=self.values.astype(dtype))

    def matmul(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """`x @ kernel`."""
        return lax.dot_general(x, self.values, (((1,), (1 if self.transposed else 0,)), ((), ())))

    def __str__(self) -> str:
        return "dense, outputs first" if self.transposed else "dense"
