"""What each axis of a parameter does where the parameter is multiplied: summed over, put out, or a stack of kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jax.extend.core import JaxprEqn

from jaxprune.jaxpr.contraction import contraction
from jaxprune.jaxpr.labels import ELEMENTWISE
from jaxprune.jaxpr.regroup import factors
from jaxprune.jaxpr.trace import Traced
from jaxprune.jaxpr.walker import held, opened, scan_counts, shape_of, walk

Axes: TypeAlias = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """A leaf inside a value.

    Attributes:
      axes: The leaf's axes behind each axis of the value: several where a reshape has merged them.
      stacked: The leaf's axes of which the value holds one position.
    """

    axes: tuple[Axes, ...]
    stacked: Axes = ()

    def but(self, axes: Sequence[Axes], stacked: Axes = ()) -> Part:
        """The same leaf with its axes elsewhere; `stacked` are added."""
        return Part(tuple(axes), self.stacked + stacked)


Value: TypeAlias = dict[int, Part] | None
"""The leaves that a value is made of, by index: none for a constant; or `None` if it depends on the inputs."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One product with a leaf; each of its axes is in one of the three.

    Attributes:
      inputs: Summed over, the taps of a convolution before its channels.
      outputs: What comes out.
      stacked: One product for each position: layers of a scan, experts, the batch of a product.
    """

    inputs: Axes
    outputs: Axes
    stacked: Axes


@dataclasses.dataclass
class Uses:
    """Products with each leaf so far, and what else happens to it, in words.

    Attributes:
      products: Leaf index -> its products.
      otherwise: Leaf index -> the first thing that ends its trail.
    """

    products: dict[int, list[Use]] = dataclasses.field(default_factory=dict)
    otherwise: dict[int, str] = dataclasses.field(default_factory=dict)

    def end(self, reason: str, *values: Value) -> None:
        """Notes that the trail of some leaves ends here."""
        for value in values:
            for index in value or ():
                self.otherwise.setdefault(index, reason)


def uses(traced: Traced) -> Uses:
    """Follows every leaf of a traced function to its products."""
    jaxpr, constants = opened(traced.jaxpr)
    leaves: list[Value] = [
        {i: Part(tuple((a,) for a in range(len(shape_of(variable)))))}
        for i, variable in enumerate(jaxpr.invars[: len(traced.leaves)])
    ]
    found = Uses()
    inputs: list[Value] = [None] * (len(jaxpr.invars) - len(leaves))
    found.end("the function returns it", *_walk(found, jaxpr, constants, [*leaves, *inputs]))
    return found


def _walk(found: Uses, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    return walk(jaxpr, arguments, _rule_of, found, literal=lambda _: {}, constants=[{} for _ in constants])


def _rule_of(eqn: JaxprEqn) -> Callable[..., Sequence[Value]]:
    return RULES.get(eqn.primitive.name, _other)


def _other(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Calls are looked into; any other primitive ends the trail."""
    if any(name in eqn.params for name in ("jaxpr", "call_jaxpr", "fun_jaxpr")):
        jaxpr, constants = opened(held(eqn))
        if len(jaxpr.invars) == len(operands):
            return _walk(found, jaxpr, constants, operands)
    found.end(f"'{eqn.primitive.name}' takes it", *operands)
    constant = all(operand == {} for operand in operands)
    return [{} if constant else None for _ in eqn.outvars]


