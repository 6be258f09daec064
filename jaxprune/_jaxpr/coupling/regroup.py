"""Label rules of primitives that move, split, merge or cut axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.coupling.forest import Forest, Labels
from jaxprune._jaxpr.coupling.values import Evidence, Holds, Labeling, Leaf, Pending, Value, labelled
from jaxprune._jaxpr.primitives import factors
from jaxprune._jaxpr.walker import shape_of


def broadcast(labeling: Labeling, eqn: JaxprEqn, operand: Value, *_: Value) -> list[Value]:
    """`broadcast_in_dim`: new and stretched axes are free."""
    shape = shape_of(eqn.outvars[0])
    axes = [labeling.forest.fresh(width) for width in shape]
    holds = [_made(operand)] * len(shape)
    leaf_axes = [-1] * len(shape)
    for axis, out in enumerate(eqn.params["broadcast_dimensions"]):
        if len(operand.axes[axis]) == shape[out]:
            axes[out] = operand.axes[axis]
            holds[out] = Holds.ZERO if operand.const == 0 else operand.holds[axis]
            leaf_axes[out] = operand.leaf.axes[axis] if operand.leaf else -1
        else:
            labeling.forest.freeze(operand.axes[axis], "an axis of one is stretched")
    leaf = operand.leaf and Leaf(operand.leaf.index, tuple(leaf_axes))
    return [Value(tuple(axes), tuple(holds), operand.const, leaf, operand.summed, operand.positions)]


def _made(operand: Value) -> Holds:
    """What is held along a new axis."""
    return Holds.ZERO if operand.const == 0 else Holds.EQUAL


def transpose(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """Permutes the axes."""
    order = eqn.params["permutation"]
    leaf = operand.leaf and Leaf(operand.leaf.index, tuple(operand.leaf.axes[a] for a in order))
    return [
        labelled([operand.axes[a] for a in order], [operand.holds[a] for a in order]).replace(
            leaf=leaf, positions=operand.positions
        )
    ]


def squeeze(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """Drops axes of one, whose only position must therefore stay."""
    gone = eqn.params["dimensions"]
    for axis in gone:
        labeling.forest.freeze(operand.axes[axis], "an axis of one is dropped")
    left = [a for a in range(len(operand.axes)) if a not in gone]
    leaf = operand.leaf and Leaf(operand.leaf.index, tuple(operand.leaf.axes[a] for a in left))
    out = labelled([operand.axes[a] for a in left], [operand.holds[a] for a in left])
    return [out.replace(leaf=leaf, summed=operand.summed, const=operand.const, positions=operand.positions)]


def reshape(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """Aligns factors of equal product; where one axis becomes two, decides later which of them it is."""
    forest, before, after = labeling.forest, shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    axes: list[Any] = [None] * len(after)
    holds = [Holds.UNKNOWN] * len(after)
    leaf_axes = [-1] * len(after)
    plain = operand.leaf is not None
    if 0 in before:
        return [labeling.fresh(after)]
    for left, right in factors(before, after):
        inputs = [operand.axes[a] for a in left]
        _keep_made_axes(labeling, eqn, operand, left)
        if not right:
            forest.freeze(inputs[0], "an axis of one is dropped")
        elif not left:
            axes[right[0]], holds[right[0]] = forest.fresh(1), _made(operand)
        elif len(left) == len(right) == 1:
            axes[right[0]], holds[right[0]] = inputs[0], operand.holds[left[0]]
            leaf_axes[right[0]] = operand.leaf.axes[left[0]] if operand.leaf else -1
        else:
            plain = False
            held = Holds.ZERO if operand.const == 0 else _merged(labeling, operand, left)
            outputs = _regrouped(labeling, eqn, inputs, [after[a] for a in right])
            for axis, labels in zip(right, outputs, strict=True):
                axes[axis], holds[axis] = labels, held
    leaf = Leaf(operand.leaf.index, tuple(leaf_axes)) if plain and operand.leaf else None
    return [Value(tuple(axes), tuple(holds), operand.const, leaf, operand.summed, operand.positions)]


def _merged(labeling: Labeling, operand: Value, axes: Sequence[int]) -> Holds:
    """What is held where a position of any of several axes is removed, once they are one."""
    held = [operand.holds[a] for a in axes if not labeling.forest.all_frozen(operand.axes[a])]
    most = max(held, default=Holds.ZERO)
    # One head that is removed may still hold something else at each of its positions.
    return Holds.VARIED if most is Holds.EQUAL and len(axes) > 1 else most


def _keep_made_axes(labeling: Labeling, eqn: JaxprEqn, operand: Value, merged: Sequence[int]) -> None:
    """Keeps axes that the program makes whole where they merge with one that holds 0 where it is removed.

    The merged axis then holds 0 too: the two halves of rotated pairs, stacked and merged, are summed over later.
    """
    forest = labeling.forest
    is_zero = [held is Holds.ZERO for held in operand.holds]
    if labeling.exact and any(is_zero[a] and not forest.all_frozen(operand.axes[a]) for a in merged):
        for axis in merged:
            if not is_zero[axis] and not _may_hold_parameters(labeling, operand.axes[axis]):
                forest.freeze(operand.axes[axis], f"'{eqn.primitive.name}' merges it with an axis of a parameter")


def _may_hold_parameters(labeling: Labeling, labels: Labels) -> bool:
    """Whether some positions are tied to a parameter's, or to an axis of which this is yet to be decided."""
    forest, roots = labeling.forest, labeling.forest.find(labels)
    return bool(forest.tags(labels).any()) or any(
        np.isin(forest.find(axis), roots).any() for p in labeling.pending for axis in (*p.inputs, *p.outputs)
    )


