"""Multiply-accumulates of every contraction of a jaxpr, and the parameter leaf that each multiplies by."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.contractions import contraction
from jaxprune._jaxpr.coupling import labels
from jaxprune._jaxpr.primitives import (
    CONTRACTIONS,
    FROZEN,
    MAY_MULTIPLY,
    callee,
    inner_jaxpr,
    number_of_devices,
    while_operands,
)
from jaxprune._jaxpr.roles import rules
from jaxprune._jaxpr.roles.parts import Digit, Part
from jaxprune._jaxpr.roles.rules import Value
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import jaxpr_and_constants, shape_of, walk


@dataclasses.dataclass
class Count:
    """Multiply-accumulates so far, by leaf; `None` for products of two activations.

    Attributes:
      by_leaf: Leaf index -> count.
      times: Product of the lengths of the enclosing scans.
      unbounded: Whether a `while` was met, whose body counts once.
      unknown: Primitives that may hold products and are not counted, in the order in which they were met.
      found: What the rules of `roles` note.
    """

    by_leaf: Counter[int | None] = dataclasses.field(default_factory=Counter)
    times: int = 1
    unbounded: bool = False
    unknown: dict[str, None] = dataclasses.field(default_factory=dict)
    found: rules.Uses = dataclasses.field(default_factory=rules.Uses)


def count(traced: Traced) -> Count:
    """Counts a traced function."""
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    total = Count()
    leaves = [rules.whole(i, shape_of(variable)) for i, variable in enumerate(jaxpr.invars[: len(traced.leaves)])]
    _walk(total, jaxpr, constants, [*leaves, *[None] * (len(jaxpr.invars) - len(leaves))])
    return total


def _walk(total: Count, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    return walk(jaxpr, arguments, _visit, total, literal=lambda _: {}, constants=[{} for _ in constants])


def _visit(total: Count, eqn: JaxprEqn, *operands: Value) -> Sequence[Value]:
    """Counts products, and follows the leaves to them by the rules of `roles`."""
    if (rule := RULES.get(eqn.primitive.name)) is not None:
        return rule(total, eqn, *operands)
    if (called := callee(eqn)) is not None:
        return _walk(total, *called, operands)
    name = eqn.primitive.name
    if name in MAY_MULTIPLY or not (name in labels.RULES or name in FROZEN):
        total.unknown[eqn.primitive.name] = None
    return rules.visit(total.found, eqn, *operands)


def _contract(total: Count, eqn: JaxprEqn, *operands: Value) -> Sequence[Value]:
    _, product = contraction(eqn)
    width = math.prod(shape_of(eqn.invars[side])[axis] for side, axis in product.axes)
    made, left = total.times * product.times * width, Fraction(1)
    side = 1 if operands[1] else 0
    shares = _shares(operands[side] or {}, shape_of(eqn.invars[side]))
    for leaf, share in shares.items():
        total.by_leaf[leaf] += math.ceil(made * left) - math.ceil(made * (left - share))
        left -= share
    if not shares:
        total.by_leaf[None] += made
    return rules.visit(total.found, eqn, *operands)


def _shares(value: dict[int, Part], shape: Sequence[int]) -> dict[int, Fraction]:
    """The share of each leaf in the positions of a value: one of several laid side by side has its own only.

    Of leaves at the same positions the one with the most entries counts: a kernel, and not its scale.
    """
    entries = {leaf: math.prod(d.size for digits in part.axes for d in digits) for leaf, part in value.items()}
    shares: dict[int, Fraction] = {}
    left = Fraction(1)
    for leaf in sorted(value, key=lambda leaf: -entries[leaf]):
        beside = [(d[0].size, n) for d, n in zip(value[leaf].axes, shape, strict=True) if d and not d[0].alone]
        covered = Fraction(math.prod(size for size, _ in beside), math.prod(width for _, width in beside))
        if share := min(covered, left):
            shares[leaf] = share
            left -= share
    return {leaf: share / (1 - left) for leaf, share in shares.items()}


def _scan(total: Count, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    outer = total.times
    total.times *= eqn.params["length"]
    _walk(total, *jaxpr_and_constants(eqn.params["jaxpr"]), rules.scanned(total.found, eqn, operands))
    total.times = outer
    return [None] * len(eqn.outvars)


def _shard_map(total: Count, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """All devices together."""
    outer, (jaxpr, constants) = total.times, inner_jaxpr(eqn)
    total.times *= number_of_devices(eqn)
    _walk(total, jaxpr, constants, [_resized(*pair) for pair in zip(operands, jaxpr.invars, strict=True)])
    total.times = outer
    return [None] * len(eqn.outvars)


def _all_gather(total: Count, eqn: JaxprEqn, operand: Value) -> list[Value]:
    del total
    return [_resized(operand, eqn.outvars[0])]


def _resized(value: Value, variable: Any) -> Value:
    """The same leaves in another shape: which part of them a device has makes no difference to the count."""
    axes = [(Digit(0, size),) for size in shape_of(variable)]
    return value and {leaf: part.with_axes(axes) for leaf, part in value.items()}


def _while(total: Count, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    _, constants, carry = while_operands(eqn, operands)
    _walk(total, *jaxpr_and_constants(eqn.params["body_jaxpr"]), [*constants, *[None] * len(carry)])
    total.unbounded = True
    return [None] * len(eqn.outvars)


def _cond(total: Count, eqn: JaxprEqn, _: Any, *operands: Value) -> list[Value]:
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


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys(CONTRACTIONS, _contract),
    "scan": _scan,
    "shard_map": _shard_map,
    "all_gather": _all_gather,
    "while": _while,
    "cond": _cond,
}
