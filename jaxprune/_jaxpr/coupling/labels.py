"""Which positions of which axes live and die together: one rule per primitive.

The rules of contractions and of arithmetic are here, those that move axes in `regroup`, those that index them in
`indexing`, those that need axes as a whole in `ordering`, those that hold jaxprs in `control`. A primitive without a
rule freezes what it touches and is reported by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.contractions import contraction, dot, grouping
from jaxprune._jaxpr.coupling import collectives, control, indexing, integers, ordering, regroup
from jaxprune._jaxpr.coupling.forest import NoRule
from jaxprune._jaxpr.coupling.values import Holds, Labeling, Leaf, Pending, Term, Value, computed, labelled
from jaxprune._jaxpr.primitives import ELEMENTWISE, GENERATED, ONE_TO_ONE, PLAIN_CALLS, UNCHANGED, ZERO_PRESERVING
from jaxprune._jaxpr.walker import dtype_of, shape_of

# A stacked leaf may reach its scan through these and still keep other units in each layer.
_KEEPS_LAYERS = ONE_TO_ONE.union(PLAIN_CALLS, ("scan", "transpose", "remat2"))
# Their own equations are labelled one by one, so they may have symbolic sizes.
_HOLD_JAXPRS = {*control.RULES, "shard_map"}
_FOLD: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "max": max,
    "min": min,
    "convert_element_type": float,
    "copy": float,
    "stop_gradient": float,
    "div": lambda a, b: a / b if b else float("nan"),
}


def visit(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> Sequence[Value]:
    """Applies the rule of an equation, and notes which leaves it reads."""
    name = eqn.primitive.name
    labeling.forest.equations = (eqn, *labeling.enclosing)
    for operand in operands:
        if operand.leaf is not None:
            if name not in control.RULES:
                labeling.used.setdefault(operand.leaf.index)
            if labeling.scan == 0 and name not in _KEEPS_LAYERS:
                labeling.escaped += operand.axes
    view = eqn if name in _HOLD_JAXPRS else labeling.sizes.view(eqn)
    outputs = RULES.get(name, unknown)(labeling, view, *operands)
    if labeling.scan:
        labeling.inside |= {id(labels): labels for output in outputs for labels in output.axes if any(labels.strides)}
    known = [operand.known for operand in operands if operand.known is not None]
    if view is eqn and len(known) == len(operands) and (result := integers.evaluate(eqn, known)) is not None:
        return [outputs[0].replace(known=result)]
    return outputs


def unknown(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Freezes every axis that a primitive without a rule touches."""
    reason = NoRule(eqn.primitive.name)
    for operand in operands:
        for axis in operand.axes:
            labeling.forest.freeze(axis, reason)
    shapes = [shape_of(out) for out in eqn.outvars]
    return [labelled([labeling.forest.frozen(n, reason) for n in shape]) for shape in shapes]