def _regrouped(labeling: Labeling, eqn: JaxprEqn, inputs: list[Labels], widths: list[int]) -> list[Labels]:
    forest = labeling.forest
    free = [i for i, labels in enumerate(inputs) if not forest.all_frozen(labels)]
    if not free:
        return [forest.frozen(n, forest.why(int(inputs[0][0]))) for n in widths]
    if len(free) == 1 and len(widths) == 1:
        return [_spread(inputs, free[0])]
    outputs = [forest.fresh(n) for n in widths]
    labeling.pending.append(Pending(forest.equations, tuple(inputs), tuple(outputs)))
    return outputs


def _spread(side: Sequence[Labels], chosen: int) -> Labels:
    """Labels of one axis at every position of the product of all axes."""
    shape = [1] * len(side)
    shape[chosen] = len(side[chosen])
    return np.broadcast_to(side[chosen].reshape(shape), [len(labels) for labels in side]).reshape(-1)


def decide_pending(labeling: Labeling) -> None:
    """Decides all pending regroupings: those with one answer before those that need a choice, each in program order."""
    outer = labeling.forest.equations
    grounds: tuple[Evidence | None, ...] = (None, "labels", "operand", "result")
    waiting, place = labeling.pending, 0
    while place < len(grounds):
        rest = [p for p in waiting if not _decided(labeling, p, grounds[place])]
        # What was decided may leave only one answer to others.
        place = 0 if len(rest) < len(waiting) else place + 1
        waiting = rest
    labeling.pending, labeling.forest.equations = waiting, outer


def _decided(labeling: Labeling, pending: Pending, evidence: Evidence | None) -> bool:
    forest = labeling.forest
    forest.equations = pending.equations
    sides = (pending.inputs, pending.outputs)
    free = [[i for i, labels in enumerate(side) if not forest.all_frozen(labels)] for side in sides]
    if not free[0] or not free[1]:
        for side, others in zip(sides, reversed(sides), strict=True):
            why = next((forest.why(int(labels[0])) for labels in others if forest.all_frozen(labels)), "")
            for labels in side:
                forest.freeze(labels, why)
        return True
    if len(free[0]) == len(free[1]) == 1:
        _join(forest, pending, free[0][0], free[1][0])
        return True
    if evidence is None:
        return False
    chosen = labeling.choose(labeling, pending, free[0], free[1], evidence)
    if chosen is None:
        return False
    _join(forest, pending, *chosen)
    return True


