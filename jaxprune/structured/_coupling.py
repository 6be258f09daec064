"""Which slices of which leaves live and die together, read off a function's jaxpr."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from jaxprune._arrays import checks, tree
from jaxprune._jaxpr.coupling.biases import Consumer, consumers
from jaxprune._jaxpr.coupling.choice import by_split
from jaxprune._jaxpr.coupling.forest import Forest, NoRule, Reason, root_reason
from jaxprune._jaxpr.coupling.label_pass import Axes, propagate, updated_leaves
from jaxprune._jaxpr.coupling.values import Labeling, Split
from jaxprune._jaxpr.tracing import Traced, options_of, trace
from jaxprune.structured import _table
from jaxprune.structured._groups import Factor, Group, Member, Units
from jaxprune.typing import Params, Where

SplitRule: TypeAlias = Literal["outer", "inner"] | Callable[[Split], Literal["outer", "inner"]]
Semantics: TypeAlias = Literal["masked", "small"]


@dataclasses.dataclass(frozen=True)
class Coupling:
    """Which slices of which leaves live and die together.

    Attributes:
      groups: In the order in which the function reads their leaves.
      units: Per path, per axis: the unit of each position, 0 for none.
      frozen: Per (path, axis) that has positions in no unit: why.
      products: Multiply-accumulates of one call: sum over terms of `times` the product of the factors.
      updated: Paths of leaves that the function also returns with new values, and where.
      consumers: Per path of a kernel that a contraction multiplies by: along which axes, and the biases that follow.
      semantics: "masked" if removing units is exact; "small" if it changes sums over the removed positions.
      divided: Per name of a group whose units are divided by 0 where they are masked: where. The masked model is then
        NaN, and the shrunk one is not.
      choices: Where the largest along an axis are taken: how many, the width of the axis, and the line. So many have
        to be left; only under "small".
    """

    groups: tuple[Group, ...]
    units: dict[str, tuple[Units, ...]]
    frozen: dict[tuple[str, int], str]
    products: tuple[tuple[int, tuple[Factor, ...]], ...]
    updated: dict[str, str]
    consumers: dict[str, Consumer]
    semantics: Semantics = "masked"
    divided: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choices: tuple[tuple[int, Factor, str], ...] = ()

    def macs(self, kept: Sequence[int] | None = None) -> float:
        """Multiply-accumulates of one call when each group keeps so many units (default: all)."""
        widths = [group.width for group in self.groups] if kept is None else kept
        total = 0.0
        for times, factors in self.products:
            product = float(times)
            for factor in factors:
                product *= factor.width(widths)
            total += product
        return total

    def macs_per_unit(self, kept: Sequence[int] | None = None) -> list[float]:
        """By how much `macs` falls when a group loses one unit, for each group."""
        widths = [group.width for group in self.groups] if kept is None else list(kept)
        slopes = [0.0] * len(self.groups)
        for times, factors in self.products:
            values = [factor.width(widths) for factor in factors]
            touched = {group for factor in factors for group, _ in factor.per_unit}
            full = times * float(np.prod(values))
            for group in touched:
                less = 1.0
                for value, factor in zip(values, factors, strict=True):
                    less *= value - sum(each for g, each in factor.per_unit if g == group)
                slopes[group] += full - times * less
        return slopes

    def __str__(self) -> str:
        ranks = {path: len(axes) for path, axes in self.units.items()}
        return "\n".join(_table.lines_of(self.groups, self.macs_per_unit(), self.frozen, ranks))


@options_of
def couple(
    fun: Callable[..., Any],
    params: Params,
    *args: Any,
    split: SplitRule = "outer",
    protect: Where | None = None,
    semantics: Semantics = "masked",
    kwargs: Mapping[str, Any] | None = None,
) -> Coupling:
    """Finds which slices of which leaves live and die together, for any JAX function.

    Traces `fun(params, *args)`, gives every position of every parameter axis a label, and joins the labels that each
    primitive ties. Nothing is run or allocated. A primitive that is not understood freezes what it touches, with a
    warning that names it.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays or `jax.ShapeDtypeStruct`s. Put running statistics here, beside the parameters, so
        that they shrink with them.
      *args: Example arguments, arrays or `jax.ShapeDtypeStruct`s; their axes and those of the outputs are kept whole.
      split: Where one axis is reshaped to two, as C to (heads, width): "outer" prunes whole heads, "inner" the same
        position of every head. A callable decides per place, from a `Split`.
      protect: Picks leaves of which no axis may be pruned.
      semantics: "masked" keeps whole whatever would make a pruned model differ from the masked one; what removed
        positions add to a softmax, a variance or a maximum over a pruned axis is kept. "small" gives what a model
        configured to be smaller would: only what is left counts, means and variances divide by it, and `top_k` takes
        the largest of it, so that the experts of a router can be pruned.
      kwargs: Keyword arguments of `fun`, by name, such as `{"train": False}`.

    Returns:
      The coupling; print it.

    Raises:
      ValueError: `split` is or returns something else than "outer" or "inner"; or the function reads none of the
        parameters.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import couple
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.ones((4, 8)), "second": jnp.ones((8, 2))}
      >>> coupling = couple(mlp, params, jnp.ones((1, 4)))
      >>> [(group.name, group.width) for group in coupling.groups]
      [('first', 8)]

    References:
      Fang et al., 2023, "DepGraph: Towards Any Structural Pruning", for the question; the answer here is a label per
      position instead of a graph of layers.
    """
    traced = trace(fun, params, *args, kwargs=kwargs)
    shielded = {i for i, p in enumerate(traced.paths) if protect is not None and protect(p, traced.leaves[i])}

    def label_leaf(forest: Forest, index: int) -> Axes:
        shape = traced.leaves[index].shape
        if index in shielded:
            return [forest.frozen(n, "protected") for n in shape]
        return [forest.fresh(n, tag=1) for n in shape]

    if semantics not in ("masked", "small"):
        raise ValueError(f"`semantics` must be 'masked' or 'small'; got {semantics!r}.")
    labeling, leaf_labels = propagate(traced, label_leaf, by_split(split), exact=semantics == "masked")
    if not labeling.used:
        raise ValueError(
            "`couple` needs a function of its parameters; this one reads none of those it is given. Call "
            "`couple(fun, params, *args)` with `fun(params, *args)`, and not a closure over a model."
        )
    coupling, reasons = _summarise(traced, labeling, leaf_labels, semantics)
    _warn(reasons)
    if coupling.divided:
        checks.warn(division(coupling.divided, "`couple`"))
    return coupling


def division(divided: Mapping[str, str], who: str) -> str:
    """What is said of groups that are divided by 0 where they are masked."""
    names = [f"'{name}' ({where})" for name, where in divided.items()]
    return (
        f"{who}: the function divides by what is 0 where units of {tree.listed(names, limit=3)} are masked. The masked "
        f"model is NaN there, and the shrunk one is not. Add a small number to the divisor, or `protect` those leaves."
    )


def _warn(reasons: Mapping[tuple[str, int], Reason]) -> None:
    """Warns of every primitive without a rule, once, with all the axes that it keeps whole."""
    touched: dict[str, list[str]] = {}
    for (path, axis), reason in reasons.items():
        if isinstance(first := root_reason(reason), NoRule):
            touched.setdefault(first.primitive, []).append(f"'{path}' axis {axis}")
    for primitive, places in touched.items():
        checks.warn(
            f"`couple` does not know the primitive '{primitive}', so it keeps whole what it touches: "
            f"{', '.join(places)}."
        )


def _summarise(
    traced: Traced, labeling: Labeling, leaf_labels: Sequence[Axes], semantics: Semantics
) -> tuple[Coupling, dict[tuple[str, int], Reason]]:
    """The coupling that a label pass found, and the reasons of what is frozen.

    Each set of labels that may be pruned is a unit. Units with equally many positions on each axis of each leaf form a
    group; a signature, the sum of a hash of each such count, finds them without comparing units in pairs.
    """
    forest = labeling.forest
    roots = {(i, a): forest.find(np.asarray(x)) for i, axes in enumerate(leaf_labels) for a, x in enumerate(axes)}
    signature = np.zeros(forest.size, np.uint64)
    for place, found in enumerate(roots.values()):
        unique, counts = np.unique(found, return_counts=True)
        signature[unique] += _hash(place, counts)
    signature[forest.reason[: forest.size] != 0] = 0
    escaped = _escaped(labeling)
    _tell_apart(labeling, roots, signature, escaped)
    _keep_integers(traced, forest, roots, signature)
    units_of = _units(signature)
    read_order = {index: position for position, index in enumerate(labeling.used)}
    places_of = _places(roots, signature, units_of)

    def order(key: int) -> tuple[tuple[int, int], int]:
        return min((read_order.get(i, len(read_order)), a) for i, a in places_of[key]), int(units_of[key][0])

    ordered = sorted(units_of, key=order)
    unit_of, start, result = np.zeros(forest.size, np.int32), 1, []
    for key in ordered:
        units = units_of[key]
        unit_of[units] = np.arange(start, start + len(units))
        stack = _stack(labeling, places_of[key], escaped, units)
        result.append(_group(traced, labeling, read_order, places_of[key], start, len(units), stack))
        start += len(units)
    result = _unique(result)
    group_of_unit = np.zeros(start, np.int32)
    for i, group in enumerate(result):
        group_of_unit[group.start : group.start + group.width] = i
    units_by_path: dict[str, tuple[Units, ...]] = {}
    reasons: dict[tuple[str, int], Reason] = {}
    for i, path in enumerate(traced.paths):
        axes = tuple(unit_of[roots[i, a]] for a in range(len(leaf_labels[i])))
        units_by_path[path] = axes
        for a, units in enumerate(axes):
            if (units == 0).any():
                reasons[path, a] = forest.why(int(roots[i, a][np.flatnonzero(units == 0)[0]]))
    coupling = Coupling(
        groups=tuple(result),
        units=units_by_path,
        frozen={place: str(reason) for place, reason in reasons.items()},
        products=_products(labeling, unit_of, group_of_unit, result),
        updated={traced.paths[i]: traced.outputs[o] for o, i in updated_leaves(traced).items()},
        consumers=consumers(traced),
        semantics=semantics,
        divided=_divided(labeling, unit_of, group_of_unit, result),
        choices=tuple(
            (choice.count, _factor(labeling, choice.labels, unit_of, group_of_unit, result), choice.source)
            for choice in labeling.choices
        ),
    )
    return coupling, reasons


def _keep_integers(
    traced: Traced, forest: Forest, roots: Mapping[tuple[int, int], np.ndarray], signature: np.ndarray
) -> None:
    """Freezes units that no floating leaf has a part in, such as the state of a generator of random numbers."""
    weighed = np.zeros(len(signature), bool)
    for (index, _), found in roots.items():
        weighed[found] |= not jax.numpy.issubdtype(traced.leaves[index].dtype, jax.numpy.integer)
    of_integers = np.flatnonzero((signature != 0) & ~weighed).astype(np.int32)
    forest.freeze(of_integers, "integers, which nothing else is tied to")
    signature[of_integers] = 0


def _divided(
    labeling: Labeling, unit_of: np.ndarray, group_of_unit: np.ndarray, groups: Sequence[Group]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for labels, where in labeling.divisions:
        units = unit_of[labeling.forest.find(np.asarray(labels))]
        for group in np.unique(group_of_unit[units[units > 0]]).tolist():
            found.setdefault(groups[group].name, where)
    return found


def _hash(place: int, counts: np.ndarray) -> np.ndarray:
    """A well-mixed number for "so many positions on that axis" (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = counts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(place + 1) * np.uint64(
            0xD1B54A32D192ED03
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _units(signature: np.ndarray) -> dict[int, np.ndarray]:
    """The units of each signature."""
    owned = np.flatnonzero(signature)
    keys, key_of_owned, sizes = np.unique(signature[owned], return_inverse=True, return_counts=True)
    by_key = owned[np.argsort(key_of_owned, kind="stable")]
    ends = np.cumsum(sizes)
    return {key: by_key[start:end] for key, start, end in zip(keys.tolist(), ends - sizes, ends, strict=True)}


def _tell_apart(
    labeling: Labeling, roots: dict[tuple[int, int], np.ndarray], signature: np.ndarray, escaped: np.ndarray
) -> None:
    """Makes groups of those units of a stack that are cut apart inside of its scan.

    Layers may keep other units of a group, but as many: then each of them leaves as many of every axis.
    """
    if not labeling.inside:
        return
    units_of = _units(signature)
    places_of = _places(roots, signature, units_of)
    stacked = np.zeros(len(signature), bool)
    for key, units in units_of.items():
        stacked[units] = _stack(labeling, places_of[key], escaped, units) is not None
    # Most axes of a body have the same positions as others.
    distinct = {found.tobytes(): found for found in map(labeling.forest.find, labeling.inside.values())}
    for place, found in enumerate(distinct.values(), start=len(roots)):
        if stacked[found].any():
            unique, counts = np.unique(found, return_counts=True)
            signature[unique] += np.where(stacked[unique], _hash(place, counts), np.uint64(0))


def _places(
    roots: dict[tuple[int, int], np.ndarray], signature: np.ndarray, units_of: dict[int, np.ndarray]
) -> dict[int, list[tuple[int, int]]]:
    """For each signature, the (leaf, axis) pairs that its units own positions of."""
    places: dict[int, list[tuple[int, int]]] = {key: [] for key in units_of}
    for place, found in roots.items():
        for key in np.unique(signature[found]).tolist():
            if key in places:
                places[key].append(place)
    return places


def _escaped(labeling: Labeling) -> np.ndarray:
    """Which roots have labels outside the bodies of scans."""
    escaped = np.zeros(labeling.forest.size, bool)
    done: set[int] = set()
    for labels in labeling.escaped:
        if id(labels) not in done:
            done.add(id(labels))
            escaped[labeling.forest.find(np.asarray(labels))] = True
    return escaped


def _stack(
    labeling: Labeling, places: list[tuple[int, int]], escaped: np.ndarray, units: np.ndarray
) -> tuple[int, int] | None:
    """The scan and the axis along which a group's leaves are stacked, if its units never leave that scan's body."""
    if escaped[units].any():
        return None
    scans = [labeling.stacked.get(index, set()) for index, _ in places]
    common = set.intersection(*scans)
    if len(common) != 1 or any(len(s) != 1 for s in scans):
        return None
    return next(iter(common))


def _group(
    traced: Traced,
    labeling: Labeling,
    read_order: dict[int, int],
    places: list[tuple[int, int]],
    start: int,
    width: int,
    stack: tuple[int, int] | None,
) -> Group:
    members = [Member(traced.paths[i], a, (i, a) in labeling.contracted) for i, a in places]
    read = [read_order.get(i, len(read_order)) for i, _ in places]
    rows = sorted(zip(members, places, read, strict=True), key=lambda row: (row[2], row[1]))
    produces = [m.path for m, (i, _), _ in rows if not m.contracted and len(traced.leaves[i].shape) > 1]
    name = produces[0] if produces else rows[0][0].path
    layers = traced.leaves[places[0][0]].shape[stack[1]] if stack is not None else 1
    return Group(name, start, width, tuple(row[0] for row in rows), stack[1] if stack is not None else None, layers)


def _unique(groups: list[Group]) -> list[Group]:
    """Makes names unique: where a leaf produces several groups, the axis is added, and then a number."""
    names = [group.name for group in groups]
    if len(set(names)) == len(names):
        return groups
    renamed = []
    for group in groups:
        axis = next(m.axis for m in group.members if m.path == group.name)
        repeated = names.count(group.name) > 1
        renamed.append(dataclasses.replace(group, name=f"{group.name}[{axis}]") if repeated else group)
    names = [group.name for group in renamed]
    return [
        dataclasses.replace(g, name=f"{g.name}#{names[:i].count(g.name)}") if names.count(g.name) > 1 else g
        for i, g in enumerate(renamed)
    ]


def _products(
    labeling: Labeling, unit_of: np.ndarray, group_of_unit: np.ndarray, groups: list[Group]
) -> tuple[tuple[int, tuple[Factor, ...]], ...]:
    factors: dict[int, Factor] = {}
    total: dict[tuple[Factor, ...], int] = {}
    for term in labeling.terms:
        for labels in term.axes:
            if id(labels) not in factors:
                factors[id(labels)] = _factor(labeling, labels, unit_of, group_of_unit, groups)
        key = tuple(sorted((factors[id(labels)] for labels in term.axes), key=repr))
        total[key] = total.get(key, 0) + term.times
    return tuple((times, key) for key, times in total.items())


def _factor(
    labeling: Labeling, labels: np.ndarray, unit_of: np.ndarray, group_of_unit: np.ndarray, groups: list[Group]
) -> Factor:
    units = unit_of[labeling.forest.find(np.asarray(labels))]
    counts = np.bincount(group_of_unit[units[units > 0]], minlength=len(groups))
    present = np.flatnonzero(counts)
    return Factor(int((units == 0).sum()), tuple((int(g), int(counts[g]) / groups[g].width) for g in present))


def abstract(params: Params) -> Params:
    """Shapes and dtypes of the array leaves; the other leaves as they are."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if tree.is_array(x) else x, params)
