"""What each axis of a parameter is where the parameter is multiplied: an input, an output, or a stack of kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.contractions import contraction, dot
from jaxprune._jaxpr.primitives import (
    CONTRACTIONS,
    ELEMENTWISE,
    UNCHANGED,
    VARYING,
    callee,
    scan_operands,
    while_operands,
)
from jaxprune._jaxpr.roles import moves
from jaxprune._jaxpr.roles.parts import (
    LOOKED_UP,
    STRETCHED,
    Axes,
    Digit,
    LookUp,
    Part,
    axes_of,
    united,
)
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import jaxpr_and_constants, shape_of, walk

Value: TypeAlias = dict[int, Part] | None
"""The leaves that a value is made of, by index, empty for a constant; `None` if it depends on the inputs."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One product with a leaf; each of its axes is in one of the three.

    Attributes:
      inputs: Summed over, in the order of the leaf; the taps of a convolution before its channels.
      outputs: Those that the result has.
      stacked: One product for each position: layers of a scan, experts, the batch of a product.
      groups: Into how many groups a convolution divides the outputs, each with inputs of its own.
    """

    inputs: Axes
    outputs: Axes
    stacked: Axes
    groups: int = 1


@dataclasses.dataclass
class Uses:
    """Products with each leaf so far, and what else happens to it, in words.

    Attributes:
      products: Leaf index -> its products.
      otherwise: Leaf index -> the first reason why it is not followed further.
      arrays: The operands of the equation at hand, where it is evaluated.
    """

    products: dict[int, list[Use]] = dataclasses.field(default_factory=dict)
    otherwise: dict[int, str] = dataclasses.field(default_factory=dict)
    arrays: Sequence[Any] | None = None

    def end(self, reason: str, *values: Value) -> None:
        """Notes that some leaves are not followed further, and why."""
        for value in values:
            for index in value or ():
                self.otherwise.setdefault(index, reason)


def uses(traced: Traced) -> Uses:
    """Follows every leaf of a traced function to its products."""
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    leaves = [whole(i, shape_of(variable)) for i, variable in enumerate(jaxpr.invars[: len(traced.leaves)])]
    found = Uses()
    inputs: list[Value] = [None] * (len(jaxpr.invars) - len(leaves))
    found.end("the function returns it", *_walk(found, jaxpr, constants, [*leaves, *inputs]))
    return found


def settled(found: Uses, index: int, rank: int) -> Use | str:
    """The use in which all products with a leaf agree, or why there is none, in words."""
    products = found.products.get(index)
    if not products:
        return found.otherwise.get(index, "nothing uses it")
    first = products[0]
    for other in products[1:]:
        if _unordered(other) != _unordered(first):
            return f"it is summed over axes {first.inputs} in one place and {other.inputs} in another"
    every = sorted(first.inputs + first.outputs + first.stacked)
    if every != list(range(rank)):
        return f"its products see axes {every}: parts of one are summed over and put out, or one is summed before"
    return first if first.inputs else "no product sums over it"


def _unordered(use: Use) -> tuple[frozenset[int], ...]:
    return frozenset(use.inputs), frozenset(use.outputs), frozenset(use.stacked)


def whole(index: int, shape: Sequence[int]) -> Value:
    """A leaf as it is given."""
    return {index: Part(tuple((Digit(axis, size),) for axis, size in enumerate(shape)))}


def _walk(found: Uses, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    return walk(jaxpr, arguments, visit, found, literal=lambda _: {}, constants=[{} for _ in constants])


def visit(found: Uses, eqn: JaxprEqn, *operands: Value) -> Sequence[Value]:
    """Follows the leaves through an equation."""
    return RULES.get(eqn.primitive.name, _other)(found, eqn, *operands)


def _other(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Calls are looked into; leaves are not followed through any other primitive."""
    if (called := callee(eqn)) is not None:
        return _walk(found, *called, operands)
    found.end(f"'{eqn.primitive.name}' takes it", *operands)
    constant = all(operand == {} for operand in operands)
    return [{} if constant else None for _ in eqn.outvars]


