"""Label rules of primitives that index axes: those taken or written whole pass, and so do known positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Shaped

from jaxprune._jaxpr.coupling.values import Holds, Labeling, Value, labelled
from jaxprune._jaxpr.walker import jaxpr_and_constants, shape_of

# Writes that combine what is there with what is written.
COMBINED: dict[str, Callable[[Any, Any], Any]] = {
    "scatter-add": lax.add,
    "scatter-sub": lax.sub,
    "scatter-mul": lax.mul,
    "scatter-min": lax.min,
    "scatter-max": lax.max,
}


@dataclasses.dataclass(frozen=True)
class Known:
    """Known positions along one axis, where all other axes are taken or written whole.

    Attributes:
      axis: Of the operand.
      along: The axis of the result of a read, or of the updates of a write.
      positions: One for each position along it.
    """

    axis: int
    along: int
    positions: Shaped[np.ndarray, "_"]


def read_at(eqn: JaxprEqn, indices: Value) -> Known | None:
    """Where a `gather` reads, if it is known."""
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.invars[0])
    rows = [a for a in range(len(shape_of(eqn.outvars[0]))) if a not in numbers.offset_dims]
    return _known(
        shape,
        indices,
        windows=dict(zip(_windows(shape, *_gone(eqn)), map(int, numbers.offset_dims), strict=True)),
        sizes=eqn.params["slice_sizes"],
        coordinates=_ints(numbers.start_index_map),
        batched=_ints(numbers.operand_batching_dims),
        rows=rows,
    )


def written_at(eqn: JaxprEqn, indices: Value) -> Known | None:
    """Where a `scatter` writes, if it is known and no position is written twice."""
    numbers, shape, updates = eqn.params["dimension_numbers"], shape_of(eqn.invars[0]), shape_of(eqn.invars[2])
    windows = dict(zip(_windows(shape, *_gone(eqn)), map(int, numbers.update_window_dims), strict=True))
    found = _known(
        shape,
        indices,
        windows=windows,
        sizes=[updates[windows[a]] if a in windows else 1 for a in range(len(shape))],
        coordinates=_ints(numbers.scatter_dims_to_operand_dims),
        batched=_ints(numbers.operand_batching_dims),
        rows=[a for a in range(len(updates)) if a not in numbers.update_window_dims],
    )
    distinct = found is not None and len(np.unique(found.positions)) == len(found.positions)
    return found if distinct and not _applies(eqn) else None


def _applies(eqn: JaxprEqn) -> bool:
    """Whether a `scatter` writes a function of what is there, as `x.at[i].apply(f)` does."""
    if eqn.primitive.name != "scatter" or eqn.params["update_jaxpr"] is None:
        return False
    jaxpr, _ = jaxpr_and_constants(eqn.params["update_jaxpr"])
    return jaxpr.outvars[0] is not jaxpr.invars[1]


def _known(
    shape: Sequence[int],
    indices: Value,
    windows: dict[int, int],
    sizes: Sequence[int],
    coordinates: Sequence[int],
    batched: Sequence[int],
    rows: Sequence[int],
) -> Known | None:
    indexed = [a for a in coordinates if sizes[a] != shape[a] or a not in windows]
    if indices.known is None or batched or len(indexed) != 1 or len(rows) != (indexed[0] not in windows):
        return None
    (axis,), starts = indexed, indices.known.reshape(-1, len(coordinates))
    place = list(coordinates).index(axis)
    if np.delete(starts, place, axis=1).any():
        return None
    along = windows.get(axis, rows[0] if rows else -1)
    positions = starts[:, place] + (np.arange(sizes[axis]) if axis in windows else 0)
    return Known(axis, along, positions) if ((positions >= 0) & (positions < shape[axis])).all() else None


def _gone(eqn: JaxprEqn) -> tuple[Sequence[int], Sequence[int]]:
    """Axes of the operand that no slice has."""
    numbers = eqn.params["dimension_numbers"]
    inserted = numbers.collapsed_slice_dims if eqn.primitive.name == "gather" else numbers.inserted_window_dims
    return _ints(inserted), _ints(numbers.operand_batching_dims)


def _ints(axes: Sequence[Any]) -> list[int]:
    """The rules of `vmap` make axes of NumPy's integers."""
    return [int(axis) for axis in axes]


