"""Label rules of primitives that combine values over a named axis, of `vmap`, `pmap` or a mesh of devices.

Every device has an array of one shape, so the same positions are kept on all of them: along an axis that is divided
among the devices, positions are tied that have the same place in their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.coupling.forest import Labels
from jaxprune._jaxpr.coupling.values import Holds, Labeling, Value, labelled
from jaxprune._jaxpr.primitives import SAME_ON_DEVICES, devices_along, inner_jaxpr, number_of_devices
from jaxprune._jaxpr.walker import shape_of


def same(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Each position is combined with, or sent to, the same position of other devices; 0 stays 0."""
    del labeling, eqn
    return [labelled(operand.axes, _zeros(operand)) for operand in operands]


def _zeros(value: Value) -> list[Holds]:
    """0 where the value holds 0; anything else is not followed from device to device."""
    return [held if held is Holds.ZERO else Holds.UNKNOWN for held in value.holds]


def all_gather(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """Lays the arrays of all devices one after the other, or along a new axis."""
    along, size = eqn.params["all_gather_dimension"], eqn.params["axis_size"]
    axes, holds = list(operand.axes), _zeros(operand)
    if eqn.params["tiled"]:
        axes[along] = np.tile(axes[along], size)
    else:
        axes.insert(along, labeling.forest.frozen(size, "one position for each device"))
        holds.insert(along, Holds.UNKNOWN)
    return [labelled(axes, holds)]


def reduce_scatter(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """Leaves each device its part of an axis, or its position."""
    along = eqn.params["scatter_dimension"]
    axes, holds = list(operand.axes), _zeros(operand)
    if eqn.params["tiled"]:
        axes[along] = _divided(labeling, axes[along], eqn.params["axis_size"])
    else:
        labeling.forest.freeze(axes.pop(along), "one position for each device")
        del holds[along]
    return [labelled(axes, holds)]


def all_to_all(labeling: Labeling, eqn: JaxprEqn, operand: Value) -> list[Value]:
    """Divides one axis among the devices and lays what they send along another."""
    split, joined = eqn.params["split_axis"], eqn.params["concat_axis"]
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    # Where one axis is both, its shape does not tell how many devices there are: then all of it is tied.
    size = before[split] // (after[split] if split != joined else 1)
    axes = list(operand.axes)
    axes[split] = _divided(labeling, axes[split], size)
    axes[joined] = np.tile(axes[joined], size)
    return [labelled(axes, _zeros(operand))]


def _divided(labeling: Labeling, labels: Labels, parts: int) -> Labels:
    """Ties the positions that have the same place in each part."""
    first, *others = np.split(labels, parts) if len(labels) else [labels]
    for other in others:
        labeling.forest.union(first, other)
    return first


def shard_map(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """What each device does with its parts of the operands."""
    parts: list[Value] = []
    for operand, spec in zip(operands, eqn.params["in_specs"], strict=True):
        numbers = devices_along(eqn, spec, len(operand.axes))
        axes = [_divided(labeling, x, n) if n > 1 else x for x, n in zip(operand.axes, numbers, strict=True)]
        parts.append(operand if max(numbers, default=1) == 1 else operand.replace(axes=tuple(axes), known=None))
    labeling.times *= (devices := number_of_devices(eqn))
    outputs = labeling.run(eqn, *inner_jaxpr(eqn), parts)
    labeling.times //= devices
    whole: list[Value] = []
    for output, spec in zip(outputs, eqn.params["out_specs"], strict=True):
        numbers = devices_along(eqn, spec, len(output.axes))
        axes = [np.tile(labels, n) if n > 1 else labels for labels, n in zip(output.axes, numbers, strict=True)]
        whole.append(labelled(axes, _zeros(output)))
    return whole


RULES: dict[str, Callable[..., Sequence[Any]]] = {
    **dict.fromkeys(SAME_ON_DEVICES, same),
    **dict.fromkeys(("all_gather", "all_gather_invariant", "all_gather_reduced"), all_gather),
    **dict.fromkeys(("reduce_scatter", "unreduced_reduce_scatter"), reduce_scatter),
    "all_to_all": all_to_all,
    "shard_map": shard_map,
}
