"""Runs the label pass over a whole traced function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from jaxprune._jaxpr.coupling import labels, regroup
from jaxprune._jaxpr.coupling.forest import Forest
from jaxprune._jaxpr.coupling.values import Choose, Frame, Labeling, Value, labelled
from jaxprune._jaxpr.symbols import stand_ins
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import jaxpr_and_constants, shape_of

Axes: TypeAlias = Sequence[np.ndarray]
"""The labels of each axis of a leaf."""


def propagate(
    traced: Traced,
    label_leaf: Callable[[Forest, int], Axes],
    choose: Choose,
    *,
    exact: bool,
    keep: bool = False,
) -> tuple[Labeling, list[Axes]]:
    """Labels every axis of every value of a traced function.

    Args:
      traced: The function.
      label_leaf: Makes the labels of a parameter leaf, given its index.
      choose: Decides where one axis becomes two; see `Labeling`.
      exact: Freeze what is summed where removed positions may not hold 0.
      keep: Keep the labels of all values, in `frame`.

    Returns:
      The finished pass, and the labels of each leaf.
    """
    forest = Forest()
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    sizes = stand_ins(size for variable in (*jaxpr.constvars, *jaxpr.invars) for size in shape_of(variable))
    labeling = Labeling(forest, labels.visit, choose, sizes, exact, Frame() if keep else None)
    leaf_labels = [label_leaf(forest, i) for i in range(len(traced.leaves))]
    params = [labels.leaf_value(labeling, i, axes) for i, axes in enumerate(leaf_labels)]
    inputs = [
        _input(forest, name, sizes.of(shape_of(variable)))
        for name, variable in zip(traced.inputs, jaxpr.invars[len(params) :], strict=True)
    ]
    outputs = labeling.walk(jaxpr, constants, [*params, *inputs])
    forest.equations = ()
    updated = updated_leaves(traced, stacked=True)
    for position, (name, value) in enumerate(zip(traced.outputs, outputs, strict=True)):
        for axis, axis_labels in enumerate(value.axes):
            ours = leaf_labels[updated[position]] if position in updated else ()
            if position in updated and axis >= (stacked := len(value.axes) - len(ours)):
                forest.union(axis_labels, ours[axis - stacked])
            else:
                forest.freeze(axis_labels, f"axis {axis} of output '{name}'" if name else f"axis {axis} of the output")
        labeling.escaped += value.axes
    passed_on = {i for o, i in updated.items() if jaxpr.outvars[o] is jaxpr.invars[i]}
    _join_unread(traced, labeling, leaf_labels, {*updated.values()} - passed_on)
    regroup.decide_pending(labeling)
    return labeling, leaf_labels


def _input(forest: Forest, name: str, shape: Sequence[int]) -> Value:
    return labelled([forest.frozen(n, f"axis {axis} of argument {name}") for axis, n in enumerate(shape)])


def updated_leaves(traced: Traced, *, stacked: bool = False) -> dict[int, int]:
    """Outputs that are parameter leaves returned with new values (running statistics, gradients), by position.

    Such an output has the shape of the leaf and, below the position in the returned tuple, the leaf's path or its end.

    Args:
      traced: The function.
      stacked: Whether an output may have the new values of every device or sample, along axes before the leaf's.
    """
    shapes = [shape_of(variable) for variable in traced.jaxpr.jaxpr.outvars]
    by_path = {path: i for i, path in enumerate(traced.paths)}
    found: dict[int, int] = {}
    for position, name in enumerate(traced.outputs):
        parts = name.split("/")
        ends = ["/".join(parts[1:]), name] if len(parts) > 1 else []
        for end in ends:
            matches = (
                [by_path[end]]
                if end in by_path
                else [i for path, i in by_path.items() if path.endswith("/" + end) and "/" in end]
            )
            shape = traced.leaves[matches[0]].shape if len(matches) == 1 else None
            if shape is not None and (
                shapes[position] == shape or (stacked and shape and shapes[position][-len(shape) :] == shape)
            ):
                found[position] = matches[0]
                break
    return found


def _join_unread(traced: Traced, labeling: Labeling, leaf_labels: Sequence[Axes], updated: Collection[int]) -> None:
    """Leaves that the program never reads live and die with the leaf of the same shape and most similar path.

    Those that it returns with new values are tied by these; those that it only passes on are not.
    """
    for index in range(len(traced.leaves)):
        if index in labeling.used or index in updated:
            continue
        sibling = _sibling(traced, labeling.used, index)
        for axis, axis_labels in enumerate(leaf_labels[index]):
            if sibling is None:
                labeling.forest.freeze(axis_labels, "the function never reads it")
            else:
                labeling.forest.union(axis_labels, leaf_labels[sibling][axis])


def _sibling(traced: Traced, used: Collection[int], index: int) -> int | None:
    """A leaf of the same name elsewhere (the average of a weight), else one of the same module."""
    parts = traced.paths[index].split("/")
    best, most = None, 0
    for other in used:
        if traced.leaves[other].shape != traced.leaves[index].shape:
            continue
        theirs = traced.paths[other].split("/")
        tail = _shared_length(reversed(parts), reversed(theirs))
        alike = 2 * tail if tail else int(parts[:-1] == theirs[:-1])
        if alike > most:
            best, most = other, alike
    return best


def _shared_length(first: Iterable[str], second: Iterable[str]) -> int:
    """How many items two sequences share before the first difference."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
