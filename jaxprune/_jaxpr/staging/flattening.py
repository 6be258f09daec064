"""Makes one flat jaxpr of a traced function: calls are inlined, and scans over a stack of layers unrolled."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn

from jaxprune._jaxpr.primitives import callee, scan_operands
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import bind, jaxpr_and_constants, shape_of, walk

Pair: TypeAlias = tuple[Any, frozenset[int] | None]
"""An array, and the leaves that it is made of, empty for a constant; `None` if it depends on the inputs."""


@dataclasses.dataclass(frozen=True)
class _Flattening:
    """Which leaves a scan is unrolled for."""

    targets: frozenset[int]

    def walk(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Pair]) -> list[Pair]:
        def constant(value: Any) -> Pair:
            return value, frozenset()

        return walk(
            jaxpr, arguments, _visit, self, literal=constant, constants=[constant(value) for value in constants]
        )


def flatten(traced: Traced, targets: Collection[int]) -> ClosedJaxpr:
    """The same program without calls, and without the scans that step along a target.

    Each step takes its slices with `dynamic_slice` at a literal index, so that steps differ in nothing else.

    Args:
      traced: From `trace`.
      targets: Indices of leaves.
    """
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    leaves = len(traced.leaves)
    flattening = _Flattening(frozenset(targets))

    def flat(arrays: Sequence[Any]) -> list[Any]:
        pairs: list[Pair] = [(x, frozenset([i]) if i < leaves else None) for i, x in enumerate(arrays)]
        return [array for array, _ in flattening.walk(jaxpr, constants, pairs)]

    avals: list[Any] = [variable.aval for variable in jaxpr.invars]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in avals]
    return jax.make_jaxpr(flat)(shapes)


def _visit(flattening: _Flattening, eqn: JaxprEqn, *pairs: Pair) -> list[Pair]:
    arrays = [array for array, _ in pairs]
    if eqn.primitive.name == "scan" and _steps_along(flattening, eqn, pairs):
        return _unrolled(flattening, eqn, pairs)
    if (called := callee(eqn)) is not None:
        return flattening.walk(*called, pairs)
    made_of = [leaves for _, leaves in pairs]
    whole = None if any(leaves is None for leaves in made_of) else frozenset(i for s in made_of for i in s or ())
    if eqn.primitive.name == "slice" and whole and eqn.params["strides"] is None:
        outputs = [_slice(arrays[0], eqn.params["start_indices"], shape_of(eqn.outvars[0]))]
    elif all(np.ndim(array) == 0 and not isinstance(array, Tracer) for array in arrays):
        with jax.ensure_compile_time_eval():  # the counter of a loop, so that positions are known
            outputs = bind(eqn, *arrays)
    else:
        outputs = bind(eqn, *arrays)
    return [(output, whole) for output in outputs]


def _steps_along(flattening: _Flattening, eqn: JaxprEqn, pairs: Sequence[Pair]) -> bool:
    _, _, scanned = scan_operands(eqn, pairs)
    return any(leaves and leaves & flattening.targets for _, leaves in scanned)


def _unrolled(flattening: _Flattening, eqn: JaxprEqn, pairs: Sequence[Pair]) -> list[Pair]:
    constants, carry, scanned = scan_operands(eqn, pairs)
    length = eqn.params["length"]
    rows: list[list[Pair]] = [[]] * length
    for step in reversed(range(length)) if eqn.params["reverse"] else range(length):
        slices = [(_position(array, step), leaves) for array, leaves in scanned]
        outputs = flattening.walk(*jaxpr_and_constants(eqn.params["jaxpr"]), [*constants, *carry, *slices])
        carry, rows[step] = outputs[: len(carry)], outputs[len(carry) :]
    stacked = [lax.concatenate([lax.expand_dims(x, (0,)) for x, _ in column], 0) for column in zip(*rows, strict=True)]
    return [*carry, *((array, None) for array in stacked)]


def _position(array: Any, step: int) -> Any:
    starts = (step, *(0,) * (array.ndim - 1))
    return lax.squeeze(_slice(array, starts, (1, *array.shape[1:])), (0,))


def _slice(array: Any, starts: Sequence[int], sizes: Sequence[int]) -> Any:
    return lax.dynamic_slice(array, [np.int32(start) for start in starts], sizes)