def _in_place(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """The axes stay. Leaves that meet an activation are not followed further."""
    if any(operand is None for operand in operands):
        found.end(f"'{eqn.primitive.name}' takes it", *operands)
        return [None] * len(eqn.outvars)
    rank = len(shape_of(eqn.outvars[0]))
    return [_united(operands, rank)] * len(eqn.outvars)


def _elementwise(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Axes of one are repeated to the length of the others."""
    if eqn.primitive.name in UNCHANGED:
        return list(operands)
    shapes, after = map(shape_of, eqn.invars), shape_of(eqn.outvars[0])
    repeated = [
        _each(operand, lambda part, before=before: moves.stretched(part, before, after))
        for operand, before in zip(operands, shapes, strict=True)
    ]
    return _in_place(found, eqn, *repeated)


def _united(values: Sequence[Value], rank: int) -> Value:
    """A value made of the leaves of several, each with all the axes that it has in any."""
    parts: dict[int, Part] = {}
    for value in values:
        for index, part in (value or {}).items():
            ranked = part if part.axes else part.with_axes(((),) * rank)  # a scalar has no axes of its own
            parts[index] = united(parts[index], ranked) if index in parts else ranked
    return parts


def _concatenated(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    axis, total, before = eqn.params["dimension"], shape_of(eqn.outvars[0])[eqn.params["dimension"]], 0
    joined: list[Value] = []
    for operand, variable in zip(operands, eqn.invars, strict=True):
        size = shape_of(variable)[axis]
        after = total - before - size
        joined.append(_each(operand, lambda p, n=size, b=before, a=after: p.joined(axis, n, b, a) if a or b else p))
        before += size
    return _in_place(found, eqn, *joined)


def _padded(found: Uses, eqn: JaxprEqn, operand: Value, fill: Value) -> list[Value]:
    def padded(part: Part) -> Part:
        for axis, config in enumerate(eqn.params["padding_config"]):
            low, high, inner = map(int, config)
            if (low, high, inner) != (0, 0, 0):
                size = shape_of(eqn.invars[0])[axis]
                part = part.joined(axis, size, low, high) if inner == 0 else part.without_place("'pad' spaces it out")
        return part

    return _in_place(found, eqn, _each(operand, padded), fill)


def _each(value: Value, move: Callable[[Part], Part | None]) -> Value:
    """The value with each of its leaves moved, less those of which nothing is left."""
    moved = {index: move(part) for index, part in (value or {}).items()}
    return None if value is None else {index: part for index, part in moved.items() if part is not None}


def _moved(move: Callable[[JaxprEqn, Part], Part | None]) -> Callable[..., Sequence[Value]]:
    """A rule that moves the axes of each leaf in the first operand; the other operands are indices."""

    def rule(found: Uses, eqn: JaxprEqn, operand: Value, *others: Value) -> list[Value]:
        found.end(f"'{eqn.primitive.name}' takes it", *others)
        return [_each(operand, lambda part: move(eqn, part))] * len(eqn.outvars)

    return rule


def _dynamically_sliced(found: Uses, eqn: JaxprEqn, operand: Value, *where: Value) -> list[Value]:
    found.end("it says where 'dynamic_slice' reads", *where)
    if operand is None:
        return [None]
    axes = [a for a, n in enumerate(shape_of(eqn.invars[0])) if n != eqn.params["slice_sizes"][a]]
    starts = found.arrays[1:] if found.arrays else (_UNKNOWN_START,) * len(eqn.invars)
    cuts = [(axis, starts[axis], eqn.params["slice_sizes"][axis], 1) for axis in axes]
    return [_each(operand, lambda part: moves.cut(part, cuts))]


_UNKNOWN_START = np.int32(0)  # only an evaluation knows the number


def _split(found: Uses, eqn: JaxprEqn, operand: Value) -> list[Value]:
    if operand is None:
        return [None] * len(eqn.outvars)
    axis, start = eqn.params["axis"], 0
    outputs: list[Value] = []
    for size in map(int, eqn.params["sizes"]):
        outputs.append(_each(operand, lambda part, a=start, n=size: part.sliced(axis, a, n)))
        start += size
    return outputs


def _gather(found: Uses, eqn: JaxprEqn, operand: Value, index: Value) -> list[Value]:
    """One position of some axes, as in `stack[i]`; or a table that is looked up."""
    numbers = eqn.params["dimension_numbers"]
    found.end("it says where 'gather' reads", index)
    before, sizes = shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
    one = [
        int(a)
        for a in numbers.start_index_map
        if sizes[a] == 1 and (before[a] > 1 or a in numbers.collapsed_slice_dims)
    ]
    whole = all(size == width for a, (size, width) in enumerate(zip(sizes, before, strict=True)) if a not in one)
    many = len(shape_of(eqn.invars[1])) > 1
    known = operand and whole and not numbers.operand_batching_dims
    if not known or (many and not all(_holds_kernels(part, one) for part in (operand or {}).values())):
        found.end("it is looked up by index", operand)
        return [None]
    if many:
        return [_each(operand, lambda part: _looked_up(found, eqn, part, one[0]))]
    gone = [a for a in one if a in numbers.collapsed_slice_dims]
    starts = found.arrays[1] if found.arrays else (_UNKNOWN_START,) * len(numbers.start_index_map)
    cuts = [(axis, starts[place], 1, 1) for place, axis in enumerate(numbers.start_index_map) if axis in one]
    return [_each(operand, lambda part: moves.dropped(moves.cut(part, cuts), gone))]


def _holds_kernels(part: Part, indexed: Sequence[int]) -> bool:
    """Whether the one axis that is indexed stacks kernels; a table of rows is an input of what follows."""
    if len(indexed) != 1 or part.looked_up is not None or sum(bool(digits) for digits in part.axes) < 3:
        return False
    digits = part.axes[indexed[0]]
    return len(digits) == 1 and digits[0].axis >= 0 and digits[0].alone


def _looked_up(found: Uses, eqn: JaxprEqn, part: Part, indexed: int) -> Part:
    """A kernel of a stack for each of a list of positions."""
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.outvars[0])
    (digit,) = part.axes[indexed]
    axes: list[tuple[Digit, ...]] = [()] * len(shape)
    windows = [a for a in range(len(part.axes)) if a not in numbers.collapsed_slice_dims]
    for out, axis in zip(numbers.offset_dims, windows, strict=True):
        axes[out] = part.axes[axis] if axis != indexed else ()
    stride = 1
    for out in reversed([a for a in range(len(shape)) if a not in numbers.offset_dims]):
        axes[out] = (Digit(LOOKED_UP, shape[out], stride),)
        stride *= shape[out]
    starts = {axis: start for axis, start in part.starts.items() if axis != digit.axis}
    indices = found.arrays[1] if found.arrays else None
    place = list(numbers.start_index_map).index(indexed)
    look_up = LookUp(digit.axis, part.starts.get(digit.axis, 0), digit.stride, indices, place)
    return dataclasses.replace(part.with_axes(axes, [digit]), starts=starts, looked_up=look_up)


def _contract(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """A product: notes the roles of both sides. The result is an activation, or a constant."""
    summed, _ = contraction(eqn)
    for side, operand in enumerate(operands):
        if eqn.primitive.name == "ragged_dot_general" and not (side == 1 and dot(eqn).grouped):
            found.end(f"'{eqn.primitive.name}' divides it into groups", operand)
            continue
        inputs, stacked = summed[side], ()
        if eqn.primitive.name != "conv_general_dilated":
            stacked = (*dot(eqn).batched[side], *(dot(eqn).grouped if side else ()))
        elif side == 1:
            inputs = (*eqn.params["dimension_numbers"].rhs_spec[2:], *inputs)
        for index, part in (operand or {}).items():
            if part.unplaced == STRETCHED:
                found.end(STRETCHED, {index: part})
                continue
            outputs = [a for a in range(len(part.axes)) if a not in (*inputs, *stacked)]
            over = axes_of(digit for i in inputs for digit in part.axes[i])
            found.products.setdefault(index, []).append(
                Use(
                    # A product may list its axes in any order, so they come in the leaf's, as neighbours in memory.
                    tuple(sorted(over)) if eqn.primitive.name == "dot_general" else over,
                    tuple(sorted(axes_of(digit for i in outputs for digit in part.axes[i]))),
                    tuple(sorted({*part.stacked, *axes_of(digit for i in stacked for digit in part.axes[i])})),
                    eqn.params.get("feature_group_count", 1),
                )
            )
    return [{} if all(operand == {} for operand in operands) else None]


def _scan(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    outputs = _walk(found, *jaxpr_and_constants(eqn.params["jaxpr"]), scanned(found, eqn, operands))
    found.end("a 'scan' puts it out", *outputs)
    return [None] * len(eqn.outvars)


def scanned(found: Uses, eqn: JaxprEqn, operands: Sequence[Value], step: Any = _UNKNOWN_START) -> list[Value]:
    """What the body of a `scan` is given at a step."""
    constants, carry, stacks = scan_operands(eqn, operands)
    found.end("a 'scan' carries it", *carry)
    slices = [_each(value, lambda part: moves.dropped(part.sliced(0, step, 1), [0])) for value in stacks]
    return [*constants, *[None] * len(carry), *slices]


def _while(found: Uses, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    test_constants, body_constants, carry = while_operands(eqn, operands)
    found.end("a 'while' carries it", *carry)
    unknown: list[Value] = [None] * len(carry)
    outputs = _walk(found, *jaxpr_and_constants(eqn.params["body_jaxpr"]), [*body_constants, *unknown])
    found.end("a 'while' carries it", *outputs)
    _walk(found, *jaxpr_and_constants(eqn.params["cond_jaxpr"]), [*test_constants, *unknown])
    return unknown


def _cond(found: Uses, eqn: JaxprEqn, index: Value, *operands: Value) -> list[Value]:
    found.end("it chooses a branch of 'cond'", index)
    branches = [_walk(found, *jaxpr_and_constants(branch), operands) for branch in eqn.params["branches"]]
    outputs: list[Value] = []
    for variable, values in zip(eqn.outvars, zip(*branches, strict=True), strict=True):
        if any(value is None for value in values):
            found.end("a branch of 'cond' puts it out", *values)
            outputs.append(None)
        else:
            outputs.append(_united(values, len(shape_of(variable))))
    return outputs


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys(ELEMENTWISE | VARYING, _elementwise),
    "concatenate": _concatenated,
    "pad": _padded,
    "slice": _moved(moves.sliced),
    "dynamic_slice": _dynamically_sliced,
    "split": _split,
    "rev": _moved(moves.turned),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _moved(moves.reduced)),
    "transpose": _moved(moves.transposed),
    "squeeze": _moved(moves.squeezed),
    "broadcast_in_dim": _moved(moves.broadcast),
    "reshape": _moved(moves.reshaped),
    "gather": _gather,
    **dict.fromkeys(CONTRACTIONS, _contract),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