def elementwise(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Joins the operands axis by axis, but for scalars and axes of one that are stretched."""
    name = eqn.primitive.name
    if name in UNCHANGED:
        return list(operands)
    shape = shape_of(eqn.outvars[0])
    rank = len(shape)
    ranked = [operand for operand in operands if len(operand.axes) == rank]
    if not ranked:
        return unknown(labeling, eqn, *operands)
    axes = []
    for axis, width in enumerate(shape):
        full = [operand.axes[axis] for operand in ranked if len(operand.axes[axis]) == width]
        for other in full[1:]:
            labeling.forest.union(full[0], other)
        for operand in ranked:
            if len(operand.axes[axis]) != width:
                labeling.forest.freeze(operand.axes[axis], "an axis of one is stretched")
        axes.append(full[0])
    _note_division(labeling, name, eqn, operands)
    const = _fold(name, operands)
    holds = tuple(
        Holds.ZERO if _holds_zero(name, eqn, operands, axis) else computed(ranked, axis, shape[axis])
        for axis in range(rank)
    )
    leaf = operands[0].leaf if name in ONE_TO_ONE else None
    same = ranked[0] if len(operands) == 1 and name in ONE_TO_ONE else labelled(())
    if name == "eq" and not labeling.exact:
        _join_positions(labeling, operands)
    return [Value(tuple(axes), holds, const, leaf, same.summed, same.positions) for _ in eqn.outvars]


def _join_positions(labeling: Labeling, operands: Sequence[Value]) -> None:
    """The axis that a one-hot vector has is the one that its number was chosen from: both lose the same positions."""
    chosen, counted = (operand.positions for operand in operands)
    if chosen is not None and counted is not None and len(chosen) == len(counted):
        labeling.forest.union(chosen, counted)


def _fold(name: str, operands: Sequence[Value]) -> float | None:
    known = [operand.const for operand in operands]
    if name == "select_n" and known[0] is not None:
        return known[1 + int(known[0])]
    if name in _FOLD and all(c is not None for c in known):
        return _FOLD[name](*known)
    return None


def _holds_zero(name: str, eqn: JaxprEqn, operands: Sequence[Value], axis: int) -> bool:
    width = shape_of(eqn.outvars[0])[axis]
    holds = [
        o.const == 0 or (len(o.axes) > axis and len(o.axes[axis]) == width and o.holds[axis] is Holds.ZERO)
        for o in operands
    ]
    if name in ZERO_PRESERVING:
        return holds[0]
    if name in ("mul", "and"):
        return any(holds)
    if name in ("div", "rem"):
        return holds[0]
    if name in ("add", "sub", "add_any", "or", "xor", "complex"):
        return all(holds)
    if name in ("max", "min"):
        sign = 1 if name == "min" else -1
        return all(h or (o.const is not None and sign * o.const >= 0) for h, o in zip(holds, operands, strict=True))
    if name == "clamp":
        low, high = operands[0].const, operands[2].const
        return holds[1] and low is not None and high is not None and low <= 0 <= high
    if name == "select_n":
        chosen = operands[0].const  # as in a variance, which is NaN if the sample is too small
        return all(holds[1:]) if chosen is None else holds[1 + int(chosen)]
    if name == "integer_pow":
        return holds[0] and eqn.params["y"] > 0
    return False


def _note_division(labeling: Labeling, name: str, eqn: JaxprEqn, operands: Sequence[Value]) -> None:
    """Notes the axes along which a divisor is 0 where they are removed, which makes the masked model NaN."""
    exponent = operands[1].const if name == "pow" else eqn.params["y"] if name == "integer_pow" else None
    if name in ("div", "rem") and jnp.issubdtype(dtype_of(eqn.outvars[0]), jnp.inexact):
        divisor = operands[1]
    elif name == "rsqrt" or (exponent is not None and exponent < 0):
        divisor = operands[0]
    else:
        return
    for axis_labels, held in zip(divisor.axes, divisor.holds, strict=True):
        if held is Holds.ZERO and not labeling.forest.all_frozen(axis_labels):
            labeling.divisions.append((axis_labels, f"'{name}' at {labeling.source(eqn)}"))


def contract(labeling: Labeling, eqn: JaxprEqn, left: Value, right: Value, *groups: Value) -> list[Value]:
    """`dot_general` and `ragged_dot_general`: joins what is summed over and what is batched, keeps groups."""
    axes_of = dot(eqn)
    reason = f"'{eqn.primitive.name}' divides it into groups"
    divided = [*(left.axes[a] for a in axes_of.ragged), *(right.axes[a] for a in axes_of.grouped)]
    for labels in (*divided, *(labels for group in groups for labels in group.axes)):
        labeling.forest.freeze(labels, reason)
    for a, b in zip(*axes_of.summed, strict=True):
        labeling.forest.union(left.axes[a], right.axes[b])
        held = _multiplied(left.holds[a], right.holds[b])
        labeling.require(eqn, left.axes[a], held if eqn.primitive.name == "dot_general" else _if_zero(held))
    for a, b in zip(*axes_of.batched, strict=True):
        labeling.forest.union(left.axes[a], right.axes[b])
    axes = [left.axes[a] for a in axes_of.batched[0]]
    holds = [_multiplied(left.holds[a], right.holds[b]) for a, b in zip(*axes_of.batched, strict=True)]
    for number, side in enumerate((left, right)):
        free = axes_of.free(number, len(side.axes))
        axes += [side.axes[a] for a in free]
        holds += [side.holds[a] for a in free]
    if len(axes) < len(shape_of(eqn.outvars[0])):
        # Where the groups divide what is summed over, there is one result for each.
        along = labeling.forest.frozen(shape_of(eqn.outvars[0])[0], reason)
        axes, holds = [along, *axes], [Holds.UNKNOWN, *holds]
    _note_contraction(labeling, eqn, (left, right))
    followed = _of_product if eqn.primitive.name == "dot_general" else _if_zero
    return [labelled(axes, [followed(held) for held in holds])]


def _if_zero(holds: Holds) -> Holds:
    """0, or what is not followed: of a primitive without a rule for what removed positions hold."""
    return holds if holds is Holds.ZERO else Holds.UNKNOWN


def _multiplied(left: Holds, right: Holds) -> Holds:
    return Holds.ZERO if Holds.ZERO in (left, right) else max(left, right)


def _of_product(holds: Holds) -> Holds:
    """What differs at each removed position is not carried through a product, which would be one of full size."""
    return Holds.UNKNOWN if holds is Holds.VARIED else holds


def _note_contraction(labeling: Labeling, eqn: JaxprEqn, operands: tuple[Value, Value]) -> None:
    summed, product = contraction(eqn)
    for side, axes in enumerate(summed):
        leaf = operands[side].leaf
        if leaf is not None:
            labeling.contracted |= {(leaf.index, leaf.axes[a]) for a in axes if leaf.axes[a] >= 0}
    leaves = [operand.leaf.index for operand in operands if operand.leaf is not None]
    axes = tuple(operands[side].axes[axis] for side, axis in product.axes)
    labeling.terms.append(Term(labeling.times * product.times, axes, leaves[-1] if leaves else None))


def convolve(labeling: Labeling, eqn: JaxprEqn, image: Value, kernel: Value) -> list[Value]:
    """`conv_general_dilated`: plain, grouped (the same offset in every group, or whole groups) and depthwise."""
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return unknown(labeling, eqn, image, kernel)
    forest, (batch, channel, *spatial) = labeling.forest, numbers.lhs_spec
    produced, consumed, *taps = numbers.rhs_spec
    for axis in spatial:
        forest.freeze(image.axes[axis], "a convolution slides along it")
    for axis in taps:
        forest.freeze(kernel.axes[axis], "taps of a convolution")
    channels, outputs = image.axes[channel], kernel.axes[produced]
    exact = Holds.ZERO if Holds.ZERO in (image.holds[channel], kernel.holds[consumed]) else Holds.UNKNOWN
    kind = grouping(eqn)
    if kind == "plain":
        forest.union(channels, kernel.axes[consumed])
        labeling.require(eqn, channels, exact)
    elif kind == "depthwise":
        forest.union(np.repeat(channels, len(outputs) // groups), outputs)
        forest.freeze(kernel.axes[consumed], "a depthwise convolution has one input per output")
    else:
        labeling.require(eqn, channels, exact)
        # As if both sides were reshaped to (group, offset), with the groups in common.
        common = forest.fresh(groups)
        labeling.pending.append(Pending(forest.equations, (channels,), (common, kernel.axes[consumed])))
        labeling.pending.append(Pending(forest.equations, (outputs,), (common, forest.fresh(len(outputs) // groups))))
    axes: list[Any] = [None] * len(image.axes)
    holds = [Holds.UNKNOWN] * len(image.axes)
    out_batch, out_channel, *out_spatial = numbers.out_spec
    axes[out_batch] = image.axes[batch]
    axes[out_channel] = outputs
    if image.holds[batch] is Holds.ZERO:
        holds[out_batch] = Holds.ZERO
    if kernel.holds[produced] is Holds.ZERO or (kind == "depthwise" and image.holds[channel] is Holds.ZERO):
        holds[out_channel] = Holds.ZERO
    for axis in out_spatial:
        axes[axis] = forest.frozen(shape_of(eqn.outvars[0])[axis], "a convolution slides along it")
    _note_contraction(labeling, eqn, (image, kernel))
    return [labelled(axes, holds)]


def total(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """`reduce_sum`: takes in what is removed."""
    (out,) = reduction(labeling, eqn, operand)
    return [out.replace(summed=tuple(operand.axes[a] for a in eqn.params["axes"]))]


def reduction(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Reductions take in what is removed; the other axes pass."""
    axes = eqn.params["axes" if "axes" in eqn.params else "dimensions"]
    operands = operands[: len(eqn.outvars)]  # `reduce` has the values that it starts from behind them
    for operand in operands:
        for axis in axes:
            labeling.forest.union(operands[0].axes[axis], operand.axes[axis])
            labeling.require(eqn, operand.axes[axis], operand.holds[axis])
    left = [a for a in range(len(operands[0].axes)) if a not in axes]
    for operand in operands[1:]:
        for axis in left:
            labeling.forest.union(operands[0].axes[axis], operand.axes[axis])
    holds = [computed(operands, a, len(operands[0].axes[a])) for a in left]
    if eqn.primitive.name != "reduce":
        holds = [operands[0].holds[a] for a in left]
    out = labelled([operands[0].axes[a] for a in left], holds)
    if eqn.primitive.name in ("argmax", "argmin"):
        out = out.replace(positions=operands[0].axes[axes[0]])
    return [out for _ in eqn.outvars]


def collective(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """`psum` and the like; under `vmap` with a name they reduce axes of the operand."""
    axes = tuple(axis for axis in eqn.params["axes"] if isinstance(axis, int))
    if not axes:
        return collectives.same(labeling, eqn, operand)
    is_sum = eqn.primitive.name == "psum"
    for axis in axes:
        if labeling.exact and not (is_sum and operand.holds[axis] is Holds.ZERO):
            labeling.forest.freeze(operand.axes[axis], f"'{eqn.primitive.name}' reduces it")
    (found,) = (total if is_sum else reduction)(labeling, eqn, operand)
    return [found.replace(holds=tuple(map(_if_zero, found.holds)))]


def generated(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Values that depend on no parameter (`iota`, `random_bits`): made whole, then taken at the kept positions."""
    for operand in operands:
        for axis in operand.axes:
            labeling.forest.freeze(axis, f"'{eqn.primitive.name}' reads it")
    made = [labeling.fresh(shape_of(out), Holds.VARIED) for out in eqn.outvars]
    if eqn.primitive.name != "iota":
        return made
    along = eqn.params["dimension"]
    holds = tuple(Holds.VARIED if axis == along else Holds.EQUAL for axis in range(len(made[0].axes)))
    return [made[0].replace(holds=holds, positions=made[0].axes[along])]


def watched(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """`jax.debug.print` and the like: they see the smaller arrays."""
    del operands
    return [labeling.fresh(shape_of(out)) for out in eqn.outvars]


def size(labeling: Labeling, eqn: JaxprEqn) -> list[Value]:
    """`dim_as_value`: a symbolic size as a number, by which means divide."""
    del labeling
    return [labelled(()).replace(const=float(eqn.params["dim"]))]


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **regroup.RULES,
    **indexing.RULES,
    **collectives.RULES,
    **dict.fromkeys(("psum", "pmax", "pmin"), collective),
    **control.RULES,
    **ordering.RULES,
    **dict.fromkeys(("dot_general", "ragged_dot_general"), contract),
    "conv_general_dilated": convolve,
    "dim_as_value": size,
    "reduce_sum": total,
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"), reduction),
    **dict.fromkeys(("argmax", "argmin", "reduce"), reduction),
    **dict.fromkeys(GENERATED, generated),
    **dict.fromkeys("debug_callback debug_print check inspect_sharding dce_sink after_all".split(), watched),
}


def leaf_value(labeling: Labeling, index: int, labels: Sequence[np.ndarray]) -> Value:
    """The value of a parameter leaf: masked, it holds 0 wherever it is pruned."""
    rank = len(labels)
    return Value(tuple(labels), (Holds.ZERO,) * rank, leaf=Leaf(index, tuple(range(rank))))
