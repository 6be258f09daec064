"""Chooses the units to keep and writes them as masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool

from jaxprune import budgets, patterns
from jaxprune._arrays import checks, tree
from jaxprune._selection import requests
from jaxprune.filters import is_kernel
from jaxprune.structured import _table
from jaxprune.structured._coupling import Coupling, Group
from jaxprune.structured._fitted import Fitted
from jaxprune.structured._scores import Aggregate, Norm, UnitScores, of_norms, of_slices
from jaxprune.typing import Masks, Params, Scores, Sparsity, Where


def masks_of_best_units(
    params: Params,
    sparsity: Sparsity | None,
    coupling: Coupling,
    *,
    scores: Scores | UnitScores | None = None,
    norm: Norm = "l2",
    aggregate: Aggregate = "mean",
    normalize: bool = True,
    budget: Callable[..., Any] = budgets.uniform,
    round_to: int = 1,
    keep_at_least: int = 1,
    alike: bool | str | Sequence[str] = False,
    where: Where = is_kernel,
) -> Masks:
    """Keeps the best units of each group of a coupling, with every slice they own; see `jaxprune.slim`.

    Args:
      params: The parameters that were coupled.
      sparsity: Fraction of each group's units to remove; `None` where the budget decides, else 0.5.
      coupling: From `couple`.
      scores: Per weight, or per unit, in place of the norm.
      norm: The criterion where no scores are given.
      aggregate: How the scores of a unit's weights become one.
      normalize: Divide by the mean over the group.
      budget: How many units each group keeps. It sees the groups as leaves, so that `by_path` matches their names.
      round_to: Keep a multiple of so many units, or all.
      keep_at_least: Keep so many units of every group.
      alike: Which groups keep equally many: those whose names differ in numbers alone, or match an expression.
      where: Picks the leaves that a norm is taken of.

    Returns:
      Masks with the structure of `params` that broadcast, `None` where a leaf owns no slice of a unit. Each layer of a
      scanned stack may keep other units, as many in each.

    Raises:
      ValueError: An option is out of range, a leaf was not coupled (the message names its path), or the coupling has
        no units.
    """
    if round_to < 1 or keep_at_least < 1:
        raise ValueError(f"`round_to` and `keep_at_least` must be at least 1; got {round_to} and {keep_at_least}.")
    if not coupling.groups:
        why = next((f": '{path}' axis {axis}, {why}" for (path, axis), why in coupling.frozen.items()), "")
        raise ValueError(f"This coupling has no units that could go{why}. Print it to see what keeps each axis whole.")
    sparsity = requests.settled(patterns.Unstructured(), sparsity, budget)
    for path, leaf in tree.flatten(params)[0]:
        if tree.is_array(leaf) and path not in coupling.units:
            raise ValueError(f"'{path}' was not coupled. Call `couple` with these parameters.")
    if scores is None:
        scores = of_norms(params, coupling, norm=norm, where=where, aggregate=aggregate, normalize=normalize)
    elif not isinstance(scores, UnitScores):
        scores = of_slices(scores, coupling, aggregate=aggregate, normalize=normalize)
    by_group = {group.name: scores.by_group[group.name] for group in coupling.groups}
    classes = _classes(coupling.groups, alike)
    counts = _counts(by_group, sparsity, coupling, budget, round_to, keep_at_least, classes)
    alive = {name: _highest(score, counts[name]) for name, score in by_group.items()}
    return masks_of_units(params, alive, coupling)


def masks_of_units(params: Params, alive: Mapping[str, Bool[Any, "..."]], coupling: Coupling) -> Masks:
    """Writes which units stay as masks.

    Args:
      params: Decides the structure.
      alive: For each group's name, which units stay: `(width,)`, or `(layers, width)` for a stack.
      coupling: From `couple` of the same parameters.

    Returns:
      Masks that broadcast: size 1 along every axis that no unit owns slices of.
    """
    missing = [group.name for group in coupling.groups if group.name not in alive]
    if missing:
        raise ValueError(f"`alive` must say of the units of every group which stay; '{missing[0]}' is missing.")
    members: dict[str, list[tuple[int, Group]]] = {}
    for group in coupling.groups:
        for member in group.members:
            members.setdefault(member.path, []).append((member.axis, group))

    def leaf(path: str, value: Any) -> Any:
        mask: Any = None
        for axis, group in members.get(path, ()):
            part = _axis_mask(coupling.units[path][axis], alive[group.name], group, axis, len(value.shape))
            mask = part if mask is None else _and(mask, part)
        # `device_put` and not `jnp.asarray`, which compiles a copy for every shape.
        return jax.device_put(mask) if isinstance(mask, np.ndarray) else mask

    return tree.map_with_path(leaf, params)


def _axis_mask(units: np.ndarray, alive: Any, group: Group, axis: int, rank: int) -> Any:
    """Which positions of one axis of a leaf stay, as a mask of the leaf's rank."""
    owned = group.owns(units)
    stays = alive[..., np.where(owned, units - group.start, 0)] | ~owned
    shape = [1] * rank
    shape[axis] = len(units)
    if group.stack is None:
        return stays.reshape(shape)
    shape[group.stack] = group.layers
    return (stays if group.stack < axis else stays.T).reshape(shape)


