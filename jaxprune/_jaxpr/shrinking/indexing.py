"""Evaluation rules of primitives that index axes: the positions that stay, where they are now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.coupling.indexing import COMBINED, Known, read_at, starts_of, updated_at, written_at
from jaxprune._jaxpr.shrinking.evaluation import Evaluation, Kept
from jaxprune._jaxpr.walker import bind, shape_of


def slices(evaluation: Evaluation, eqn: JaxprEqn, operand: Any) -> Sequence[Any]:
    """`slice`: the kept positions among those it takes."""
    return [cut(evaluation, eqn, operand, *map(evaluation.kept_axes, (eqn.invars[0], eqn.outvars[0])))]


def cut(
    evaluation: Evaluation, eqn: JaxprEqn, operand: Any, have: Sequence[Kept | None], want: Sequence[Kept | None]
) -> Any:
    """What a `slice` takes, given which positions of each axis the operand has and which the result."""
    starts, limits = list(eqn.params["start_indices"]), list(eqn.params["limit_indices"])
    strides = list(eqn.params["strides"] or (1,) * len(starts))
    picks: dict[int, np.ndarray] = {}
    for axis, (kept, out) in enumerate(zip(have, want, strict=True)):
        if kept is None:
            continue
        chosen = _indices(out, shape_of(eqn.outvars[0])[axis])
        picks[axis] = _positions(kept, starts[axis] + strides[axis] * chosen)
        starts[axis], limits[axis], strides[axis] = 0, operand.shape[axis], 1
    (rest,) = bind(eqn, operand, start_indices=tuple(starts), limit_indices=tuple(limits), strides=tuple(strides))
    for axis, indices in picks.items():
        rest = evaluation.take_axis(rest, indices, axis)
    return rest


def _indices(kept: Kept | None, width: int) -> np.ndarray:
    return np.arange(width) if kept is None else kept.indices


def _positions(kept: Kept | None, wanted: np.ndarray) -> np.ndarray:
    """Where the wanted positions of the whole axis are among the kept ones."""
    if kept is None:
        return wanted
    if kept.indices.ndim == 1:
        return np.searchsorted(kept.indices, wanted)
    rows = np.broadcast_to(wanted, (len(kept.indices), wanted.shape[-1]))
    return np.stack([np.searchsorted(have, want) for have, want in zip(kept.indices, rows, strict=True)])


def gather(evaluation: Evaluation, eqn: JaxprEqn, operand: Any, indices: Any) -> Sequence[Any]:
    """Whole slices of smaller axes; of an axis that is read at known positions those that stay."""
    kept_in = evaluation.kept_axes(eqn.invars[0])
    known = read_at(evaluation.view(eqn), evaluation.value(eqn.invars[1]))
    if known is not None and kept_in[known.axis] is not None:
        wanted = known.positions[_kept_along(evaluation, eqn.outvars[0], known)]
        taken = evaluation.take_axis(operand, _positions(kept_in[known.axis], wanted), known.axis)
        return [jnp.moveaxis(taken, known.axis, known.along)]
    pairs = zip(eqn.params["slice_sizes"], kept_in, strict=True)
    sizes = tuple(size if kept is None else kept.count for size, kept in pairs)
    return bind(eqn, operand, indices, slice_sizes=sizes)


def _kept_along(evaluation: Evaluation, atom: Any, known: Known) -> np.ndarray:
    return _indices(evaluation.kept_axes(atom)[known.along], len(known.positions))


def scatter(evaluation: Evaluation, eqn: JaxprEqn, operand: Any, indices: Any, updates: Any) -> Sequence[Any]:
    """Whole slices of smaller axes; known positions are written where they are now."""
    known = written_at(evaluation.view(eqn), evaluation.value(eqn.invars[1]))
    if known is None or not _shrinks(evaluation, eqn, eqn.invars[2], known):
        return bind(eqn, operand, indices, updates)
    updates = jnp.moveaxis(updates, known.along, known.axis)
    if (combined := COMBINED.get(eqn.primitive.name)) is not None:
        wanted = known.positions[_kept_along(evaluation, eqn.invars[2], known)]
        places = _positions(evaluation.kept_axes(eqn.invars[0])[known.axis], wanted)
        updates = combined(evaluation.take_axis(operand, places, known.axis), updates)
    return [_written(evaluation, eqn, eqn.invars[2], known, operand, updates)]


def _shrinks(evaluation: Evaluation, eqn: JaxprEqn, updates: Any, known: Known) -> bool:
    """Whether anything is removed along an axis that is written at known positions."""
    axes = (evaluation.kept_axes(eqn.invars[0])[known.axis], evaluation.kept_axes(updates)[known.along])
    return any(kept is not None for kept in (*axes, evaluation.kept_axes(eqn.outvars[0])[known.axis]))


def _written(evaluation: Evaluation, eqn: JaxprEqn, atom: Any, known: Known, operand: Any, updates: Any) -> Any:
    """Takes each position that stays from the operand, or from what is written over it."""
    axis, width = known.axis, shape_of(eqn.invars[0])[known.axis]
    source = np.arange(width)
    source[known.positions] = width + np.arange(len(known.positions))
    wanted = source[_indices(evaluation.kept_axes(eqn.outvars[0])[axis], width)]
    old = _positions(evaluation.kept_axes(eqn.invars[0])[axis], wanted)
    new = _positions(evaluation.kept_axes(atom)[known.along], wanted - width) + operand.shape[axis]
    return evaluation.take_axis(lax.concatenate([operand, updates], axis), np.where(wanted < width, old, new), axis)


def dynamic_slice(evaluation: Evaluation, eqn: JaxprEqn, operand: Any, *starts: Any) -> Sequence[Any]:
    """Whole slices of smaller axes; of an axis that is cut at a known place the positions that stay."""
    values = [evaluation.value(atom) for atom in eqn.invars[1:]]
    view = evaluation.view(eqn)
    for axis, start in starts_of(view, view.params["slice_sizes"], values).items():
        kept = evaluation.kept_axes(eqn.invars[0])[axis]
        if start is not None and kept is not None:
            chosen = _indices(evaluation.kept_axes(eqn.outvars[0])[axis], eqn.params["slice_sizes"][axis])
            operand = evaluation.take_axis(operand, _positions(kept, start + chosen), axis)
    return bind(eqn, operand, *starts, slice_sizes=evaluation.shape(eqn.outvars[0]))


def dynamic_update_slice(
    evaluation: Evaluation, eqn: JaxprEqn, operand: Any, update: Any, *starts: Any
) -> Sequence[Any]:
    """Whole slices of smaller axes; known positions are written where they are now."""
    known = updated_at(evaluation.view(eqn), [evaluation.value(atom) for atom in eqn.invars[2:]])
    if known is None or not _shrinks(evaluation, eqn, eqn.invars[1], known):
        return bind(eqn, operand, update, *starts)
    return [_written(evaluation, eqn, eqn.invars[1], known, operand, update)]


RULES: dict[str, Callable[..., Sequence[Any]]] = {
    "slice": slices,
    "gather": gather,
    **dict.fromkeys(("scatter", *COMBINED), scatter),
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
}
