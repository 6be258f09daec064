"""One score per unit, from the scores of all the weights it owns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxprune._arrays import host, tree
from jaxprune.filters import is_kernel
from jaxprune.structured._coupling import Coupling, Group, Member
from jaxprune.typing import Params, Scores, Where

Aggregate: TypeAlias = Literal["mean", "sum", "max"]
"""How the scores of the slices of a unit are combined into one."""
Norm: TypeAlias = Literal["l1", "l2"]
UnitArray: TypeAlias = Float[Any, "..."]
"""`(width,)`, or `(layers, width)` where each layer of a scan may keep its own units."""


@dataclasses.dataclass(frozen=True)
class UnitScores:
    """One score per unit of each group, by the group's name, higher = more worth keeping."""

    by_group: Mapping[str, UnitArray]


def of_slices(
    scores: Scores, coupling: Coupling, *, aggregate: Aggregate = "mean", normalize: bool = True
) -> UnitScores:
    """Scores units by the weights they own.

    Args:
      scores: One score per weight, `None` for leaves that do not count; from `jaxprune.scores` or your own.
      coupling: From `couple` of the same parameters.
      aggregate: The mean, the sum or the maximum over all weights of a unit, whichever leaves they lie in.
      normalize: Divide by the mean over the group, so that groups compare whatever their size and depth.

    Raises:
      ValueError: No leaf of a group has scores; the message names the group.
    """
    leaves = {path: _float32(score) for path, score in tree.flatten(scores)[0] if tree.is_array(score)}
    return _of_leaves(leaves, coupling, None, aggregate, normalize)


def of_norms(
    params: Params,
    coupling: Coupling,
    *,
    norm: Norm = "l2",
    where: Where = is_kernel,
    aggregate: Aggregate = "mean",
    normalize: bool = True,
) -> UnitScores:
    """Scores units by the size of the weights they own; see `of_slices`.

    Args:
      params: The parameters that were coupled.
      coupling: From `couple`.
      norm: `"l1"` takes magnitudes, `"l2"` their squares.
      where: Picks the leaves that count.
      aggregate: How the weights of a unit become one number.
      normalize: Divide by the mean over the group.
    """
    chosen = tree.flatten(tree.choose(where, params))[0]
    leaves = {path: _float32(leaf) for path, leaf in chosen if tree.is_array(leaf)}
    return _of_leaves(leaves, coupling, norm, aggregate, normalize)


def _of_leaves(
    leaves: Mapping[str, Any], coupling: Coupling, norm: Norm | None, aggregate: Aggregate, normalize: bool
) -> UnitScores:
    if norm not in (None, "l1", "l2") or aggregate not in ("mean", "sum", "max"):
        raise ValueError(
            f"`norm` must be 'l1' or 'l2' and `aggregate` 'mean', 'sum' or 'max'; got {norm!r} and {aggregate!r}."
        )
    xp = _namespace(leaves.values())
    found = {group.name: _pool(group, leaves, coupling, norm, aggregate, xp) for group in coupling.groups}
    return UnitScores({name: _normalized(x, xp) if normalize else x for name, x in found.items()})


def geometric_median(params: Params, coupling: Coupling, *, where: Where = is_kernel) -> UnitScores:
    """Scores units by their summed distance to the others of their group: the most replaceable go first.

    Args:
      params: Any pytree.
      coupling: From `couple` of the same parameters.
      where: Picks the leaves whose slices are compared.

    References:
      He et al., 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration".
    """
    leaves = {path: _float32(leaf) for path, leaf in tree.flatten(tree.choose(where, params))[0]}
    xp = _namespace(leaves.values())
    found = {}
    for group in coupling.groups:
        total: Any = None
        for values, places in _slices(group, leaves, coupling):
            rows = xp.moveaxis(values, (0, -1), (-2, -1))
            for place in _rounds(places, group.width):
                part = rows[..., place]
                part = part.reshape(group.layers, -1, group.width)
                squares = (part * part).sum(1)
                products = xp.einsum("lrm,lrn->lmn", part, part)
                distances = squares[:, :, None] + squares[:, None, :] - 2 * products
                apart = xp.sqrt(xp.maximum(distances, 0)).sum(-1)
                total = apart if total is None else total + apart
        if total is None:
            raise ValueError(f"No leaf picked by `where` produces the units of '{group.name}'.")
        found[group.name] = _normalized(total if group.stack is not None else total[0], xp)
    return UnitScores(found)


def of_outputs(values: Params, coupling: Coupling) -> UnitScores:
    """Scores units by a statistic of what they put out, such as its variance.

    Args:
      values: For kernels, by the structure of the parameters, one number per output: `(out,)`, or an array that
        broadcasts against the kernel, as `scores.variance` returns; `None` elsewhere.
      coupling: From `couple` of the same parameters.

    Raises:
      ValueError: A group's units are put out by no leaf that has values; the message names the group.

    Examples:
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.array([[3.0, 1.0], [0.0, 1.0]]), "second": jnp.ones((2, 2))}
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> moments = jaxprune.calibrate(mlp, params, [x], statistic="variance")
      >>> scores = of_outputs(jaxprune.scores.variance(params, moments), jaxprune.couple(mlp, params, x))
      >>> print(scores.by_group["first"])
      [2. 0.]
    """
    leaves = {path: _float32(leaf) for path, leaf in tree.flatten(values)[0] if tree.is_array(leaf)}
    xp = _namespace(leaves.values())
    found = {}
    for group in coupling.groups:
        sums, count = xp.zeros((group.layers, group.width), np.float32), 0
        for member in group.members:
            axes = coupling.units[member.path]
            units = axes[member.axis]
            value = None if member.contracted else leaves.get(member.path)
            if value is None or not _is_per_position(value, axes, member):
                continue
            owned = group.owns(units)
            pooled = value if value.shape == units.shape else value.mean(_others(value.ndim, member, group))
            pooled = xp.broadcast_to(_layers_first(pooled, member, group), (group.layers, len(units)))
            sums = _add(sums, units[owned] - group.start, pooled[:, owned], xp)
            count += int(owned.sum()) // group.width
        if not count:
            raise ValueError(f"No leaf with values puts out the units of '{group.name}'. Leave it out with `protect=`.")
        found[group.name] = _normalized((sums if group.stack is not None else sums[0]) / count, xp)
    return UnitScores(found)


