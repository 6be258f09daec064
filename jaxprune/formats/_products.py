"""Which parameters of a function are matrices that it only multiplies with, and with what."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._jaxpr.roles.rules import Use, uses
from jaxprune._jaxpr.roles.stored import StoredKernel, evaluate
from jaxprune._jaxpr.tracing import Traced


@dataclasses.dataclass(frozen=True)
class Products:
    """The products of one matrix.

    Attributes:
      summed: Which of its axes they sum over.
      operands: Shape `(batch, summed)` and dtype of the other side of each.
      dtypes: The matrix's own dtype in each, which a cast may have changed.
    """

    summed: int
    operands: tuple[jax.ShapeDtypeStruct, ...]
    dtypes: tuple[Any, ...]


class _Recorder:
    """Takes the place of a kernel `(in, out)` while a function is traced, and records the products with it.

    It appends the other operand and the kernel's dtype for each product, and `None` for any other use.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, uses: list[Any]) -> None:
        self.shape, self.dtype, self.uses = shape, dtype, uses

    def dense(self) -> Any:
        self.uses.append(None)
        return jnp.zeros(self.shape, self.dtype)

    def astype(self, dtype: Any) -> _Recorder:
        return _Recorder(self.shape, dtype, self.uses)

    def matmul(self, x: Any) -> Any:
        self.uses.append((jax.ShapeDtypeStruct(x.shape, x.dtype), self.dtype))
        return jnp.zeros((x.shape[0], self.shape[1]), x.dtype)


def products(traced: Traced) -> dict[str, Products | str]:
    """The products of each parameter by path, or why another form of it cannot take its place."""
    found = uses(traced)
    summed, result = dict[int, int](), dict[str, Products | str]()
    for index, (path, leaf) in enumerate(zip(traced.paths, traced.leaves, strict=True)):
        reason = found.otherwise.get(index) or _unfit(found.products.get(index, []), leaf)
        if reason is None:
            summed[index] = found.products[index][0].inputs[0]
        else:
            result[path] = reason
    for index, recorded in _recorded(traced, summed).items():
        result[traced.paths[index]] = (
            "a loop or another operation takes it too"
            if None in recorded
            else Products(summed[index], tuple(x for x, _ in recorded), tuple(dtype for _, dtype in recorded))
        )
    return result


def _unfit(found: list[Use], leaf: Any) -> str | None:
    if not found:
        return "nothing multiplies with it"
    if leaf.ndim != 2 or any(use.stacked or len(use.inputs) != 1 for use in found):
        return "it is not one matrix that is summed over one axis"
    return None if len({use.inputs for use in found}) == 1 else "its products sum over different axes"


def _recorded(traced: Traced, summed: dict[int, int]) -> dict[int, list[Any]]:
    """What a `_Recorder` in place of each of some matrices records."""
    recorded: dict[int, list[Any]] = {index: [] for index in summed}

    def run(arguments: list[Any]) -> Any:
        leaves = arguments[: len(traced.leaves)]
        for index, axis in summed.items():
            shape = leaves[index].shape if axis == 0 else leaves[index].shape[::-1]
            leaves[index] = StoredKernel(_Recorder(shape, leaves[index].dtype, recorded[index]), axis)
        return evaluate(traced, leaves, arguments[len(leaves) :])

    jax.eval_shape(run, [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in traced.jaxpr.in_avals])
    return recorded