def _windows(shape: Sequence[int], *gone: Sequence[int]) -> list[int]:
    return [a for a in range(len(shape)) if not any(a in axes for axes in gone)]


def gather(labeling: Labeling, eqn: JaxprEqn, operand: Value, indices: Value) -> list[Value]:
    """Axes taken whole pass, indexed ones freeze unless it is known where, index axes become axes of the result."""
    forest, numbers, sizes = labeling.forest, eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, known = shape_of(eqn.outvars[0]), read_at(eqn, indices)
    axes: list[Any] = [None] * len(shape)
    holds = [Holds.UNKNOWN] * len(shape)
    forest.freeze(indices.axes[-1], "it holds the coordinates of an index")
    rows = [a for a in range(len(shape)) if a not in numbers.offset_dims]
    for out, labels, held in zip(rows, indices.axes[:-1], indices.holds[:-1], strict=True):
        axes[out], holds[out] = labels, max(held, Holds.EQUAL)
    for axis, index_axis in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        forest.union(operand.axes[axis], indices.axes[index_axis])
        holds[rows[index_axis]] = _if_zero(operand.holds[axis])
    for axis in numbers.collapsed_slice_dims:
        if known is None:
            forest.freeze(operand.axes[axis], "'gather' indexes it")
    for out, axis in zip(numbers.offset_dims, _windows(shape_of(eqn.invars[0]), *_gone(eqn)), strict=True):
        # A whole axis has one place to start from, whatever the index says.
        if sizes[axis] == len(operand.axes[axis]):
            axes[out], holds[out] = operand.axes[axis], operand.holds[axis]
        elif known is None:
            forest.freeze(operand.axes[axis], "'gather' indexes it")
            axes[out] = forest.frozen(shape[out], "'gather' indexes it")
    if known is not None:
        axes[known.along] = operand.axes[known.axis][known.positions]
        holds[known.along] = _if_zero(operand.holds[known.axis])
        if not forest.all_frozen(operand.axes[known.axis]):
            holds = [_if_zero(held) for held in holds]
    return [labelled(axes, holds)]


def _if_zero(*holds: Holds) -> Holds:
    """0 where all hold 0; anything else is not followed through an index."""
    return Holds.ZERO if all(held is Holds.ZERO for held in holds) else Holds.UNKNOWN


def scatter(labeling: Labeling, eqn: JaxprEqn, operand: Value, indices: Value, updates: Value) -> list[Value]:
    """Axes written whole pass, indexed ones freeze unless it is known where."""
    forest, numbers, name = labeling.forest, eqn.params["dimension_numbers"], eqn.primitive.name
    known = written_at(eqn, indices)
    axes, holds = list(operand.axes), [Holds.UNKNOWN] * len(operand.axes)
    forest.freeze(indices.axes[-1], "it holds the coordinates of an index")
    windows = _windows(shape_of(eqn.invars[0]), *_gone(eqn))
    joined = dict(zip(windows, numbers.update_window_dims, strict=True))
    rows = [a for a in range(len(updates.axes)) if a not in numbers.update_window_dims]
    for axis, index_axis in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        forest.union(axes[axis], indices.axes[index_axis])
        joined[axis] = rows[index_axis]
    whole = {a: u for a, u in joined.items() if len(updates.axes[u]) == len(axes[a])}
    for axis, update_axis in whole.items():
        forest.union(updates.axes[update_axis], axes[axis])
        if not _applies(eqn):
            holds[axis] = _if_zero(_held(operand, axis), updates.holds[update_axis])
    if known is not None:
        _write(labeling, name, axes, updates, known)
        holds[known.axis] = _if_zero(_held(operand, known.axis), updates.holds[known.along])
        return [labelled(axes, holds)]
    for axis in set(range(len(axes))) - set(whole):
        forest.freeze(axes[axis], f"'{name}' indexes it")
    for axis in set(range(len(updates.axes))) - set(whole.values()):
        forest.freeze(updates.axes[axis], f"'{name}' indexes it")
    for index_axis, labels in enumerate(indices.axes[:-1]):
        if index_axis not in numbers.scatter_indices_batching_dims:
            forest.freeze(labels, f"'{name}' indexes it")
    return [labelled(axes, holds)]


