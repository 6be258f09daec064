"""Which positions of which axes live and die together: one rule per primitive.

The rules of contractions and of arithmetic are here, those that move axes in `regroup`, those that
index them in `indexing`, those that hold jaxprs in `control`. A primitive without a rule freezes what it touches and is
reported by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.contractions import contraction, dot, grouping
from jaxprune._jaxpr.coupling import collectives, control, indexing, integers, regroup
from jaxprune._jaxpr.coupling.forest import NoRule
from jaxprune._jaxpr.coupling.values import Labeling, Leaf, Pending, Term, Value, labelled
from jaxprune._jaxpr.primitives import ELEMENTWISE, ONE_TO_ONE, ZERO_PRESERVING
from jaxprune._jaxpr.walker import shape_of

# A stacked leaf may reach its scan through these and still keep other units in each layer.
_KEEPS_LAYERS = ONE_TO_ONE | {"scan", "transpose", "jit", "closed_call", "remat2"}
_FOLD: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
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
    for operand in operands:
        if operand.leaf is not None:
            if name not in control.RULES:
                labeling.used.setdefault(operand.leaf.index)
            if labeling.scan == 0 and name not in _KEEPS_LAYERS:
                labeling.escaped += operand.axes
    outputs = RULES.get(name, unknown)(labeling, eqn, *operands)
    known = [operand.known for operand in operands if operand.known is not None]
    if len(known) == len(operands) and (result := integers.evaluate(eqn, known)) is not None:
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
    if name == "optimization_barrier":
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
    const = _fold(name, operands)
    zero = tuple(_holds_zero(labeling, name, eqn, operands, axis) for axis in range(rank))
    leaf = operands[0].leaf if name in ONE_TO_ONE else None
    summed = ranked[0].summed if len(operands) == 1 and name in ONE_TO_ONE else ()
    return [Value(tuple(axes), zero, const, leaf, summed) for _ in eqn.outvars]


def _fold(name: str, operands: Sequence[Value]) -> float | None:
    known = [operand.const for operand in operands]
    if name in _FOLD and all(c is not None for c in known):
        return _FOLD[name](*known)
    return None


def _holds_zero(labeling: Labeling, name: str, eqn: JaxprEqn, operands: Sequence[Value], axis: int) -> bool:
    width = shape_of(eqn.outvars[0])[axis]
    holds = [o.const == 0 or (len(o.axes) > axis and len(o.axes[axis]) == width and o.zero[axis]) for o in operands]
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
        return all(holds[1:])
    if name == "integer_pow":
        return holds[0] and eqn.params["y"] > 0
    return False


def contract(labeling: Labeling, eqn: JaxprEqn, left: Value, right: Value, *groups: Value) -> list[Value]:
    """`dot_general` and `ragged_dot_general`: joins what is summed over and what is batched, keeps groups."""
    axes_of = dot(eqn)
    reason = f"'{eqn.primitive.name}' divides it into groups"
    divided = [*(left.axes[a] for a in axes_of.ragged), *(right.axes[a] for a in axes_of.grouped)]
    for labels in (*divided, *(labels for group in groups for labels in group.axes)):
        labeling.forest.freeze(labels, reason)
    for a, b in zip(*axes_of.summed, strict=True):
        labeling.forest.union(left.axes[a], right.axes[b])
        _must_be_zero(labeling, eqn, left.axes[a], left.zero[a] or right.zero[b])
    for a, b in zip(*axes_of.batched, strict=True):
        labeling.forest.union(left.axes[a], right.axes[b])
    axes = [left.axes[a] for a in axes_of.batched[0]]
    zero = [left.zero[a] or right.zero[b] for a, b in zip(*axes_of.batched, strict=True)]
    for number, side in enumerate((left, right)):
        free = axes_of.free(number, len(side.axes))
        axes += [side.axes[a] for a in free]
        zero += [side.zero[a] for a in free]
    if len(axes) < len(shape_of(eqn.outvars[0])):
        # Where the groups divide what is summed over, there is one result for each.
        axes, zero = [labeling.forest.frozen(shape_of(eqn.outvars[0])[0], reason), *axes], [False, *zero]
    _note_contraction(labeling, eqn, (left, right))
    return [labelled(axes, zero)]


def _note_contraction(labeling: Labeling, eqn: JaxprEqn, operands: tuple[Value, Value]) -> None:
    summed, product = contraction(eqn)
    for side, axes in enumerate(summed):
        leaf = operands[side].leaf
        if leaf is not None:
            labeling.contracted |= {(leaf.index, leaf.axes[a]) for a in axes if leaf.axes[a] >= 0}
    leaves = [operand.leaf.index for operand in operands if operand.leaf is not None]
    axes = tuple(operands[side].axes[axis] for side, axis in product.axes)
    labeling.terms.append(Term(labeling.times * product.times, axes, leaves[-1] if leaves else None))


def _must_be_zero(labeling: Labeling, eqn: JaxprEqn, labels: np.ndarray, zero: bool) -> None:
    if not zero and labeling.exact:
        labeling.forest.freeze(
            labels,
            f"'{eqn.primitive.name}' at {labeling.source(eqn)} sums values that are not 0 where they are removed",
        )


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
    exact = image.zero[channel] or kernel.zero[consumed]
    kind = grouping(eqn)
    if kind == "plain":
        forest.union(channels, kernel.axes[consumed])
        _must_be_zero(labeling, eqn, channels, exact)
    elif kind == "depthwise":
        forest.union(np.repeat(channels, len(outputs) // groups), outputs)
        forest.freeze(kernel.axes[consumed], "a depthwise convolution has one input per output")
    else:
        _must_be_zero(labeling, eqn, channels, exact)
        # As if both sides were reshaped to (group, offset), with the groups in common.
        common, source = forest.fresh(groups), labeling.source(eqn)
        labeling.pending.append(Pending(eqn.primitive.name, source, (channels,), (common, kernel.axes[consumed])))
        labeling.pending.append(
            Pending(eqn.primitive.name, source, (outputs,), (common, forest.fresh(len(outputs) // groups)))
        )
    axes: list[Any] = [None] * len(image.axes)
    zero = [False] * len(image.axes)
    out_batch, out_channel, *out_spatial = numbers.out_spec
    axes[out_batch], zero[out_batch] = image.axes[batch], image.zero[batch]
    axes[out_channel] = outputs
    zero[out_channel] = kernel.zero[produced] or (kind == "depthwise" and image.zero[channel])
    for axis in out_spatial:
        axes[axis] = forest.frozen(shape_of(eqn.outvars[0])[axis], "a convolution slides along it")
    _note_contraction(labeling, eqn, (image, kernel))
    return [labelled(axes, zero)]


def total(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """`reduce_sum`: exact where what is removed holds 0."""
    axes = eqn.params["axes"]
    for axis in axes:
        _must_be_zero(labeling, eqn, operand.axes[axis], operand.zero[axis])
    left = [a for a in range(len(operand.axes)) if a not in axes]
    out = labelled([operand.axes[a] for a in left], [operand.zero[a] for a in left])
    return [out.replace(summed=tuple(operand.axes[a] for a in axes))]


def extreme(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Reductions other than a sum, whose result a removed 0 could change: the reduced axes are kept whole."""
    axes = eqn.params["axes" if "axes" in eqn.params else "dimensions"]
    for operand in operands:
        for axis in axes:
            labeling.forest.freeze(operand.axes[axis], f"'{eqn.primitive.name}' reduces it")
    left = [a for a in range(len(operands[0].axes)) if a not in axes]
    out = labelled([operands[0].axes[a] for a in left], [operands[0].zero[a] for a in left])
    return [out for _ in eqn.outvars]


