"""Evaluates a function with some kernels stored in another format, by the products of that format."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.primitives import CALLS, inner_jaxpr
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import bind, jaxpr_and_constants, walk


@runtime_checkable
class KernelFormat(Protocol):
    """How a kernel `(in, out)` is stored."""

    def dense(self) -> Any:
        """The kernel as an array."""
        ...

    def astype(self, dtype: Any) -> Any:
        """The same kernel in another dtype."""
        ...

    def matmul(self, x: Any) -> Any:
        """`x @ kernel`, for `x` of shape `(batch, in)`."""
        ...


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel"], meta_fields=["summed"])
@dataclasses.dataclass(frozen=True)
class StoredKernel:
    """A parameter, or a value of the program, that is a stored kernel.

    Attributes:
      kernel: In its format.
      summed: Which axis of the value is the kernel's `in`.
    """

    kernel: KernelFormat
    summed: int

    def dense(self) -> Any:
        """The value as an array."""
        kernel = self.kernel.dense()
        return kernel if self.summed == 0 else kernel.T


def evaluate(traced: Traced, leaves: Sequence[Any], inputs: Sequence[Any]) -> Any:
    """Runs a traced function.

    Args:
      traced: From `trace`.
      leaves: One for each parameter of the trace, a `StoredKernel` in place of some.
      inputs: One array for each other input.
    """
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    outputs = _walk(jaxpr, constants, [*leaves, *inputs])
    return jax.tree.unflatten(traced.structure, [_dense(value) for value in outputs])


def _walk(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    return walk(jaxpr, arguments, _visit, None, literal=lambda value: value, constants=constants)


def _visit(context: None, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    return RULES.get(eqn.primitive.name, _other)(context, eqn, *operands)


def _other(_: None, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """Any other operation gets the dense kernel."""
    return bind(eqn, *map(_dense, operands))


def _call(_: None, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`jit` and the like, and functions with their own derivative: what is inside, where a stored kernel goes in."""
    if not any(isinstance(operand, StoredKernel) for operand in operands):
        return bind(eqn, *operands)
    return _walk(*inner_jaxpr(eqn), operands)


def _transpose(_: None, eqn: JaxprEqn, operand: Any) -> Sequence[Any]:
    if not isinstance(operand, StoredKernel):
        return bind(eqn, operand)
    return [StoredKernel(operand.kernel, eqn.params["permutation"].index(operand.summed))]


def _convert(_: None, eqn: JaxprEqn, operand: Any) -> Sequence[Any]:
    if not isinstance(operand, StoredKernel):
        return bind(eqn, operand)
    return [StoredKernel(operand.kernel.astype(eqn.params["new_dtype"]), operand.summed)]


def _product(_: None, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The product of the format, where the other side is an array and the kernel is summed over its `in` alone."""
    sides = [side for side, operand in enumerate(operands) if isinstance(operand, StoredKernel)]
    if len(sides) != 1 or not is_product(eqn, sides[0], operands[sides[0]].summed):
        return bind(eqn, *map(_dense, operands))
    side = sides[0]
    (contracted, _), x = eqn.params["dimension_numbers"], operands[1 - side]
    x = jnp.moveaxis(x, contracted[1 - side][0], -1)
    out = operands[side].kernel.matmul(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
    out = out.astype(eqn.params["preferred_element_type"] or out.dtype)
    return [out if side == 1 else jnp.moveaxis(out, -1, 0)]


def is_product(eqn: JaxprEqn, side: int, summed: int) -> bool:
    """Whether a `dot_general` sums over this axis of one side and over nothing else."""
    contracted, batch = eqn.params["dimension_numbers"]
    return tuple(contracted[side]) == (summed,) and not batch[side]


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, StoredKernel) else value


RULES: dict[str, Callable[..., Sequence[Any]]] = {
    **dict.fromkeys(CALLS, _call),
    "transpose": _transpose,
    "convert_element_type": _convert,
    "dot_general": _product,
}
