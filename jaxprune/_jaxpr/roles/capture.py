"""Evaluates a traced function and records every product with some of its parameters, wherever in the program it is.

What is recorded is a state for each parameter. It is threaded through loops, branches and calls, so that the evaluation
stays a pure function that can be compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.primitives import CONTRACTIONS, callee, scan_operands, while_operands
from jaxprune._jaxpr.roles import rules
from jaxprune._jaxpr.roles.operands import Product
from jaxprune._jaxpr.roles.parts import Digit, Part
from jaxprune._jaxpr.roles.rules import Value
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import bind, jaxpr_and_constants, walk

State: TypeAlias = Any
"""A pytree of arrays whose first axes are the leaf's, each of the leaf's size or of size 1."""

Record: TypeAlias = Callable[[Product, State], State]
"""Takes one product into the state of its leaf."""

Pair: TypeAlias = tuple[Any, Value]
"""An array, and the leaves that it is made of."""


@dataclasses.dataclass
class Capture:
    """One evaluation.

    Attributes:
      record: What to do with a product.
      ranks: How many axes each leaf has.
      states: By leaf; products with other leaves are not recorded.
      found: What the rules of `roles` note.
    """

    record: Record
    ranks: Sequence[int]
    states: dict[int, State]
    found: rules.Uses = dataclasses.field(default_factory=rules.Uses)

    def walk(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Pair]) -> list[Pair]:
        """Evaluates a jaxpr."""
        pairs = [(constant, {}) for constant in constants]
        return walk(jaxpr, arguments, visit, self, literal=lambda value: (value, {}), constants=pairs)

    def inside(
        self, states: dict[int, State], jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Pair]
    ) -> tuple[list[Pair], dict[int, State]]:
        """Evaluates a jaxpr from other states; returns its outputs and the new states."""
        inner = dataclasses.replace(self, states=dict(states))
        return inner.walk(jaxpr, constants, arguments), inner.states

    def states_of(self, values: Sequence[Value]) -> dict[int, State]:
        """The states of the leaves that some values are made of."""
        return {leaf: self.states[leaf] for value in values for leaf in value or () if leaf in self.states}


def evaluate(
    traced: Traced, leaves: Sequence[Any], inputs: Sequence[Any], states: dict[int, State], record: Record
) -> tuple[list[Any], dict[int, State]]:
    """Evaluates a traced function on other arrays of the same shapes.

    Args:
      traced: From `trace`.
      leaves: Array leaves of the parameters.
      inputs: Array leaves of the arguments.
      states: By index of a leaf. Products with the other leaves are not recorded.
      record: Called as `record(product, state)` for each product with a leaf that has a state, while the function runs
        or is traced; returns the new state. Inside a `scan` over layers it is given the state of one layer.

    Returns:
      The outputs, flat, and the new states.
    """
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    capture = Capture(record, [len(leaf.shape) for leaf in leaves], dict(states))
    arguments: list[Pair] = [(leaf, rules.whole(i, leaf.shape)) for i, leaf in enumerate(leaves)]
    outputs = capture.walk(jaxpr, constants, [*arguments, *((x, None) for x in inputs)])
    return [array for array, _ in outputs], capture.states


def visit(capture: Capture, eqn: JaxprEqn, *operands: Pair) -> list[Pair]:
    """Evaluates an equation, and follows the leaves through it by the rules of `roles`."""
    arrays, values = [array for array, _ in operands], [value for _, value in operands]
    name = eqn.primitive.name
    if not any(values):
        constant: Value = {} if all(value == {} for value in values) else None
        return [(array, constant) for array in bind(eqn, *arrays)]
    if name in _CONTROL:
        return _CONTROL[name](capture, eqn, *operands)
    if (called := callee(eqn)) is not None:
        return capture.walk(*called, operands)
    outputs = bind(eqn, *arrays)
    capture.found.arrays = arrays
    moved = rules.visit(capture.found, eqn, *values)
    if name in CONTRACTIONS:
        _record(capture, eqn, operands, outputs[0])
    return list(zip(outputs, moved, strict=True))


def _record(capture: Capture, eqn: JaxprEqn, operands: Sequence[Pair], result: Any) -> None:
    arrays = [array for array, _ in operands]
    for side, (_, value) in enumerate(operands[:2]):
        for leaf, part in (value or {}).items():
            if leaf in capture.states:
                product = Product(leaf, capture.ranks[leaf], eqn, side, part, arrays, result)
                capture.states[leaf] = capture.record(product, capture.states[leaf])


def _scan(capture: Capture, eqn: JaxprEqn, *operands: Pair) -> list[Pair]:
    """The state of a stacked leaf is scanned over, as the leaf is; that of a leaf that every step uses is carried."""
    body = jaxpr_and_constants(eqn.params["jaxpr"])
    arrays, values = [array for array, _ in operands], [value for _, value in operands]
    constants, first, scanned = scan_operands(eqn, arrays)
    shared = capture.states_of(values)
    along = _layers(eqn, values, shared)
    layers = {leaf: jax.tree.map(lambda x, a=a: jnp.moveaxis(x, a, 0), shared.pop(leaf)) for leaf, a in along.items()}

    def step(state: Any, slices: Any) -> Any:
        (carry, shared), (number, xs, layer) = state, slices
        inside = rules.scanned(capture.found, eqn, values, number)
        inside = [_without_starts(value, along) for value in inside]
        layer = {leaf: jax.tree.map(lambda x, a=a: jnp.expand_dims(x, a), layer[leaf]) for leaf, a in along.items()}
        pairs = list(zip([*constants, *carry, *xs], inside, strict=True))
        outputs, states = capture.inside({**shared, **layer}, *body, pairs)
        results = [array for array, _ in outputs]
        layer = {leaf: jax.tree.map(lambda x, a=a: jnp.squeeze(x, a), states.pop(leaf)) for leaf, a in along.items()}
        return (results[: len(carry)], states), (results[len(carry) :], layer)

    numbers = jnp.arange(eqn.params["length"], dtype=jnp.int32)
    (carry, shared), (stacked, layers) = lax.scan(
        step,
        (list(first), shared),
        (numbers, list(scanned), layers),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    restored = {leaf: jax.tree.map(lambda x, a=a: jnp.moveaxis(x, 0, a), layers[leaf]) for leaf, a in along.items()}
    capture.states |= {**shared, **restored}
    return [(array, None) for array in (*carry, *stacked)]


def _layers(eqn: JaxprEqn, values: Sequence[Value], states: dict[int, State]) -> dict[int, int]:
    """Leaves that a scan takes one position of a whole axis of at each step, and those axes."""
    along: dict[int, int] = {}
    constants, carry, scanned = scan_operands(eqn, values)
    elsewhere = {leaf for value in (*constants, *carry) for leaf in value or ()}
    length = eqn.params["length"]
    for leaf, state in states.items():
        parts = [value[leaf] for value in scanned if value and leaf in value]
        digits = parts[0].axes[0] if len(parts) == 1 and leaf not in elsewhere else ()
        if len(digits) != 1 or digits[0] != Digit(digits[0].axis, length):
            continue
        if digits[0].axis not in parts[0].starts and all(
            array.shape[digits[0].axis] == length for array in jax.tree.leaves(state)
        ):
            along[leaf] = digits[0].axis
    return along


def _without_starts(value: Value, along: dict[int, int]) -> Value:
    """The value for a state that is sliced as the leaf is: the layer of the leaf is the only one of the state."""

    def placed(leaf: int, part: Part) -> Part:
        starts = {axis: start for axis, start in part.starts.items() if axis != along.get(leaf)}
        return dataclasses.replace(part, starts=starts)

    return value and {leaf: placed(leaf, part) for leaf, part in value.items()}


def _while(capture: Capture, eqn: JaxprEqn, *operands: Pair) -> list[Pair]:
    """The states are carried."""
    test_constants, body_constants, first = while_operands(eqn, operands)
    test, body = jaxpr_and_constants(eqn.params["cond_jaxpr"]), jaxpr_and_constants(eqn.params["body_jaxpr"])

    def unfinished(state: Any) -> Any:
        pairs: list[Pair] = [(array, None) for array in (*(array for array, _ in test_constants), *state[0])]
        return capture.inside({}, *test, pairs)[0][0][0]

    def step(state: Any) -> Any:
        outputs, states = capture.inside(state[1], *body, [*body_constants, *((array, None) for array in state[0])])
        return [array for array, _ in outputs], states

    start = [array for array, _ in first], capture.states_of([value for _, value in body_constants])
    carry, states = lax.while_loop(unfinished, step, start)
    capture.states |= states
    return [(array, None) for array in carry]


def _cond(capture: Capture, eqn: JaxprEqn, index: Pair, *operands: Pair) -> list[Pair]:
    """Only the branch taken counts."""
    arrays, values = [array for array, _ in operands], [value for _, value in operands]

    def branch(jaxpr: Any) -> Callable[..., Any]:
        def run(states: dict[int, State], arrays: Sequence[Any]) -> Any:
            outputs, states = capture.inside(
                states, *jaxpr_and_constants(jaxpr), list(zip(arrays, values, strict=True))
            )
            return [array for array, _ in outputs], states

        return run

    branches = [branch(jaxpr) for jaxpr in eqn.params["branches"]]
    outputs, states = lax.switch(index[0], branches, capture.states_of(values), arrays)
    capture.states |= states
    return list(zip(outputs, rules.RULES["cond"](capture.found, eqn, index[1], *values), strict=True))


_CONTROL: dict[str, Callable[..., list[Pair]]] = {"scan": _scan, "while": _while, "cond": _cond}