def _and(first: Any, second: Any) -> Any:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        # On bytes NumPy broadcasts 30 times faster than on booleans.
        return (first.view(np.uint8) & second.view(np.uint8)).view(bool)
    return first & second


def _counts(
    scores: Mapping[str, Any],
    sparsity: Any,
    coupling: Coupling,
    budget: Any,
    round_to: int,
    keep_at_least: int,
    classes: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Keep-counts of each group. The layers of a stack count as one: their sorted scores are averaged."""
    profiles = {
        name: score if score.ndim == 1 else (np if isinstance(score, np.ndarray) else jnp).sort(score, axis=-1).mean(0)
        for name, score in scores.items()
    }
    floors = [min(group.width, max(keep_at_least, min(round_to, group.width))) for group in coupling.groups]
    if isinstance(budget, Fitted):
        counts = budget(profiles, sparsity, None, floors=floors, alike=classes)
    else:
        trees = {
            name: jax.device_put(profile) if isinstance(profile, np.ndarray) else profile
            for name, profile in profiles.items()
        }
        counts = dict(budget(trees, sparsity, patterns.Unstructured()))
        for names in ([coupling.groups[i].name for i in same] for same in classes):
            mean = (sum(counts[name] for name in names) + len(names) // 2) // len(names)
            counts.update(dict.fromkeys(names, mean))
    rounded = {}
    for group, floor in zip(coupling.groups, floors, strict=True):
        count = counts[group.name]
        if round_to > 1:
            # Down under a cost, which is an upper bound; to the nearest multiple under a sparsity.
            count = (count + (0 if isinstance(budget, Fitted) else round_to // 2)) // round_to * round_to
        whole = isinstance(count, int | np.integer)
        rounded[group.name] = min(max(int(count), floor), group.width) if whole else jnp.clip(count, floor, group.width)
    return rounded


def _classes(groups: Sequence[Group], alike: bool | str | Sequence[str]) -> list[list[int]]:
    """The groups that keep equally many units, by number; one that is like no other is by itself."""
    if isinstance(alike, bool):
        keys = [(_table.pattern(group.name), group.width) if alike else group.name for group in groups]
    else:
        rules = [alike] if isinstance(alike, str) or not checks.is_a(alike, Sequence) else [*alike]
        found = [[i for i, rule in enumerate(map(tree.matcher, rules)) if rule(group.name)] for group in groups]
        keys = [places[0] if places else group.name for places, group in zip(found, groups, strict=True)]
        for i, rule in enumerate(rules):
            widths = {group.name: group.width for group, key in zip(groups, keys, strict=True) if key == i}
            if not widths:
                there = tree.some([group.name for group in groups])
                raise ValueError(f"`alike` has {rule!r}, which is the first to match no group; there are {there}.")
            if len({*widths.values()}) > 1:
                got = tree.listed([f"'{name}' {width}" for name, width in widths.items()])
                raise ValueError(
                    f"`alike` needs groups of equally many units; {rule!r} matches {got}. Say more of them."
                )
    classes: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        classes.setdefault(key, []).append(i)
    return [*classes.values()]


def _highest(scores: Any, count: Any) -> Any:
    """Exactly `count` units per layer, ties to the lowest index, NaN out first. Units are few, so they are sorted."""
    xp = np if isinstance(scores, np.ndarray) and not isinstance(count, Tracer) else jnp
    keys = xp.where(xp.isnan(scores), xp.inf, -scores)
    order = xp.argsort(keys, axis=-1, stable=True)
    rank = xp.argsort(order, axis=-1, stable=True)
    return rank < count