def _in_place(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Axes keep their places among parameters and constants; an activation takes what it meets."""
    if eqn.primitive.name == "optimization_barrier":
        return list(operands)
    if any(operand is None for operand in operands):
        found.end(f"'{eqn.primitive.name}' takes it", *operands)
        return [None] * len(eqn.outvars)
    rank = len(shape_of(eqn.outvars[0]))
    return [_united(operands, rank)] * len(eqn.outvars)


def _united(values: Sequence[Value], rank: int) -> Value:
    """A value made of the leaves of several, each with all the axes that it has in any."""
    parts: dict[int, Part] = {}
    for value in values:
        for index, part in (value or {}).items():
            nothing = Part(((),) * rank)
            other, axes = parts.get(index, nothing), part.axes or nothing.axes  # a scalar has no axes of its own
            united = tuple(_union(a, b) for a, b in zip(other.axes, axes, strict=True))
            parts[index] = Part(united, _union(other.stacked, part.stacked))
    return parts


def _union(first: Axes, second: Axes) -> Axes:
    return tuple(dict.fromkeys(first + second))


def _moved(move: Callable[[JaxprEqn, Part], Part]) -> Callable[..., Sequence[Value]]:
    """A rule that moves the axes of each leaf in the first operand; the others say only where."""

    def rule(found: Uses, eqn: JaxprEqn, operand: Value, *others: Value) -> list[Value]:
        found.end(f"'{eqn.primitive.name}' takes it", *others)
        moved = None if operand is None else {index: move(eqn, part) for index, part in operand.items()}
        return [moved] * len(eqn.outvars)

    return rule


def _transposed(eqn: JaxprEqn, part: Part) -> Part:
    return part.but([part.axes[a] for a in eqn.params["permutation"]])


def _squeezed(eqn: JaxprEqn, part: Part) -> Part:
    gone = [a % len(part.axes) for a in eqn.params["dimensions"]]
    left = [axes for a, axes in enumerate(part.axes) if a not in gone]
    return part.but(left, tuple(a for g in gone for a in part.axes[g]))


def _broadcast(eqn: JaxprEqn, part: Part) -> Part:
    axes: list[Axes] = [()] * len(shape_of(eqn.outvars[0]))
    for axis, out in enumerate(eqn.params["broadcast_dimensions"]):
        axes[out] = part.axes[axis]
    return part.but(axes)


def _reshaped(eqn: JaxprEqn, part: Part) -> Part:
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if 0 in before:
        return part.but([()] * len(after))
    axes: list[Axes] = [()] * len(after)
    dropped: Axes = ()
    for left, right in factors(before, after):
        merged = tuple(a for axis in left for a in part.axes[axis])
        if not right:
            dropped += merged
        for axis in right:
            # Of an axis of one that a reshape puts beside another, nothing is known to come from the leaf.
            axes[axis] = merged if after[axis] > 1 or math.prod(after[a] for a in right) == 1 else ()
    return part.but(axes, dropped)


def _unmoved(_: JaxprEqn, part: Part) -> Part:
    return part


def _reduced(eqn: JaxprEqn, part: Part) -> Part:
    return part.but([axes for a, axes in enumerate(part.axes) if a not in eqn.params["axes"]])


def _gather(found: Uses, eqn: JaxprEqn, operand: Value, index: Value) -> list[Value]:
    """One position of some axes, as in `stack[i]`; or a table that is looked up."""
    numbers = eqn.params["dimension_numbers"]
    found.end("it says where 'gather' reads", index)
    whole = all(
        size == width or axis in numbers.collapsed_slice_dims
        for axis, (size, width) in enumerate(zip(eqn.params["slice_sizes"], shape_of(eqn.invars[0]), strict=True))
    )
    if operand and whole and len(shape_of(eqn.invars[1])) == 1 and not numbers.operand_batching_dims:
        gone = numbers.collapsed_slice_dims
        return [
            {
                i: part.but(
                    [x for a, x in enumerate(part.axes) if a not in gone], sum((part.axes[a] for a in gone), ())
                )
                for i, part in operand.items()
            }
        ]
    found.end("it is looked up by index", operand)
    return [None]


def _contract(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """A product: notes the roles of both sides; what comes out is no leaf any more."""
    summed, _ = contraction(eqn)
    for side, operand in enumerate(operands):
        inputs, stacked = summed[side], ()
        if eqn.primitive.name == "dot_general":
            stacked = tuple(eqn.params["dimension_numbers"][1][side])
        elif side == 1:
            inputs = (*eqn.params["dimension_numbers"].rhs_spec[2:], *inputs)
        for index, part in (operand or {}).items():
            outputs = [a for a in range(len(part.axes)) if a not in (*inputs, *stacked)]
            found.products.setdefault(index, []).append(
                Use(
                    tuple(dict.fromkeys(a for i in inputs for a in part.axes[i])),
                    tuple(sorted({a for i in outputs for a in part.axes[i]})),
                    tuple(sorted({*part.stacked, *(a for i in stacked for a in part.axes[i])})),
                )
            )
    return [{} if all(operand == {} for operand in operands) else None]


def _scan(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    fixed, carried = scan_counts(eqn.params)
    jaxpr, constants = opened(eqn.params["jaxpr"])
    found.end("a 'scan' carries it", *operands[fixed : fixed + carried])
    slices = [
        None if value is None else {i: part.but(part.axes[1:], part.axes[0]) for i, part in value.items()}
        for value in operands[fixed + carried :]
    ]
    outputs = _walk(found, jaxpr, constants, [*operands[:fixed], *[None] * carried, *slices])
    found.end("a 'scan' puts it out", *outputs)
    return [None] * len(eqn.outvars)


def _while(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    tests, bodies = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = operands[tests + bodies :]
    found.end("a 'while' carries it", *carry)
    nothing: list[Value] = [None] * len(carry)
    found.end(
        "a 'while' carries it", *_walk(found, *opened(eqn.params["body_jaxpr"]), [*operands[tests:][:bodies], *nothing])
    )
    _walk(found, *opened(eqn.params["cond_jaxpr"]), [*operands[:tests], *nothing])
    return nothing


def _cond(found: Uses, eqn: JaxprEqn, index: Value, *operands: Value) -> list[Value]:
    found.end("it chooses a branch of 'cond'", index)
    branches = [_walk(found, *opened(branch), operands) for branch in eqn.params["branches"]]
    outputs: list[Value] = []
    for variable, values in zip(eqn.outvars, zip(*branches, strict=True), strict=True):
        if any(value is None for value in values):
            found.end("a branch of 'cond' puts it out", *values)
            outputs.append(None)
        else:
            outputs.append(_united(values, len(shape_of(variable))))
    return outputs


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys((*ELEMENTWISE, "concatenate", "pad"), _in_place),
    **dict.fromkeys(("slice", "dynamic_slice", "rev", "split"), _moved(_unmoved)),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _moved(_reduced)),
    "transpose": _moved(_transposed),
    "squeeze": _moved(_squeezed),
    "broadcast_in_dim": _moved(_broadcast),
    "reshape": _moved(_reshaped),
    "gather": _gather,
    "dot_general": _contract,
    "conv_general_dilated": _contract,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