def _held(value: Value, axis: int) -> Holds:
    return Holds.ZERO if value.const == 0 else value.holds[axis]


def _write(labeling: Labeling, name: str, axes: list[Any], updates: Value, known: Known) -> None:
    """What is set has the labels of the updates, what is combined with them has those of both."""
    theirs = updates.axes[known.along]
    if name in COMBINED:
        labeling.forest.union(axes[known.axis][known.positions], theirs)
    else:
        axes[known.axis] = np.array(axes[known.axis])
        axes[known.axis][known.positions] = theirs


def starts_of(eqn: JaxprEqn, sizes: Sequence[int], starts: Sequence[Value]) -> dict[int, int | None]:
    """Where a dynamic slice begins along the axes that it does not take whole, `None` where that is not known."""
    found: dict[int, int | None] = {}
    for axis, (size, width) in enumerate(zip(sizes, shape_of(eqn.invars[0]), strict=True)):
        if size != width:
            known = starts[axis].known
            found[axis] = None if known is None else int(np.clip(known, 0, width - size))
    return found


def dynamic_slice(labeling: Labeling, eqn: JaxprEqn, operand: Value, *starts: Value) -> list[Value]:
    """Axes taken whole pass, others freeze unless it is known where."""
    axes, holds, sizes = list(operand.axes), list(operand.holds), eqn.params["slice_sizes"]
    for axis, start in starts_of(eqn, sizes, starts).items():
        if start is None:
            labeling.forest.freeze(axes[axis], "'dynamic_slice' indexes it")
            axes[axis] = labeling.forest.frozen(sizes[axis], "'dynamic_slice' indexes it")
        else:
            if not labeling.forest.all_frozen(axes[axis]):
                holds = [_if_zero(held) for held in holds]
            axes[axis] = axes[axis][start : start + sizes[axis]]
    return [labelled(axes, holds)]


def updated_at(eqn: JaxprEqn, starts: Sequence[Value]) -> Known | None:
    """Where a `dynamic_update_slice` writes, if that is known and it writes all other axes whole."""
    sizes = shape_of(eqn.invars[1])
    match list(starts_of(eqn, sizes, starts).items()):
        case [(axis, int(start))]:
            return Known(axis, axis, start + np.arange(sizes[axis]))
        case _:
            return None


def dynamic_update_slice(
    labeling: Labeling, eqn: JaxprEqn, operand: Value, update: Value, *starts: Value
) -> list[Value]:
    """Axes written whole pass, others freeze unless it is known where."""
    axes, known = list(operand.axes), updated_at(eqn, starts)
    for axis, theirs in enumerate(update.axes):
        if len(axes[axis]) == len(theirs):
            labeling.forest.union(axes[axis], theirs)
        elif known is None:
            labeling.forest.freeze(axes[axis], "'dynamic_update_slice' indexes it")
            labeling.forest.freeze(theirs, "'dynamic_update_slice' indexes it")
    holds = [max(_held(operand, axis), held) for axis, held in enumerate(update.holds)]
    if known is not None:
        _write(labeling, "scatter", axes, update, known)
        holds = [_if_zero(held) for held in holds]
    return [labelled(axes, holds)]


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    "gather": gather,
    **dict.fromkeys(("scatter", *COMBINED), scatter),
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
}
