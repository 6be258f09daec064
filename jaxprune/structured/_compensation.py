"""Puts the mean of what masked weights added to a kernel's output into the bias that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import checks, host, tree
from jaxprune._jaxpr.coupling.biases import Bias, Consumer
from jaxprune.statistics import Variance
from jaxprune.structured._coupling import Coupling, Group
from jaxprune.structured._plan import Plan
from jaxprune.typing import Params, Statistics


def compensated(params: Params, masked: Params, statistics: Statistics, coupling: Coupling) -> Params:
    """The parameters with changed biases: what the masked kernels no longer add, on average, the biases do.

    Args:
      params: As they were before pruning.
      masked: The parameters under their masks.
      statistics: For a kernel what `calibrate` measured with `statistic="variance"`, or the mean of each of its inputs;
        `None` elsewhere.
      coupling: From `couple`.

    Raises:
      ValueError: A mean does not have the size of its kernel's inputs, or means or weights are not finite; the message
        names the path.
    """
    rows, structure = tree.flatten(params, masked, statistics, names=("masked parameters", "tree `compensate`"))
    leaves = {path: leaf for path, leaf, _, _ in rows}
    for path, leaf, masked_leaf, mean in rows:
        consumer = coupling.consumers.get(path)
        if mean is None or consumer is None or masked_leaf is leaf:
            continue
        checks.finite(
            path, _means(mean), "means that `compensate` has", "Measure them again, or leave it out with `None`."
        )
        checks.finite(path, leaf, "weights", "`compensate` has no mean of what they gave; leave it out with `None`.")
        xp, dtype = np if isinstance(host.view(leaf), np.ndarray) else jnp, tree.promote(leaf.dtype, jnp.float32)
        lost = xp.asarray(leaf).astype(dtype) - xp.asarray(masked_leaf).astype(dtype)
        change = lost * _spread(path, xp.asarray(_means(mean)).astype(dtype), leaf.shape, consumer, xp)
        for bias in consumer.biases:
            leaves[bias.path] = _added(leaves[bias.path], change, bias)
    return structure.unflatten(list(leaves.values()))


def _means(statistic: Any) -> Any:
    return statistic.inputs.mean if isinstance(statistic, Variance) else statistic


def _spread(path: str, mean: Any, shape: Sequence[int], consumer: Consumer, xp: Any) -> Any:
    """The mean of the input that each weight multiplies, to be broadcast against the kernel."""
    if mean.ndim == len(shape) > 1 and all(n in (1, width) for n, width in zip(mean.shape, shape, strict=True)):
        return mean
    widths = [shape[axis] for axis in consumer.inputs]
    size = consumer.groups * math.prod(widths)
    # Layers of a scan and experts have means of their own, on axes that come first.
    for count in range(len(consumer.outputs) + 1):
        lead = list(consumer.outputs[:count])
        if mean.size == size * math.prod(shape[axis] for axis in lead):
            break
    else:
        raise ValueError(
            f"`compensate` needs the mean of each input of '{path}', {size} numbers; it has shape {tuple(mean.shape)}. "
            "Leave the kernel out with `None`."
        )
    order = [*lead, *consumer.inputs]
    if consumer.groups > 1:
        produced = consumer.outputs[-1]
        mean = mean.reshape(*(shape[a] for a in lead), consumer.groups, *widths)
        mean = xp.repeat(mean, shape[produced] // consumer.groups, axis=len(lead))
        order.insert(len(lead), produced)
    mean = mean.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
    return mean.reshape([n if axis in order else 1 for axis, n in enumerate(shape)])


def _added(leaf: Any, change: Any, bias: Bias) -> Any:
    """The bias plus the change, which is summed over the kernel's axes that the bias does not have."""
    array = host.view(leaf)
    along = [axis for axis in bias.axes if axis >= 0]
    total = change.sum(tuple(axis for axis in range(change.ndim) if axis not in along))
    total = total.transpose(np.argsort(np.argsort(along)))
    total = total.reshape([change.shape[axis] if axis >= 0 else 1 for axis in bias.axes])
    added = (array.astype(change.dtype) + bias.sign * total).astype(array.dtype)
    return host.placed(added, leaf)


def uncompensated(coupling: Coupling, plan: Plan, params: Params, statistics: Statistics) -> dict[str, list[str]]:
    """Why the mean of what a plan removes is in no bias, for each group where that is so, by the group's name.

    Args:
      coupling: From `couple`.
      plan: From the same coupling.
      params: The parameters.
      statistics: As given to `compensated`.
    """
    rows, _ = tree.flatten(params, statistics, names=("tree `compensate`",))
    measured = {path for path, _, mean in rows if mean is not None}
    reasons: dict[str, list[str]] = {}
    for group in coupling.groups:
        if not _removed(group, coupling, plan):
            continue
        kernels = dict.fromkeys(m.path for m in group.members if m.contracted)
        without = [path for path in kernels if path not in coupling.consumers or not coupling.consumers[path].biases]
        found = [f"'{path}' adds to no bias" for path in without]
        found += [f"'{path}' has no mean" for path in kernels if path not in measured and path not in without]
        if found or not kernels:
            reasons[group.name] = found or ["no kernel consumes it"]
    return reasons


def _removed(group: Group, coupling: Coupling, plan: Plan) -> bool:
    """Does the plan remove units of a group?"""
    member = group.members[0]
    units, leaf = coupling.units[member.path][member.axis], plan.leaves[member.path]
    owned = np.flatnonzero(group.owns(units))
    kept = leaf.keep.get(member.axis)
    return kept is not None and any(not np.isin(owned, row).all() for row in np.atleast_2d(kept))
