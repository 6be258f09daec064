"""Multiply-accumulates of every contraction of a jaxpr, and the parameter leaf that each multiplies by."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.contractions import contraction
from jaxprune._jaxpr.primitives import CONTRACTIONS, WITHOUT_PRODUCTS, callee, scan_operands, while_operands
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import jaxpr_and_constants, shape_of, walk

# The result is the same leaf as the operand.
_SAME_LEAF = frozenset(
    "convert_element_type transpose reshape broadcast_in_dim squeeze copy reduce_precision slice dynamic_slice rev "
    "sharding_constraint".split()
)


@dataclasses.dataclass
class Count:
    """Multiply-accumulates so far, by leaf; `None` for products of two activations.

    Attributes:
      by_leaf: Leaf index -> count.
      times: Product of the lengths of the enclosing scans.
      unbounded: Whether a `while` was met, whose body counts once.
      unknown: Primitives that may hold products and are not counted, in the order in which they were met.
    """

    by_leaf: Counter[int | None] = dataclasses.field(default_factory=Counter)
    times: int = 1
    unbounded: bool = False
    unknown: dict[str, None] = dataclasses.field(default_factory=dict)


def count(traced: Traced) -> Count:
    """Counts a traced function; a value is the index of the leaf it is, or `None`."""
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    total = Count()
    leaves = list(range(len(traced.leaves)))
    arguments = [*leaves, *[None] * (len(jaxpr.invars) - len(leaves))]
    _walk(total, jaxpr, constants, arguments)
    return total


def _walk(total: Count, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[int | None]) -> list[int | None]:
    return walk(jaxpr, arguments, _visit, total, literal=lambda _: None, constants=[None] * len(constants))


def _visit(total: Count, eqn: JaxprEqn, *operands: int | None) -> Sequence[int | None]:
    return RULES.get(eqn.primitive.name, _other)(total, eqn, *operands)


def _other(total: Count, eqn: JaxprEqn, *operands: int | None) -> list[int | None]:
    """Calls are looked into; the results of primitives that do more than move a leaf are activations."""
    if eqn.primitive.name in _SAME_LEAF:
        return [operands[0]]
    if (called := callee(eqn)) is not None:
        return _walk(total, *called, operands)
    if eqn.primitive.name not in WITHOUT_PRODUCTS:
        total.unknown[eqn.primitive.name] = None
    return [None] * len(eqn.outvars)


def _contract(total: Count, eqn: JaxprEqn, left: int | None, right: int | None) -> list[None]:
    _, product = contraction(eqn)
    width = math.prod(shape_of(eqn.invars[side])[axis] for side, axis in product.axes)
    total.by_leaf[left if right is None else right] += total.times * product.times * width
    return [None]


def _scan(total: Count, eqn: JaxprEqn, *operands: int | None) -> list[int | None]:
    constants, carry, scanned = scan_operands(eqn, operands)
    outer = total.times
    total.times *= eqn.params["length"]
    _walk(total, *jaxpr_and_constants(eqn.params["jaxpr"]), [*constants, *[None] * len(carry), *scanned])
    total.times = outer
    return [None] * len(eqn.outvars)


def _while(total: Count, eqn: JaxprEqn, *operands: int | None) -> list[int | None]:
    _, constants, carry = while_operands(eqn, operands)
    _walk(total, *jaxpr_and_constants(eqn.params["body_jaxpr"]), [*constants, *[None] * len(carry)])
    total.unbounded = True
    return [None] * len(eqn.outvars)


def _cond(total: Count, eqn: JaxprEqn, _: Any, *operands: int | None) -> list[int | None]:
    """The branch that costs most."""
    branches: list[Count] = []
    for branch in eqn.params["branches"]:
        part = Count(times=total.times)
        _walk(part, *jaxpr_and_constants(branch), operands)
        branches.append(part)
    costliest = max(branches, key=lambda part: sum(part.by_leaf.values()))
    total.by_leaf.update(costliest.by_leaf)
    for part in branches:
        total.unbounded |= part.unbounded
        total.unknown |= part.unknown
    return [None] * len(eqn.outvars)


RULES: dict[str, Callable[..., Sequence[int | None]]] = {
    **dict.fromkeys(CONTRACTIONS, _contract),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
