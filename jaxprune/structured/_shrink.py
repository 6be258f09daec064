"""From a masked model to a physically smaller function and a smaller tree that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxprune._arrays import checks, host, tree
from jaxprune._masks import verbs
from jaxprune.structured._compensation import compensated, uncompensated
from jaxprune.structured._coupling import Coupling, Group, division
from jaxprune.structured._plan import LeafPlan, Plan
from jaxprune.structured._rebuild import evaluate
from jaxprune.typing import Masks, Params, Statistics


def shrink(
    fun: Callable[..., Any],
    params: Params,
    masks: Masks,
    coupling: Coupling,
    *,
    compensate: Statistics | None = None,
) -> tuple[Callable[..., Any], Params, Plan]:
    """Removes every unit whose slices are all masked.

    The small function computes what `fun(apply(params, masks), *args)` does, at any batch size, under `jit`, `grad`,
    `vmap` and `jax.export`, with symbolic sizes too. Jit it, since each call traces `fun` anew; `closed` makes a
    program of it that never does. Other masked weights stay, as zeros. At least one unit of each group stays. After
    `couple(..., semantics="small")` means and variances over a pruned axis divide by what is left of it instead.

    Args:
      fun: The model, `fun(params, *args)`, as given to `couple`.
      params: Its parameters.
      masks: Any masks of the structure of `params`, concrete.
      coupling: From `couple(fun, params, *args)`.
      compensate: What `calibrate(fun, params, batches, statistic="variance")` measured. What the masks take from a
        kernel is then put, on average, into the bias that follows it (or the running mean that is subtracted), and the
        model no longer equals the masked one. Give `params` as they were before masking. A warning names each group
        whose mean went nowhere, and why. Instead of a statistic a kernel may have the mean of each of its inputs,
        `(in,)` or the shape of its input axes, layers of a scan first, or `None`; a convolution is then taken to see
        the mean beyond the border too, where padding has zeros.

    Returns:
      `(small_fun, small_params, plan)`.

    Raises:
      ValueError: The parameters are not those that were coupled, a mean does not have the size of its kernel's
        inputs, or a `top_k` takes more than the masks leave; the message names the path.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import couple
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.ones((4, 8)), "second": jnp.ones((8, 2))}
      >>> keep = jnp.arange(8) < 5
      >>> masks = {"first": keep[None, :], "second": keep[:, None]}
      >>> coupling = couple(mlp, params, jnp.ones((1, 4)))
      >>> small, small_params, plan = shrink(mlp, params, masks, coupling)
      >>> small_params["first"].shape, float(small(small_params, jnp.ones((1, 4)))[0, 0])
      ((4, 5), 20.0)

    References:
      An et al., 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", for `compensate`.
    """
    plan = plan_of(params, masks, coupling)
    removed = [group.name for group in coupling.groups if _is_cut(group, plan)]
    if not removed:
        checks.warn(
            "`shrink` removes nothing: no unit has all its slices masked. Take the masks from "
            "`slim(params, coupling=coupling)`."
        )
    divided = {name: coupling.divided[name] for name in removed if name in coupling.divided}
    if divided:
        checks.warn(division(divided, "`shrink`"))
    if compensate is not None:
        nowhere = uncompensated(coupling, plan, params, compensate)
        if nowhere:
            reasons = "; ".join(f"'{name}' ({', '.join(why)})" for name, why in nowhere.items())
            checks.warn(f"`compensate` found nowhere to put all of the mean of: {reasons}.")
        masked = tree.map_with_path(_masked, params, masks, names=("masks",))
        params = compensated(params, masked, compensate, coupling)
    small_params = tree.map_with_path(_masked, plan.take(params), plan.take(masks), names=("masks",))
    return shrink_fun(fun, plan), small_params, plan


def shrink_fun(fun: Callable[..., Any], plan: Plan) -> Callable[..., Any]:
    """The small function of a plan, for parameters that are already small.

    Args:
      fun: The full model, `fun(params, *args, **kwargs)`.
      plan: From `shrink`, or `Plan.load`.

    Returns:
      `small_fun(small_params, *args, **kwargs)`. Each call re-traces `fun` at full size and the arguments' shapes,
      checks the plan against it, and evaluates the result small. It raises ValueError where the plan does not fit the
      function.
    """
    checks.function(fun, "fun", "model.apply")
    if not checks.is_a(plan, Plan):
        raise TypeError(f"`plan` must come from `shrink` or `Plan.load`; got {type(plan).__name__}.")

    def small_fun(params: Params, *args: Any, **kwargs: Any) -> Any:
        return evaluate(fun, plan, params, args, kwargs)

    return small_fun


def plan_of(params: Params, masks: Masks, coupling: Coupling) -> Plan:
    """Which indices stay when every unit whose slices are all masked goes.

    Args:
      params: The parameters; only their shapes are read.
      masks: Of the structure of `params`, concrete.
      coupling: From `couple`.

    Raises:
      ValueError: The parameters are not those that were coupled.
    """
    if not checks.is_a(coupling, Coupling):
        raise TypeError(f"`coupling` must come from `couple(fun, params, *args)`; got {type(coupling).__name__}.")
    rows = [(path, leaf, mask) for path, leaf, mask in tree.flatten(params, masks, names=("masks",))[0]]
    arrays = {path: (leaf, mask) for path, leaf, mask in rows if tree.is_array(leaf)}
    _check(arrays, coupling)
    alive = _alive(arrays, coupling)
    _check_choices(coupling, [int(rows[0].sum()) for rows in alive])
    leaves = {}
    for path, (leaf, _) in arrays.items():
        keep, stack = {}, None
        for axis, units in enumerate(coupling.units[path]):
            kept, layered = _kept(units, alive, coupling)
            if kept is not None:
                keep[axis] = kept
                stack = layered if layered is not None else stack
        leaves[path] = LeafPlan(tuple(leaf.shape), keep, stack)
    units = {g.name: (g.width, int(rows[0].sum())) for g, rows in zip(coupling.groups, alive, strict=True)}
    return Plan(leaves, coupling.semantics, units)


def _is_cut(group: Group, plan: Plan) -> bool:
    return any(member.axis in plan.leaves[member.path].keep for member in group.members)


def _check(arrays: dict[str, Any], coupling: Coupling) -> None:
    for path, (leaf, _) in arrays.items():
        if path not in coupling.units:
            raise ValueError(f"'{path}' was not coupled. Call `couple` with these parameters.")
        coupled = tuple(len(units) for units in coupling.units[path])
        if coupled != tuple(leaf.shape):
            raise ValueError(f"'{path}' has shape {tuple(leaf.shape)}; it was coupled with shape {coupled}.")
    missing = sorted(set(coupling.units) - set(arrays))
    if missing:
        raise ValueError(
            f"The coupling has '{missing[0]}', which the parameters lack. Call `couple` with these parameters."
        )


def _check_choices(coupling: Coupling, kept: list[int]) -> None:
    for count, factor, source in coupling.choices:
        left = factor.width(kept)
        if left < count:
            names = ", ".join(f"'{coupling.groups[group].name}'" for group, _ in factor.per_unit)
            raise ValueError(
                f"`top_k` at {source} takes {count}; the masks leave {left:g} to choose from, units of {names}. Keep "
                "more of them."
            )


def _alive(arrays: dict[str, Any], coupling: Coupling) -> list[np.ndarray]:
    """For each group, which units stay: `(layers, width)`, equally many in each row; one row if it is not a stack."""
    flat = np.zeros(1 + sum(group.width for group in coupling.groups), bool)
    stacks = [
        (group, np.zeros((group.layers, group.width), bool)) for group in coupling.groups if group.stack is not None
    ]
    for path, (leaf, mask) in arrays.items():
        keeps = _concrete(path, leaf, mask)
        for axis, units in enumerate(coupling.units[path]):
            rest = tuple(a for a in range(keeps.ndim) if a != axis)
            kept = keeps.any(axis=rest) if keeps.size else np.zeros(1, bool)
            flat[units[np.broadcast_to(kept, units.shape)]] = True
            for group, stays in stacks:
                _mark(stays, group, keeps, axis, units)
    rows = {id(group): stays for group, stays in stacks}
    return [_with_equal_counts(rows.get(id(g), flat[None, g.start : g.start + g.width])) for g in coupling.groups]


def _mark(stays: np.ndarray, group: Group, keeps: np.ndarray, axis: int, units: np.ndarray) -> None:
    """Marks the units of a stacked group that one axis of a leaf keeps, in each layer."""
    owned = group.owns(units)
    if not owned.any():
        return
    rest = tuple(a for a in range(keeps.ndim) if a not in (axis, group.stack))
    kept = keeps.any(axis=rest) if keeps.size else np.zeros((1, 1), bool)
    if group.stack is not None and group.stack > axis:
        kept = kept.T
    kept = np.broadcast_to(kept, (group.layers, len(units)))[:, owned]
    for layer, keeps_layer in zip(stays, kept, strict=True):
        layer[units[owned][keeps_layer] - group.start] = True


def _with_equal_counts(kept: np.ndarray) -> np.ndarray:
    """Keeps more units of some layers, the first ones, until all layers keep equally many, and at least one."""
    most = max(1, int(kept.sum(axis=1).max(initial=0)))
    kept = kept.copy()
    for layer in kept:
        spare = np.flatnonzero(~layer)
        layer[spare[: most - int(layer.sum())]] = True
    return kept


def _kept(units: np.ndarray, alive: list[np.ndarray], coupling: Coupling) -> tuple[np.ndarray | None, int | None]:
    """Indices of one axis that stay, and the axis of the stack if they differ by layer; `None` if all stay."""
    starts = [group.start for group in coupling.groups]
    present = np.unique(np.searchsorted(starts, units[units > 0], side="right") - 1).tolist()
    layers = max((len(alive[i]) for i in present), default=1)
    stays = np.ones((layers, len(units)), bool)
    for i in present:
        group = coupling.groups[i]
        owned = group.owns(units)
        stays[:, owned] = alive[i][:, units[owned] - group.start]
    if stays.all():
        return None, None
    rows = [np.flatnonzero(row) for row in stays]
    stack = next((coupling.groups[i].stack for i in present if coupling.groups[i].stack is not None), None)
    return (rows[0], None) if layers == 1 else (np.stack(rows), stack)


def _concrete(path: str, leaf: Any, mask: Any) -> np.ndarray:
    if isinstance(mask, Tracer):
        raise TypeError(
            f"`shrink` decides shapes, so it needs concrete masks; that of '{path}' is traced. Call it outside `jit`."
        )
    keeps = verbs.of_weights(path, leaf, mask)
    return np.ones((1,) * len(leaf.shape), bool) if keeps is None else np.asarray(keeps)


def _masked(path: str, leaf: Any, mask: Any) -> Any:
    """`masks.apply` for one leaf; a mask that keeps everything costs nothing."""
    if mask is None or isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    keeps = verbs.of_weights(path, leaf, mask)
    if keeps is not None and np.all(keeps):
        return leaf
    array = host.view(leaf)
    if keeps is None or not isinstance(array, np.ndarray):
        return verbs.apply(path, leaf, mask)
    return host.placed(np.where(keeps, array, np.zeros((), array.dtype)), leaf)
