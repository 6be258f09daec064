"""What the result of an equation holds at removed positions, and reductions and products that take it in.

Each rule computes its result in a region, from what its operands hold in the regions that it comes from: the same
primitive on other arrays, so that derivatives pass too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.coupling.values import Holds, Value
from jaxprune._jaxpr.primitives import ELEMENTWISE, GENERATED, ORDERED, UNCHANGED, factors
from jaxprune._jaxpr.shrinking.evaluation import Evaluation, Part, Region, kept_of
from jaxprune._jaxpr.shrinking.indexing import cut
from jaxprune._jaxpr.shrinking.rules import padded
from jaxprune._jaxpr.symbols import Shape
from jaxprune._jaxpr.walker import bind, shape_of


def alike(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Primitives whose operands have the axes of the result, but for scalars and axes of one that are stretched."""
    shape = shape_of(eqn.outvars[index])
    parts = []
    for atom, operand in zip(eqn.invars, operands, strict=True):
        own = shape_of(atom)
        inner = tuple(axis for axis in region if own[axis] == shape[axis]) if len(own) == len(shape) else ()
        parts.append(evaluation.part(operand, evaluation.value(atom), inner))
    return bind(eqn, *_together(parts, region, len(shape)))[index]


def _together(parts: Sequence[Any], region: Region, rank: int) -> list[Any]:
    """Makes arrays equally wide along the axes of a region."""
    ranked = [part for part in parts if jnp.ndim(part) == rank]
    widths = {axis: max(part.shape[axis] for part in ranked) for axis in region}
    return [_widened(part, widths) if jnp.ndim(part) == rank else part for part in parts]


def _widened(part: Any, widths: dict[int, int]) -> Any:
    """Repeats what is equal at all removed positions."""
    shape = tuple(widths.get(axis, width) for axis, width in enumerate(part.shape))
    return part if shape == part.shape else jnp.broadcast_to(part, shape)


