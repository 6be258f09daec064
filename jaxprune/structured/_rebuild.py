"""Traces a function at full size, checks a plan against it, and evaluates it small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune._arrays import tree
from jaxprune._jaxpr.coupling.choice import by_removal
from jaxprune._jaxpr.coupling.forest import Forest
from jaxprune._jaxpr.coupling.label_pass import Axes, propagate
from jaxprune._jaxpr.coupling.values import Labeling
from jaxprune._jaxpr.shrinking.evaluation import Evaluation, kept_of
from jaxprune._jaxpr.shrinking.removed import ENDS, PARTS
from jaxprune._jaxpr.shrinking.rules import NESTED, RULES
from jaxprune._jaxpr.tracing import Traced, inputs_of, trace
from jaxprune._jaxpr.walker import jaxpr_and_constants
from jaxprune.structured._plan import Plan

_KEPT = 1


def evaluate(fun: Callable[..., Any], plan: Plan, params: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Computes `fun(params, *args, **kwargs)` with small parameters.

    Raises:
      ValueError: The parameters do not have the plan's small shapes, or the plan does not fit the function.
    """
    full = tree.map_with_path(lambda path, leaf: _full(plan, path, leaf), params)
    traced = trace(fun, full, *args, kwargs=kwargs, symbolic=True)
    removed: list[np.ndarray] = [np.array([False]), np.array([False])]
    tags: dict[bytes, int] = {}
    given_tags: dict[int, Axes] = {}

    def label_leaf(forest: Forest, index: int) -> Axes:
        leaf = plan.leaves[traced.paths[index]]
        labels = [_tagged(forest, n, leaf.keep.get(axis), removed, tags) for axis, n in enumerate(leaf.shape)]
        given_tags[index] = [forest.tag[axis_labels] for axis_labels in labels]
        return labels

    exact = plan.semantics == "masked"
    labeling, leaf_labels = propagate(traced, label_leaf, by_removal(_KEPT), exact=exact, keep=True)
    _check(traced, labeling, leaf_labels, given_tags, plan)
    assert labeling.frame is not None
    evaluation = Evaluation(labeling, removed, RULES, NESTED, PARTS, ENDS, labeling.frame, small=not exact)
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    leaves = [leaf for leaf in jax.tree.leaves(params) if tree.is_array(leaf)]
    outputs = evaluation.run(jaxpr, constants, [*leaves, *inputs_of(args, kwargs)])
    return jax.tree.unflatten(traced.structure, map(kept_of, outputs))


def _full(plan: Plan, path: str, leaf: Any) -> Any:
    if not tree.is_array(leaf):
        return leaf
    if path not in plan.leaves:
        raise ValueError(f"The plan does not have '{path}'. Give the parameters that `shrink` returned.")
    if tuple(leaf.shape) != plan.leaves[path].small:
        raise ValueError(
            f"'{path}' has shape {tuple(leaf.shape)}; by the plan it is {plan.leaves[path].small}. "
            "Give the parameters that `shrink` returned, or `plan.take(params)`."
        )
    return jax.ShapeDtypeStruct(plan.leaves[path].shape, leaf.dtype)


def _tagged(
    forest: Forest, width: int, keep: np.ndarray | None, removed: list[np.ndarray], tags: dict[bytes, int]
) -> np.ndarray:
    """Labels of an axis, tagged by the layers in which each position is removed."""
    labels = forest.fresh(width, tag=_KEPT)
    if keep is None:
        return labels
    gone = np.ones((width, len(keep) if keep.ndim == 2 else 1), bool)
    for layer, kept in enumerate(np.atleast_2d(keep)):
        gone[kept, layer] = False
    for position, vector in enumerate(gone):
        if not vector.any():
            continue
        distinct = np.array([True]) if vector.all() else vector
        key = distinct.tobytes()
        if key not in tags:
            tags[key] = len(removed)
            removed.append(distinct)
        forest.tag[labels[position]] = tags[key]
    return labels


def _check(
    traced: Traced, labeling: Labeling, leaf_labels: Sequence[Axes], given_tags: Mapping[int, Axes], plan: Plan
) -> None:
    """Refuses a plan that removes what must stay, or cuts through what belongs together."""
    forest = labeling.forest
    for index, axes in enumerate(leaf_labels):
        for axis, keep in plan.leaves[traced.paths[index]].keep.items():
            stays = [np.isin(np.arange(len(axes[axis])), kept) for kept in np.atleast_2d(keep)]
            bad = np.flatnonzero(~np.all(stays, axis=0) & forest.is_frozen(axes[axis]))
            if len(bad):
                raise ValueError(
                    f"The plan removes index {bad[0]} of axis {axis} of '{traced.paths[index]}', which must stay: "
                    f"{forest.why(int(axes[axis][bad[0]]))}. Make the plan from a coupling of the same function."
                )
    for index, axes in enumerate(leaf_labels):
        for axis, labels in enumerate(axes):
            bad = np.flatnonzero(given_tags[index][axis] != forest.tags(labels))
            if len(bad):
                first = f"index {bad[0]} of axis {axis} of '{traced.paths[index]}'"
                second = _place(traced, leaf_labels, given_tags, forest, int(labels[bad[0]]))
                fix = "Make the plan with `shrink` from a coupling of the same function"
                if labeling.sizes.any:
                    fix += ", or give arguments whose sizes are numbers: with symbolic ones it indexes other axes"
                raise ValueError(f"The plan does not treat {first} and {second} alike, which the function ties. {fix}.")


def _place(
    traced: Traced, leaf_labels: Sequence[Axes], given_tags: Mapping[int, Axes], forest: Forest, label: int
) -> str:
    """A position that is tied to a label and was given the tag that their set now has."""
    root = forest.find(np.array([label], np.int32))
    for index, axes in enumerate(leaf_labels):
        for axis, labels in enumerate(axes):
            found = np.flatnonzero((forest.find(labels) == root) & (given_tags[index][axis] == forest.tag[root]))
            if len(found):
                return f"index {found[0]} of axis {axis} of '{traced.paths[index]}'"
    return "an activation"
