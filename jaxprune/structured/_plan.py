"""What a shrunk model keeps: kept indices per axis of each leaf, applied to any tree that mirrors the parameters."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxprune import _documents
from jaxprune._arrays import tree
from jaxprune._masks import verbs
from jaxprune._masks.frequency import Spectral
from jaxprune._masks.packing import Packed
from jaxprune.structured._factored import Moments, is_factored, least_factored, smaller
from jaxprune.structured._leaf_plan import Kept, LeafPlan, along, index, reduced, taken, validate, without
from jaxprune.structured._sizes import Sizes

_FORMAT = "jaxprune plan"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that `shrink` needs: for each leaf, by path, which indices of which axes stay.

    Attributes:
      leaves: Every array leaf of the parameters, pruned or not.
      semantics: "masked" (equal to the masked model) or "small" (means over a pruned axis divide by its small width).
      units: By the name of each group of the coupling, how many units there are and how many stay, for `sizes`.

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
    units: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, leaf in self.leaves.items():
            validate(path, leaf)
        for name, (full, small) in self.units.items():
            if not 1 <= small <= full:
                raise ValueError(f"The plan keeps {small} of the {full} units of '{name}'. Keep at least one.")

    def sizes(self) -> Sizes:
        """The sizes that are left, by name: what to write into the configuration of a smaller model.

        Examples:
          >>> plan = Plan({"kernel": LeafPlan((2, 3), {1: np.array([0, 2])})})
          >>> print(plan.sizes())
          leaf    full  small
          kernel   2×3    2×2
        """
        return Sizes(self.units, {path: (leaf.shape, leaf.small) for path, leaf in self.leaves.items()})

    def take(self, values: PyTree[Any]) -> PyTree[Any]:
        """The kept part of the parameters, or of anything that mirrors them.

        Gradients, running statistics and optimizer states are matched leaf by leaf: the end of a leaf's path names the
        parameter, and its shape must be the parameter's. Axes of size one (broadcast masks) stay, and so do leaves that
        mirror no parameter (step counters). Packed masks, moments by axis (SM3) or factored (Adafactor), and the vector
        of all parameters that `optax.flatten` makes are taken too.

        Args:
          values: Any pytree of full-size arrays or `jax.ShapeDtypeStruct`s.

        Returns:
          The same tree with smaller leaves.

        Raises:
          ValueError: A leaf has a parameter's path, but not its shape, or holds it in other coordinates (L-BFGS,
            GaLore, a mask over frequencies); the message names the path.
        """

        def change(path: str, node: Any) -> Any:
            return self._take_factored(path, node) if is_factored(node) else self._take_leaf(path, node)

        return self._map(change, values)

    def put(self, values: PyTree[Any], fill: float = 0.0) -> PyTree[Any]:
        """Puts small leaves back into full-size ones.

        Args:
          values: Small parameters, or a tree that mirrors them leaf by leaf.
          fill: The value of what was removed.

        Returns:
          The same tree with full-size leaves.

        Raises:
          ValueError: A leaf has a parameter's path, but not its small shape; or it is a state that only `take` knows.
        """

        def change(path: str, node: Any) -> Any:
            if is_factored(node):
                raise ValueError(
                    f"`put` does not know the factored moments at '{path}'. Call `init` at full size instead."
                )
            return self._put_leaf(path, node, fill)

        return self._map(change, values)

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
        units = {name: list(pair) for name, pair in self.units.items()}
        _documents.write(path, _FORMAT, {"semantics": self.semantics, "units": units, "leaves": leaves})

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
            # Plans of earlier versions have no units.
            units = {name: (_whole(full), _whole(small)) for name, (full, small) in body.get("units", {}).items()}
            plan = cls(leaves, body["semantics"], units)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            message = f"'{path}' does not hold a plan ({error}). Give a file written by `Plan.save`."
            raise ValueError(message) from error
        if "crc32" in body:  # plans of earlier versions have none
            _documents.check(path, body, "`Plan.save`")
        return plan

    def _map(self, change: Callable[[str, Any], Any], values: Any) -> Any:
        """Maps over leaves, and over the nodes that are more than their leaves."""
        rows, structure = jax.tree_util.tree_flatten_with_path(values, is_leaf=_is_whole)
        return structure.unflatten([self._changed(change, tree.path_of(keys), node) for keys, node in rows])

    def _changed(self, change: Callable[[str, Any], Any], path: str, node: Any) -> Any:
        if isinstance(node, Packed):
            through = lambda mask: verbs.pack(path, change(path, verbs.unpack(mask)))  # noqa: E731
            return jax.eval_shape(through, node) if isinstance(node.bits, jax.ShapeDtypeStruct) else through(node)
        name = self._match(path)
        if isinstance(node, Spectral):
            other = "frequencies" if name is not None and self.leaves[name].keep else None
        else:
            other = (
                "projected coordinates" if _is_projected(node) and any(x.keep for x in self.leaves.values()) else None
            )
        if other is not None:
            raise ValueError(f"'{path}' is over {other}, of which no part mirrors what is kept. Start it anew.")
        return node if isinstance(node, Spectral) or _is_projected(node) else change(path, node)

    def _match(self, path: str) -> str | None:
        """The parameter that a leaf mirrors: the one whose path, up to its first key, ends the leaf's."""
        parts = path.split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if end in self.leaves:
                return end
        for start in range(len(parts)):
            end = "/" + "/".join(parts[start:])
            found = [name for name in self.leaves if name.endswith(end) and name.count("/") == end.count("/")]
            if len(found) == 1:
                return found[0]
        return None

    def _within(self, path: str) -> tuple[str | None, str]:
        """The parameter that a leaf belongs to by a part of its path, and what follows that part."""
        parts = path.split("/")
        for end in reversed(range(len(parts))):
            for start in range(end):
                name = "/".join(parts[start:end])
                if name in self.leaves:
                    return name, "/".join(parts[end:])
        return None, ""

    def _plan_of(self, path: str, leaf: Any, *, small: bool) -> LeafPlan | None:
        """The plan of the parameter that a leaf of full or small size mirrors; `None` if there is nothing to change."""
        if not tree.is_array(leaf):
            return None
        name, after = self._match(path), ""
        if name is None and tree.is_floating(leaf):
            name, after = self._within(path)
        if name is None or not self.leaves[name].keep:
            return None
        plan = self.leaves[name]
        axis = int(after) if after.isdecimal() and int(after) < len(plan.shape) else None
        if axis is not None and leaf.shape == (plan.shape[axis],) and not small:
            return along(path, plan, axis)
        return reduced(path, leaf.shape, plan, plan.small if small else plan.shape)

    def _take_leaf(self, path: str, leaf: Any) -> Any:
        if self._is_vector(path, leaf):
            return self._take_vector(leaf)
        plan = self._plan_of(path, leaf, small=False)
        return leaf if plan is None else taken(leaf, plan)

    def _is_vector(self, path: str, leaf: Any) -> bool:
        size = sum(math.prod(plan.shape) for plan in self.leaves.values())
        return tree.is_floating(leaf) and leaf.shape == (size,) and self._match(path) is None

    def _take_vector(self, leaf: Any) -> Any:
        """The kept part of all parameters in a row."""
        ends = np.cumsum([math.prod(plan.shape) for plan in self.leaves.values()]).tolist()

        def parts(vector: Any) -> Any:
            pieces = zip(jnp.split(vector, ends[:-1]), self.leaves.values(), strict=True)
            return jnp.concatenate([taken(piece.reshape(plan.shape), plan).reshape(-1) for piece, plan in pieces])

        return jax.eval_shape(parts, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else parts(leaf)

    def _take_factored(self, path: str, node: Any) -> Any:
        """Moments of Adafactor, which are three for each parameter."""
        columns = [_by_path(values) for values in (node.v_row, node.v_col, node.v)]
        names = {path: self._match(path) for path in columns[0]}
        shapes = {path: self.leaves[name].shape for path, name in names.items() if name is not None}
        least = least_factored(shapes, columns[0])
        found: list[dict[str, Any]] = [{}, {}, {}]
        for leaf_path, name in names.items():
            moments = Moments(*(column[leaf_path] for column in columns))
            if name is not None and self.leaves[name].keep and all(map(tree.is_array, moments)):
                moments = self._smaller(f"{path}/{leaf_path}", moments, self.leaves[name], least)
            for part, value in zip(found, moments, strict=True):
                part[leaf_path] = value
        replaced = [_with(values, part) for values, part in zip((node.v_row, node.v_col, node.v), found, strict=True)]
        return node._replace(v_row=replaced[0], v_col=replaced[1], v=replaced[2])

    def _smaller(self, path: str, moments: Moments, plan: LeafPlan, least: int) -> Moments:
        def take(array: Any, averaged: tuple[int, ...]) -> Any:
            for axis in averaged:
                if axis == plan.stack and any(kept.ndim == 2 for kept in plan.keep.values()):
                    raise ValueError(f"'{path}' is a mean over layers that keep different units. Start it anew.")
                return taken(array, without(plan, axis))
            return taken(array, plan)

        change = functools.partial(smaller, shape=plan.shape, small=plan.small, least=least, take=take)
        is_abstract = isinstance(moments.full, jax.ShapeDtypeStruct)
        return jax.eval_shape(change, moments) if is_abstract else change(moments)

    def _put_leaf(self, path: str, leaf: Any, fill: float) -> Any:
        plan = self._plan_of(path, leaf, small=True)
        if plan is None:
            return leaf
        array = jnp.asarray(leaf)
        for axis, kept in plan.keep.items():
            if array.shape[axis] == kept.shape[-1]:
                wide = (*array.shape[:axis], plan.shape[axis], *array.shape[axis + 1 :])
                where = index(kept, axis, plan.stack, array.shape)
                array = jnp.full(wide, fill, array.dtype).at[where].set(array)
        return array


def _is_whole(node: Any) -> bool:
    return isinstance(node, Packed | Spectral) or is_factored(node) or _is_projected(node)


def _is_projected(node: Any) -> bool:
    """Whether a node keeps moments of projected gradients, as GaLore does; by its fields, since optax may rename it."""
    return isinstance(node, tuple) and "projector" in getattr(node, "_fields", ())


def _by_path(values: Any) -> dict[str, Any]:
    return dict(tree.flatten(values)[0])


def _with(values: Any, by_path: Mapping[str, Any]) -> Any:
    return tree.map_with_path(lambda path, _: by_path[path], values)


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