def each(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Primitives whose results are their operands, under a condition that is the compiler's."""
    return evaluation.part(operands[index], evaluation.value(eqn.invars[index]), region)


def made(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """`iota` and random bits: made at full size."""
    whole = bind(eqn, *map(kept_of, operands))[index]
    return evaluation.take(whole, evaluation.taken(evaluation.value(eqn.outvars[index]), region))


def broadcast(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """A new axis holds the same everywhere."""
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    sources = {out: axis for axis, out in enumerate(eqn.params["broadcast_dimensions"]) if before[axis] == after[out]}
    inner = tuple(sorted(sources[axis] for axis in region if axis in sources))
    part = evaluation.part(operands[0], evaluation.value(eqn.invars[0]), inner)
    return bind(eqn, part, shape=_shape_in(evaluation, eqn, region))[0]


def _shape_in(evaluation: Evaluation, eqn: JaxprEqn, region: Region) -> Shape:
    """Shape of what the only result holds in a region."""
    (out,) = eqn.outvars
    return evaluation.part_shape(evaluation.shape(out), evaluation.value(out), region)


def tile(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """What is removed is repeated too."""
    return bind(eqn, evaluation.part(operands[0], evaluation.value(eqn.invars[0]), region))[0]


def transpose(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Permutes the axes."""
    inner = tuple(sorted(eqn.params["permutation"][axis] for axis in region))
    return bind(eqn, evaluation.part(operands[0], evaluation.value(eqn.invars[0]), inner))[0]


def squeeze(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Drops axes of one."""
    left = _without(len(shape_of(eqn.invars[0])), eqn.params["dimensions"])
    inner = tuple(left[axis] for axis in region)
    return bind(eqn, evaluation.part(operands[0], evaluation.value(eqn.invars[0]), inner))[0]


def _without(rank: int, gone: Collection[Any]) -> list[int]:
    return [axis for axis in range(rank) if axis not in gone]


def reshape(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Where axes are regrouped, what is equal along one of them is repeated for the others."""
    value = evaluation.value(eqn.invars[0])
    wanted = _shape_in(evaluation, eqn, region)
    runs: list[tuple[int, list[int], int]] = []
    for left, right in factors(*(tuple(map(len, evaluation.value(x).axes)) for x in (eqn.invars[0], eqn.outvars[0]))):
        if any(axis in region for axis in right):
            (axis,) = (a for a in left if evaluation.kept(value.axes[a]) is not None)
            runs.append((axis, left, math.prod(wanted[a] for a in right)))
    part = evaluation.part(operands[0], value, tuple(axis for axis, _, _ in runs))
    beside = {axis: size // math.prod(part.shape[a] for a in left if a != axis) for axis, left, size in runs}
    return bind(eqn, _widened(part, beside), new_sizes=wanted)[0]


def concatenate(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Along the axis of a region, what is removed of each operand."""
    along, parts = eqn.params["dimension"], []
    for atom, operand in zip(eqn.invars, operands, strict=True):
        value = evaluation.value(atom)
        if along not in region:
            parts.append(evaluation.part(operand, value, region))
        elif count := evaluation.count_removed(value.axes[along]):
            parts.append(_widened(evaluation.part(operand, value, region), {along: count}))
    rest = tuple(axis for axis in region if axis != along)
    return bind(eqn, *_together(parts, rest, len(shape_of(eqn.outvars[0]))))[0]


def _spread(evaluation: Evaluation, eqn: JaxprEqn, operand: Any, region: Region) -> Any:
    """What the first operand holds in a region, at each removed position."""
    value = evaluation.value(eqn.invars[0])
    widths = {axis: evaluation.count_removed(value.axes[axis]) for axis in region}
    return _widened(evaluation.part(operand, value, region), widths)


def sliced(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """`slice`: the removed positions among those it takes."""

    def taken(atom: Any) -> list[Any]:
        axes = evaluation.value(atom).axes
        return [
            evaluation.removed_from(labels) if axis in region else evaluation.kept(labels)
            for axis, labels in enumerate(axes)
        ]

    part = _spread(evaluation, eqn, operands[0], region)
    return cut(evaluation, eqn, part, taken(eqn.invars[0]), taken(eqn.outvars[0]))


def split(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """The removed positions of one part."""
    axis = eqn.params["axis"]
    labels = [evaluation.value(out).axes[axis] for out in eqn.outvars]
    if axis in region:
        sizes = [evaluation.count_removed(x) for x in labels]
    else:
        sizes = [evaluation.shape(out)[axis] for out in eqn.outvars]
    return bind(eqn, _spread(evaluation, eqn, operands[0], region), sizes=tuple(sizes))[index]


def pad(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """As many padded positions as are removed."""
    kept = [
        evaluation.removed_from(labels) if axis in region else evaluation.kept(labels)
        for axis, labels in enumerate(evaluation.value(eqn.outvars[0]).axes)
    ]
    part = _spread(evaluation, eqn, operands[0], region)
    return padded(evaluation, eqn, part, kept_of(operands[1]), kept)


def gather(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Whole slices of what is removed, or of what is at the indices that are."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    whole = shape_of(eqn.invars[0])
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    windows = dict(zip(numbers.offset_dims, _without(len(whole), gone), strict=True))
    rows = _without(len(shape_of(eqn.outvars[0])), numbers.offset_dims)
    operand = evaluation.part(
        operands[0], evaluation.value(eqn.invars[0]), tuple(windows[axis] for axis in region if axis in windows)
    )
    indices = evaluation.part(
        operands[1], evaluation.value(eqn.invars[1]), tuple(rows.index(axis) for axis in region if axis in rows)
    )
    sizes = tuple(have if n == full else n for n, full, have in zip(sizes, whole, operand.shape, strict=True))
    return bind(eqn, operand, indices, slice_sizes=sizes)[0]


def dynamic_slice(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Whole slices of what is removed."""
    part = evaluation.part(operands[0], evaluation.value(eqn.invars[0]), region)
    whole, sizes = shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
    sizes = tuple(have if n == full else n for n, full, have in zip(sizes, whole, part.shape, strict=True))
    return bind(eqn, part, *map(kept_of, operands[1:]), slice_sizes=sizes)[0]


def _subsets(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1))


def _known(evaluation: Evaluation, eqn: JaxprEqn, holds: Holds) -> Holds:
    """Refuses to leave out what would count; derivatives have equations that the coupling never saw."""
    if holds is Holds.UNKNOWN:
        raise ValueError(
            f"'{eqn.primitive.name}' takes in values that are not known where they are removed, at "
            f"{evaluation.labeling.source(eqn)}. Leave these units out with `protect=`."
        )
    return holds


def _reduced(eqn: JaxprEqn) -> list[int]:
    return [int(axis) for axis in eqn.params["axes" if "axes" in eqn.params else "dimensions"]]


def total(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """`reduce_sum`: what is equal at all removed positions counts as often as there are any."""
    axes, value = _reduced(eqn), evaluation.value(eqn.invars[0])
    if evaluation.small:
        return bind(eqn, kept_of(operands[0]))[0]
    left = _without(len(value.axes), axes)
    outer = [left[axis] for axis in region]
    counted = [
        a
        for a in axes
        if evaluation.kept(value.axes[a]) is not None and _known(evaluation, eqn, value.holds[a]) is not Holds.ZERO
    ]
    terms = []
    for inner in _subsets(counted):
        part = evaluation.part(operands[0], value, tuple(sorted((*outer, *inner))))
        terms.append(_times(bind(eqn, part)[0], evaluation.times(value, inner)))
    return sum(terms[1:], terms[0])


def _times(array: Any, count: int) -> Any:
    return array if count == 1 else array * jnp.asarray(count, array.dtype)


def reduction(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """Other reductions: of what is kept and what is removed, laid side by side."""
    axes = _reduced(eqn)
    values = [evaluation.value(atom) for atom in eqn.invars]
    left = _without(len(values[0].axes), axes)
    outer = tuple(left[axis] for axis in region)
    shrunk = [] if evaluation.small else [a for a in axes if evaluation.kept(values[0].axes[a]) is not None]
    for value in values:
        for axis in shrunk if value.axes else ():
            _known(evaluation, eqn, value.holds[axis])
    whole = [
        _whole(evaluation, operand, value, outer, shrunk) if value.axes else kept_of(operand)
        for operand, value in zip(operands, values, strict=True)
    ]
    if eqn.primitive.name in ("argmax", "argmin"):
        return _position(evaluation, eqn, whole[0], values[0])
    return bind(eqn, *_together(whole, outer, len(values[0].axes)))[index]


def _whole(evaluation: Evaluation, operand: Any, value: Value, region: Region, axes: Sequence[int]) -> Any:
    """An operand with what is removed of some axes behind what is kept."""
    if not axes:
        return evaluation.part(operand, value, region)
    axis, *rest = axes
    kept = _whole(evaluation, operand, value, region, rest)
    removed = _whole(evaluation, operand, value, tuple(sorted((*region, axis))), rest)
    removed = _widened(removed, {axis: evaluation.count_removed(value.axes[axis])})
    return lax.concatenate([kept, removed], axis)


def _position(evaluation: Evaluation, eqn: JaxprEqn, operand: Any, value: Value) -> Any:
    """The position of an extreme among all positions, removed ones included, or among those that are left."""
    (axis,) = eqn.params["axes"]
    kept = evaluation.kept(value.axes[axis])
    if kept is None:
        return bind(eqn, operand)[0]
    if evaluation.small:
        return evaluation.original(bind(eqn, operand)[0], kept)
    # Ties go to the first position, so the positions have to be in order.
    behind = np.concatenate([kept.indices, kept.others().indices], axis=-1)
    return bind(eqn, evaluation.take_axis(operand, np.argsort(behind, axis=-1), axis))[0]


def product(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, region: Region) -> Any:
    """`dot_general`: removed positions that are 0 on neither side add their products."""
    summed, batched = eqn.params["dimension_numbers"]
    values = [evaluation.value(atom) for atom in eqn.invars]
    if evaluation.small:
        return bind(eqn, *map(kept_of, operands))[0]
    sources = [*zip(*batched, strict=True)]
    for side in (0, 1):
        free = _without(len(values[side].axes), (*summed[side], *batched[side]))
        sources += [(axis, -1) if side == 0 else (-1, axis) for axis in free]
    outer = [[sources[axis][side] for axis in region if sources[axis][side] >= 0] for side in (0, 1)]
    counted = []
    for a, b in zip(*summed, strict=True):
        held = values[0].holds[a], values[1].holds[b]
        if evaluation.kept(values[0].axes[a]) is not None and Holds.ZERO not in held:
            _known(evaluation, eqn, max(held))
            counted.append((a, b))
    terms = []
    for inner in _subsets(range(len(counted))):
        pairs = [counted[i] for i in inner]
        pairs += [(a, b) for a, b in zip(*batched, strict=True) if a in outer[0]]
        regions = [tuple(sorted({*outer[side], *(pair[side] for pair in pairs)})) for side in (0, 1)]
        parts = [evaluation.part(*xs) for xs in zip(operands, values, regions, strict=True)]
        times = 1
        for i, (a, b) in enumerate(pairs):
            width = max(parts[0].shape[a], parts[1].shape[b])
            parts = [_widened(parts[0], {a: width}), _widened(parts[1], {b: width})]
            if i < len(inner) and width == 1:
                times *= evaluation.count_removed(values[0].axes[a])
        terms.append(_times(bind(eqn, *parts)[0], times))
    return sum(terms[1:], terms[0])


PARTS: dict[str, Part] = {
    **dict.fromkeys(ELEMENTWISE, alike),
    **dict.fromkeys(ORDERED, alike),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), alike),
    **dict.fromkeys(("select_and_scatter_add", "select_and_gather_add", "rev", "dynamic_update_slice"), alike),
    **dict.fromkeys(("sharding_constraint", "reshard", *UNCHANGED), each),
    **dict.fromkeys(GENERATED, made),
    "broadcast_in_dim": broadcast,
    "transpose": transpose,
    "squeeze": squeeze,
    "tile": tile,
    "reshape": reshape,
    "concatenate": concatenate,
    "slice": sliced,
    "split": split,
    "pad": pad,
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "reduce_sum": total,
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"), reduction),
    **dict.fromkeys(("argmax", "argmin", "reduce"), reduction),
    "dot_general": product,
}
ENDS = frozenset(name for name, part in PARTS.items() if part in (total, reduction, product))
