"""What a shrunk model keeps: kept indices per axis of each leaf, applied to any tree that mirrors the parameters."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from jaxprune import _documents
from jaxprune._arrays import host, tree

Kept: TypeAlias = Int[np.ndarray, "..."]
"""Kept indices in increasing order, `(kept,)`, or `(layers, kept)` where each layer of a stack keeps its own."""

_FORMAT = "jaxprune plan"


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """What one leaf keeps.

    Attributes:
      shape: Its full shape.
      keep: Kept indices of each axis that shrinks.
      stack: Axis along which the layers are stacked, if an entry of `keep` has one row per layer.
    """

    shape: tuple[int, ...]
    keep: Mapping[int, Kept] = dataclasses.field(default_factory=dict)
    stack: int | None = None

    @property
    def small(self) -> tuple[int, ...]:
        """The shape that is left."""
        return tuple(self.keep[a].shape[-1] if a in self.keep else n for a, n in enumerate(self.shape))


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that `shrink` needs: for each leaf, by path, which indices of which axes stay.

    Attributes:
      leaves: Every array leaf of the parameters, pruned or not.
      semantics: "masked" (equal to the masked model) or "small" (means over a pruned axis divide by its small width).

    Examples:
      >>> import jax.numpy as jnp, numpy as np
      >>> plan = Plan({"kernel": LeafPlan((2, 3), {1: np.array([0, 2])})})
      >>> print(plan.take({"kernel": jnp.arange(6).reshape(2, 3)})["kernel"])
      [[0 2]
       [3 5]]
      >>> print(plan.put(plan.take({"kernel": jnp.arange(6).reshape(2, 3)}), -1)["kernel"])
      [[ 0 -1  2]
       [ 3 -1  5]]
    """

    leaves: Mapping[str, LeafPlan]
    semantics: Literal["masked", "small"] = "masked"

    def __post_init__(self) -> None:
        for path, leaf in self.leaves.items():
            _validate(path, leaf)

    def take(self, values: PyTree[Any]) -> PyTree[Any]:
        """The kept part of the parameters, or of anything that mirrors them.

        Gradients, running statistics and optimizer states are matched leaf by leaf: the end of a leaf's path names the
        parameter, and its shape must be the parameter's. Axes of size one (broadcast masks) stay, and so do leaves that
        mirror no parameter (step counters). A moment factored over one axis keeps the other axes' indices.

        Args:
          values: Any pytree of full-size arrays or `jax.ShapeDtypeStruct`s.

        Returns:
          The same tree with smaller leaves.

        Raises:
          ValueError: A leaf has a parameter's path, but not its shape.
        """
        return tree.map_with_path(self._take_leaf, values)

    def put(self, values: PyTree[Any], fill: float = 0.0) -> PyTree[Any]:
        """Puts small leaves back into full-size ones.

        Args:
          values: What `take` returned, or a tree like it.
          fill: The value of what was removed.

        Returns:
          The same tree with full-size leaves.

        Raises:
          ValueError: A leaf has a parameter's path, but not its small shape.
        """
        return tree.map_with_path(lambda path, leaf: self._put_leaf(path, leaf, fill), values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON."""
        leaves = {
            name: {
                "shape": list(leaf.shape),
                "stack": leaf.stack,
                "keep": {str(axis): kept.tolist() for axis, kept in leaf.keep.items()},
            }
            for name, leaf in self.leaves.items()
        }
        _documents.write(path, _FORMAT, {"semantics": self.semantics, "leaves": leaves})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan that `save` wrote.

        Raises:
          ValueError: The file is not a plan, damaged, or not a valid one; the message names it and what is wrong.
          OSError: It is missing or cannot be read.
        """
        body = _documents.read(path, _FORMAT, "`Plan.save`")
        try:
            leaves = {name: _leaf_plan(entry) for name, entry in body["leaves"].items()}
            if body["semantics"] not in ("masked", "small"):
                raise ValueError(f"""semantics {body["semantics"]!r}, which are neither "masked" nor "small\"""")
            plan = cls(leaves, body["semantics"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            message = f"'{path}' does not hold a plan ({error}). Give a file written by `Plan.save`."
            raise ValueError(message) from error
        if "crc32" in body:  # plans of earlier versions have none
            _documents.check(path, body, "`Plan.save`")
        return plan

    def _match(self, path: str) -> str | None:
        """The parameter that a leaf mirrors: the one whose path, up to its first key, ends the leaf's."""
        if path in self.leaves:
            return path
        parts = path.split("/")
        for start in range(1, len(parts)):
            end = "/".join(parts[start:])
            if end in self.leaves:
                return end
        for start in range(len(parts)):
            end = "/" + "/".join(parts[start:])
            found = [name for name in self.leaves if name.endswith(end) and name.count("/") == end.count("/")]
            if len(found) == 1:
                return found[0]
        return None

    def _plan_of(self, path: str, leaf: Any, *, small: bool) -> LeafPlan | None:
        """The plan of the parameter that a leaf of full or small size mirrors; `None` if there is nothing to change."""
        name = self._match(path)
        if name is None or not tree.is_array(leaf) or not self.leaves[name].keep:
            return None
        plan = self.leaves[name]
        return _reduced(path, leaf.shape, plan, plan.small if small else plan.shape)

    def _take_leaf(self, path: str, leaf: Any) -> Any:
        plan = self._plan_of(path, leaf, small=False)
        if plan is None:
            return leaf
        keep = {axis: kept for axis, kept in plan.keep.items() if leaf.shape[axis] != 1 or plan.shape[axis] == 1}
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape = tuple(keep[a].shape[-1] if a in keep else n for a, n in enumerate(leaf.shape))
            return jax.ShapeDtypeStruct(shape, leaf.dtype)
        array = host.view(leaf)
        for axis, kept in keep.items():
            array = _take(array, kept, axis, plan.stack)
        return host.placed(array, leaf)

    def _put_leaf(self, path: str, leaf: Any, fill: float) -> Any:
        plan = self._plan_of(path, leaf, small=True)
        if plan is None:
            return leaf
        array = jnp.asarray(leaf)
        for axis, kept in plan.keep.items():
            if array.shape[axis] == kept.shape[-1] and (kept.shape[-1] > 1 or plan.small[axis] == 1):
                wide = (*array.shape[:axis], plan.shape[axis], *array.shape[axis + 1 :])
                where = _index(kept, axis, plan.stack, array.shape)
                array = jnp.full(wide, fill, array.dtype).at[where].set(array)
        return array


def _leaf_plan(entry: Any) -> LeafPlan:
    keep = {int(axis): _kept(kept) for axis, kept in entry["keep"].items()}
    if not isinstance(entry["shape"], list) or len(keep) != len(entry["keep"]):
        raise TypeError(f"{entry!r:.100} is not the plan of a leaf")
    stack = entry["stack"]
    shape = tuple(map(_whole, entry["shape"]))
    if min(shape, default=0) < 0:
        raise ValueError(f"{shape} is no shape")
    return LeafPlan(shape, keep, None if stack is None else _whole(stack))


def _kept(values: Any) -> Kept:
    rows = values if isinstance(values, list) and values and isinstance(values[0], list) else [values]
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise TypeError(f"{values!r:.100} are not indices")
    kept = np.array([[_whole(index) for index in row] for row in rows], np.int64)
    return kept if rows is values else kept[0]


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:  # `True` is no number here
        raise TypeError(f"{value!r:.100} is not a size or an index")
    return value


def _validate(path: str, leaf: LeafPlan) -> None:
    if leaf.stack is not None and leaf.stack not in range(len(leaf.shape)):
        raise ValueError(f"The plan for '{path}' stacks layers along axis {leaf.stack}; its shape is {leaf.shape}.")
    for axis, kept in leaf.keep.items():
        if not 0 <= axis < len(leaf.shape):
            raise ValueError(f"The plan for '{path}' names axis {axis}; the leaf has shape {leaf.shape}.")
        layers = 1 if leaf.stack is None else leaf.shape[leaf.stack]
        if kept.ndim == 2 and (leaf.stack is None or kept.shape[0] != layers):
            raise ValueError(
                f"The plan for '{path}' axis {axis} has {kept.shape[0]} rows of indices; its stack has {layers} layers."
            )
        if kept.ndim not in (1, 2) or kept.shape[-1] == 0:
            raise ValueError(f"The plan for '{path}' axis {axis} keeps nothing. Keep at least one index.")
        if kept.min() < 0 or kept.max() >= leaf.shape[axis] or (np.diff(kept, axis=-1) <= 0).any():
            raise ValueError(
                f"The plan for '{path}' axis {axis} needs increasing indices below {leaf.shape[axis]}; "
                f"got {kept.tolist()}."
            )


def _reduced(path: str, shape: tuple[int, ...], plan: LeafPlan, expected: tuple[int, ...]) -> LeafPlan | None:
    """The plan for a leaf of `shape`: that of its parameter, or with one axis less for a factored moment."""
    if len(shape) == len(expected) and all(n in (1, m) for n, m in zip(shape, expected, strict=True)):
        return plan
    if math.prod(shape) <= 1:
        return None
    if len(shape) == len(expected) - 1:
        gone = [a for a in range(len(expected)) if shape == expected[:a] + expected[a + 1 :]]
        kept_alike = len({tuple(map(str, _without(plan, a).keep.items())) for a in gone}) == 1
        if gone and kept_alike:
            return _without(plan, gone[0])
    raise ValueError(
        f"'{path}' has shape {shape}; the plan's parameter of that path has shape {expected}. "
        "Give a tree that mirrors the parameters which the plan was made from."
    )


def _without(plan: LeafPlan, axis: int) -> LeafPlan:
    keep = {a - (a > axis): kept for a, kept in plan.keep.items() if a != axis}
    stack = None if plan.stack is None or plan.stack == axis else plan.stack - (plan.stack > axis)
    return LeafPlan(plan.shape[:axis] + plan.shape[axis + 1 :], keep, stack)


def _take(array: Any, kept: Kept, axis: int, stack: int | None) -> Any:
    if kept.ndim == 1 and isinstance(array, np.ndarray):
        return np.take(array, kept, axis)
    return array[_index(kept, axis, stack, array.shape)]


def _index(kept: Kept, axis: int, stack: int | None, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Indexes one axis, and the stack axis with it where each layer keeps its own."""
    if kept.ndim == 1:
        return (slice(None),) * axis + (kept,)
    index: list[Any] = []
    for a, n in enumerate(shape):
        if a == axis:
            order = kept if stack is not None and stack < axis else kept.T
            around = [1] * len(shape)
            around[axis], around[int(stack or 0)] = kept.shape[-1], kept.shape[0]
            index.append(order.reshape(around))
        else:
            around = [1] * len(shape)
            around[a] = n
            index.append(np.arange(n).reshape(around))
    return tuple(index)
