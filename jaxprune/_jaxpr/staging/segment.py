"""A part of a flat jaxpr as a program of its own; equal parts, such as a model's layers, are compiled once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from jaxprune._jaxpr.walker import bind, jaxpr_and_constants

_INDEXED = {"dynamic_slice": 1, "dynamic_update_slice": 2}  # which operand is the first index


class Segment:
    """Some equations, with what they read and what is wanted of them; equal if they compute the same.

    Args:
      eqns: In the order of their evaluation.
      outputs: Variables that are wanted.

    Attributes:
      inputs: The variables that the equations read and do not define.
      lifted: Literal indices. They are operands of the compiled program, so that it is one for all layers of a stack.
    """

    def __init__(self, eqns: Sequence[JaxprEqn], outputs: Sequence[Var]):
        numbers: dict[Var, int] = {}
        self.eqns, self.outputs, self.lifted = tuple(eqns), tuple(outputs), list[Any]()
        self.key = _key(eqns, outputs, numbers, self.lifted)
        defined = {variable for eqn in eqns for variable in eqn.outvars}
        self.inputs = tuple(variable for variable in numbers if variable not in defined)
        self._hash = hash(self.key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segment) and self.key == other.key

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        """Evaluates the equations; `values` are those of `inputs`."""
        return _run(self, list(values), self.lifted)


@functools.partial(jax.jit, static_argnums=0)
def _run(segment: Segment, values: list[Any], lifted: list[Any]) -> list[Any]:
    environment = dict(zip(segment.inputs, values, strict=True))
    indices = iter(lifted)
    for eqn in segment.eqns:
        first = _INDEXED.get(eqn.primitive.name, len(eqn.invars))
        operands = [
            environment[atom] if isinstance(atom, Var) else next(indices) if place >= first else atom.val
            for place, atom in enumerate(eqn.invars)
        ]
        environment.update(zip(eqn.outvars, bind(eqn, *operands), strict=True))
    return [environment[variable] for variable in segment.outputs]


def _key(eqns: Sequence[JaxprEqn], outputs: Sequence[Any], numbers: dict[Var, int], lifted: list[Any]) -> Any:
    """Equations with variables numbered as they appear: the same for two segments only if they compute the same."""

    def atom(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return np.asarray(atom.val).tobytes(), str(atom.aval)
        return numbers.setdefault(atom, len(numbers)), str(atom.aval)

    rows = list[Any]()
    for eqn in eqns:
        first = _INDEXED.get(eqn.primitive.name, len(eqn.invars))
        operands = list[Any]()
        for place, operand in enumerate(eqn.invars):
            if place >= first and isinstance(operand, Literal):
                lifted.append(operand.val)
                operands.append(str(operand.aval))
            else:
                operands.append(atom(operand))
        rows.append((eqn.primitive, _value_key(eqn.params), tuple(operands), tuple(map(atom, eqn.outvars))))
    return tuple(rows), tuple(map(atom, outputs))


def _value_key(value: Any) -> Any:
    """Something hashable that is equal only if the parameter of an equation is; its identity where nothing is known."""
    if isinstance(value, ClosedJaxpr | Jaxpr):
        jaxpr, constants = jaxpr_and_constants(value)
        numbers = {variable: i for i, variable in enumerate((*jaxpr.constvars, *jaxpr.invars))}
        shapes = tuple(str(variable.aval) for variable in numbers)
        return shapes, tuple(map(id, constants)), _key(jaxpr.eqns, jaxpr.outvars, numbers, lifted := []), tuple(lifted)
    if isinstance(value, dict):
        return tuple((name, _value_key(value[name])) for name in sorted(value))
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_value_key, value))
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