def _join(forest: Forest, pending: Pending, left: int, right: int) -> None:
    forest.union(_spread(pending.inputs, left), _spread(pending.outputs, right))
    for side, chosen in ((pending.inputs, left), (pending.outputs, right)):
        for index, labels in enumerate(side):
            if index != chosen:
                forest.freeze(labels, f"'{pending.primitive}' keeps it whole beside the axis that is pruned")


def concatenate(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Lays label arrays one after the other."""
    along = eqn.params["dimension"]
    axes = list(operands[0].axes)
    for axis in range(len(axes)):
        if axis == along:
            axes[axis] = np.concatenate([o.axes[axis] for o in operands])
        else:
            for other in operands[1:]:
                labeling.forest.union(axes[axis], other.axes[axis])
    holds = [max(_held(labeling, o, axis) for o in operands) for axis in range(len(axes))]
    free = [o for o in operands if not labeling.forest.all_frozen(o.axes[along])]
    if holds[along] is Holds.EQUAL and len(free) > 1:
        holds[along] = Holds.VARIED
    return [labelled(axes, holds)]


def _held(labeling: Labeling, operand: Value, axis: int) -> Holds:
    if operand.const == 0 or labeling.forest.all_frozen(operand.axes[axis]):
        return Holds.ZERO
    return operand.holds[axis]


def cut(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """`slice`: cuts the label arrays likewise."""
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(start)
    axes = [labels[a:b:s] for labels, a, b, s in zip(operand.axes, start, limit, strides, strict=True)]
    return [labelled(axes, operand.holds).replace(const=operand.const, positions=operand.positions)]


def split(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """Cuts one axis into parts."""
    along, sizes = eqn.params["axis"], eqn.params["sizes"]
    parts = np.split(operand.axes[along], np.cumsum(sizes)[:-1])
    before, after = operand.axes[:along], operand.axes[along + 1 :]
    return [labelled((*before, part, *after), operand.holds) for part in parts]


def tile(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """Repeats the label arrays."""
    del labeling
    axes = [x if n == 1 else np.tile(x, n) for x, n in zip(operand.axes, eqn.params["reps"], strict=True)]
    return [labelled(axes, operand.holds).replace(const=operand.const)]


def pad(labeling: Labeling, eqn: JaxprEqn, operand: Value, fill: Value) -> list[Value]:
    """Padded positions are free."""
    axes, holds = [], []
    # Where a position is removed, the padding along the other axes holds what it is filled with.
    least = Holds.ZERO if fill.const == 0 else Holds.EQUAL
    for labels, held, config in zip(operand.axes, operand.holds, eqn.params["padding_config"], strict=True):
        low, high, inner = map(int, config)
        if (low, high, inner) == (0, 0, 0):
            axes.append(labels)
            holds.append(max(held, least))
        elif inner == 0 and low >= 0 and high >= 0 and not labeling.forest.all_frozen(labels):
            fresh = labeling.forest.fresh(low + high)
            axes.append(np.concatenate([fresh[:low], labels, fresh[low:]]))
            holds.append(Holds.ZERO if held is least is Holds.ZERO else max(held, Holds.VARIED))
        else:
            labeling.forest.freeze(labels, "'pad' cuts it or spaces it out")
            width = max(0, low + high + len(labels) + inner * max(0, len(labels) - 1))
            why = labeling.forest.why(int(labels[0])) if len(labels) else "'pad' makes it"
            axes.append(labeling.forest.frozen(width, why))
            holds.append(Holds.UNKNOWN)
    return [labelled(axes, holds)]


def reverse(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """`rev`: reverses the label arrays."""
    turned = eqn.params["dimensions"]
    axes = tuple(labels[::-1] if axis in turned else labels for axis, labels in enumerate(operand.axes))
    return [operand.replace(axes=axes, leaf=None, known=None)]


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    "broadcast_in_dim": broadcast,
    "transpose": transpose,
    "squeeze": squeeze,
    "reshape": reshape,
    "concatenate": concatenate,
    "slice": cut,
    "split": split,
    "pad": pad,
    "tile": tile,
    "rev": reverse,
}