def collective(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """`psum` and the like; under `vmap` with a name they reduce axes of the operand."""
    axes = tuple(axis for axis in eqn.params["axes"] if isinstance(axis, int))
    if not axes:
        return collectives.same(labeling, eqn, operand)
    return (total if eqn.primitive.name == "psum" else extreme)(labeling, eqn, operand)


def ordered(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Cumulative sums, sorts and transforms: order along an axis matters, so it stays; the others pass."""
    name = eqn.primitive.name
    if name == "fft":
        rank = len(operands[0].axes)
        along = tuple(range(rank - len(eqn.params["fft_lengths"]), rank))
    elif name == "top_k":
        along = (eqn.params.get("axis", len(operands[0].axes) - 1),)
    else:
        along = (eqn.params["axis"] if "axis" in eqn.params else eqn.params["dimension"],)
    for operand in operands:
        for axis in along:
            labeling.forest.freeze(operand.axes[axis], f"'{name}' needs all of it")
        for axis in set(range(len(operand.axes))) - set(along):
            labeling.forest.union(operands[0].axes[axis], operand.axes[axis])
    outputs: list[Value] = []
    for out in eqn.outvars:
        axes = [
            labeling.forest.frozen(n, f"'{name}' makes it") if a in along else operands[0].axes[a]
            for a, n in enumerate(shape_of(out))
        ]
        outputs.append(labelled(axes, [a not in along and z for a, z in enumerate(operands[0].zero)]))
    return outputs


def generated(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Values that depend on no parameter (`iota`, `random_bits`): made whole, then taken at the kept positions."""
    for operand in operands:
        for axis in operand.axes:
            labeling.forest.freeze(axis, f"'{eqn.primitive.name}' reads it")
    return [labeling.fresh(shape_of(out)) for out in eqn.outvars]


def pool(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Sliding windows: axes with a window of one pass."""
    window, shape = eqn.params["window_dimensions"], shape_of(eqn.outvars[0])
    operands = tuple(operand for operand in operands if operand.axes)
    axes: list[Any] = []
    for axis, width in enumerate(shape):
        passes = window[axis] == 1 and all(len(operand.axes[axis]) == width for operand in operands)
        for operand in operands:
            if passes:
                labeling.forest.union(operands[0].axes[axis], operand.axes[axis])
            else:
                labeling.forest.freeze(operand.axes[axis], "a window slides along it")
        axes.append(operands[0].axes[axis] if passes else labeling.forest.frozen(width, "a window slides along it"))
    return [labelled(axes, operands[0].zero)]


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **regroup.RULES,
    **indexing.RULES,
    **collectives.RULES,
    **dict.fromkeys(("psum", "pmax", "pmin"), collective),
    **control.RULES,
    **dict.fromkeys(("dot_general", "ragged_dot_general"), contract),
    "conv_general_dilated": convolve,
    "reduce_sum": total,
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"), extreme),
    **dict.fromkeys(("argmax", "argmin", "reduce"), extreme),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k", "fft"), ordered),
    **dict.fromkeys(
        ("iota", "random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in"), generated
    ),
    **dict.fromkeys(
        ("random_split", "rng_bit_generator", "rng_uniform", "random_clone", "empty", "create_token", "axis_index"),
        generated,
    ),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), pool),
    **dict.fromkeys(("select_and_scatter_add", "select_and_gather_add"), pool),
}


def leaf_value(labeling: Labeling, index: int, labels: Sequence[np.ndarray]) -> Value:
    """The value of a parameter leaf: masked, it holds 0 wherever it is pruned."""
    rank = len(labels)
    return Value(tuple(labels), (True,) * rank, leaf=Leaf(index, tuple(range(rank))))
