"""Label rules of primitives that need some axes as a whole: sorts, cumulative sums, windows, factors of matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.coupling.values import Choice, Holds, Labeling, Value, computed, labelled
from jaxprune._jaxpr.primitives import CHOICES, MATRICES, ORDERED, VECTORS, choice_axis
from jaxprune._jaxpr.walker import shape_of


def ordered(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Cumulative sums, sorts and transforms: order along an axis matters, so it stays; the others pass.

    The largest of what is left are those of a smaller model, if it need not equal the masked one.
    """
    name = eqn.primitive.name
    if name == "fft":
        rank = len(operands[0].axes)
        along = tuple(range(rank - len(eqn.params["fft_lengths"]), rank))
    elif name in CHOICES:
        along = (choice_axis(eqn),)
    else:
        along = (eqn.params["axis"] if "axis" in eqn.params else eqn.params["dimension"],)
    for operand in operands:
        for axis in along:
            if name in CHOICES and not labeling.exact:
                labeling.choices.append(Choice(eqn.params["k"], operand.axes[axis], labeling.source(eqn)))
            else:
                labeling.forest.freeze(operand.axes[axis], f"'{name}' needs all of it")
        for axis in set(range(len(operand.axes))) - set(along):
            labeling.forest.union(operands[0].axes[axis], operand.axes[axis])
    outputs: list[Value] = []
    for out, operand in zip(eqn.outvars, (*operands, None), strict=False):  # the places that `top_k` makes have none
        axes = [
            labeling.forest.frozen(n, f"'{name}' makes it") if a in along else operands[0].axes[a]
            for a, n in enumerate(shape_of(out))
        ]
        # A sort of zeros gives zeros; the order of zeros, and the logarithm of a sum of their exponentials, is not 0.
        source = operand if name != "cumlogsumexp" else None
        holds = [
            Holds.ZERO if source is not None and source.holds[a] is Holds.ZERO else computed(operands, a, len(axes[a]))
            for a in range(len(axes))
        ]
        outputs.append(labelled(axes, holds))
    if name in CHOICES:
        outputs[1] = outputs[1].replace(positions=operands[0].axes[along[0]])
    return outputs


def matrices(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Factors and solutions: the axes of matrices stay, those before them pass."""
    name = eqn.primitive.name
    before = max(len(operand.axes) for operand in operands) - (1 if name in VECTORS else 2)
    for operand in operands:
        for mine, theirs in zip(operands[0].axes[:before], operand.axes[:before], strict=True):
            labeling.forest.union(mine, theirs)
        for axis in operand.axes[before:]:
            labeling.forest.freeze(axis, f"'{name}' needs all of it")
    axes = list(operands[0].axes[:before])
    shapes = [shape_of(out)[before:] for out in eqn.outvars]
    return [labelled([*axes, *(labeling.forest.frozen(n, f"'{name}' makes it") for n in shape)]) for shape in shapes]


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
    # The users' own reduction of zeros may be something else.
    zero = [held is Holds.ZERO and eqn.primitive.name != "reduce_window" for held in operands[0].holds]
    holds = [Holds.ZERO if none else computed(operands, a, shape[a]) for a, none in enumerate(zero)]
    return [labelled(axes, holds)]


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys(ORDERED, ordered),
    **dict.fromkeys(MATRICES | VECTORS, matrices),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), pool),
    **dict.fromkeys(("select_and_scatter_add", "select_and_gather_add"), pool),
}