def _is_per_position(value: Any, axes: tuple[np.ndarray, ...], member: Member) -> bool:
    """Whether there is a value for each position of a member's axis, in one axis or at the rank of the leaf."""
    positions = len(axes[member.axis])
    return value.shape == (positions,) or (value.ndim == len(axes) and value.shape[member.axis] == positions)


def _others(rank: int, member: Member, group: Group) -> tuple[int, ...]:
    """The axes of a leaf that are neither the units' nor the layers'."""
    return tuple(axis for axis in range(rank) if axis not in (member.axis, group.stack))


def _layers_first(pooled: Any, member: Member, group: Group) -> Any:
    """What is left of a leaf without its other axes, as `(layers, positions)`; one row if it is not stacked."""
    if pooled.ndim == 1:
        return pooled[None]
    return pooled.T if group.stack is not None and group.stack > member.axis else pooled


def _reduced(values: Any, rest: tuple[int, ...], norm: Norm | None, aggregate: Aggregate, xp: Any) -> Any:
    """Sum or maximum of scores, magnitudes or squares over some axes; the sum of squares makes no copy of the array."""
    if norm == "l2" and aggregate != "max" and xp is np:
        names = "abcdefghijkl"[: values.ndim]
        left = "".join(name for axis, name in enumerate(names) if axis not in rest)
        return np.einsum(f"{names},{names}->{left}", values, values)
    if norm is not None:
        values = xp.abs(values) if norm == "l1" else xp.square(values)
    return values.max(rest) if aggregate == "max" else values.sum(rest)


def _pool(
    group: Group, leaves: Mapping[str, Any], coupling: Coupling, norm: Norm | None, aggregate: Aggregate, xp: Any
) -> UnitArray:
    total, weights = xp.zeros((group.layers, group.width), np.float32), 0
    for member in group.members:
        if member.path not in leaves:
            continue
        score, units = leaves[member.path], coupling.units[member.path][member.axis]
        owned = group.owns(units)
        pooled = _reduced(score, _others(score.ndim, member, group), norm, aggregate, xp)
        pooled, places = _layers_first(pooled, member, group)[:, owned], units[owned] - group.start
        if aggregate == "max":
            total = _maximum(total, places, pooled, weights == 0, xp)
        else:
            total = _add(total, places, pooled, xp)
        weights += score.size // len(units) * int(owned.sum()) // group.width
    if not weights:
        raise ValueError(f"No leaf of the group '{group.name}' has scores. Score one, or leave it out with `protect=`.")
    if aggregate == "mean":
        total = total / np.float32(weights / group.layers)
    return total if group.stack is not None else total[0]


def _slices(group: Group, leaves: Mapping[str, Any], coupling: Coupling) -> Iterator[tuple[Any, np.ndarray]]:
    """The leaves that produce a group's units, with their axis last and the stack's first, and each position's unit."""
    for member in group.members:
        if member.path not in leaves or member.contracted:
            continue
        value, units = leaves[member.path], coupling.units[member.path][member.axis]
        stack = [] if group.stack is None else [group.stack]
        value = value.transpose(*stack, *_others(value.ndim, member, group), member.axis)
        owned = group.owns(units)
        yield value[..., owned], units[owned] - group.start


def _rounds(places: np.ndarray, width: int) -> list[np.ndarray]:
    """Positions of every unit's first slice, of every unit's second slice, and so on."""
    order = np.argsort(places, kind="stable").reshape(width, -1)
    return list(order.T)


def _add(total: Any, places: np.ndarray, values: Any, xp: Any) -> Any:
    if np.array_equal(places, np.arange(total.shape[-1])):
        return total + values
    if xp is jnp:
        return total.at[..., places].add(values)
    np.add.at(total.T, places, values.T)
    return total


def _maximum(total: Any, places: np.ndarray, values: Any, first: bool, xp: Any) -> Any:
    if first:
        total = xp.full_like(total, -np.inf)
    if xp is jnp:
        return total.at[..., places].max(values)
    np.maximum.at(total.T, places, values.T)
    return total


def _normalized(scores: UnitArray, xp: Any) -> UnitArray:
    mean = xp.abs(scores).mean()
    return scores / xp.where(mean > 0, mean, xp.ones_like(mean))


def _float32(leaf: Any) -> Any:
    """In host memory where it is there already, so that nothing is compiled."""
    array = host.view(leaf)
    return array.astype(np.float32, copy=False) if isinstance(array, np.ndarray) else array.astype(jnp.float32)


def _namespace(leaves: Any) -> Any:
    return np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
