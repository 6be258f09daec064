"""Plans the evaluation of a program in stages, so that a kernel can be changed once all that it multiplies is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from jaxprune._jaxpr.primitives import CONTRACTIONS, CONTROL
from jaxprune._jaxpr.roles import rules
from jaxprune._jaxpr.roles.capture import Capture, Record, visit
from jaxprune._jaxpr.roles.operands import Product
from jaxprune._jaxpr.roles.parts import Part
from jaxprune._jaxpr.roles.rules import Use, Value
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import shape_of

Place: TypeAlias = tuple[tuple[int, int, int], ...]
"""`(axis, start, size)` for each stacked axis of a leaf."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is changed at once: a leaf, or the part of a stacked leaf that one layer uses.

    Attributes:
      leaf: Its index.
      place: Which part.
      shape: Of that part.
    """

    leaf: int
    place: Place
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Observer:
    """Records what a unit is multiplied by; equal observers of the same variables record the same.

    Attributes:
      shape: Of the unit.
      key: What equality is decided by.
      eqn: The product, or the loop or branch that holds it.
      leaf: Index of the leaf.
      side: Which operand of the product the leaf is.
      values: The leaves in each operand.
    """

    shape: tuple[int, ...] = dataclasses.field(compare=False)
    key: Any
    eqn: JaxprEqn = dataclasses.field(compare=False)
    leaf: int = dataclasses.field(compare=False)
    side: int | None = dataclasses.field(compare=False)
    values: tuple[Value, ...] = dataclasses.field(compare=False)

    def take(self, state: Any, arrays: Sequence[Any], record: Record) -> Any:
        """Records some arrays in a state.

        Args:
          state: As `record` has it.
          arrays: The values of the observed variables.
          record: `record(product, state)`.
        """
        if (product := self.product(arrays)) is not None:
            return record(product, state)
        capture = Capture(record, [len(self.shape)] * (self.leaf + 1), {self.leaf: state})
        remaining = iter(arrays)
        operands = [atom.val if isinstance(atom, Literal) else next(remaining) for atom in self.eqn.invars]
        visit(capture, self.eqn, *zip(operands, self.values, strict=True))
        return capture.states[self.leaf]

    def product(self, arrays: Sequence[Any]) -> Product | None:
        """The product, if it is a single one; `None` of a loop or a branch.

        Args:
          arrays: The values of the observed variables.
        """
        if self.side is None:
            return None
        given = iter(arrays)
        operands = [
            _abstract(atom) if side == self.side else next(given) if isinstance(atom, Var) else atom.val
            for side, atom in enumerate(self.eqn.invars)
        ]
        part = (self.values[self.side] or {})[self.leaf]
        if part.looked_up is not None and isinstance(part.looked_up.indices, Var):
            part = dataclasses.replace(part, looked_up=part.looked_up._replace(indices=next(given)))
        return Product(self.leaf, len(self.shape), self.eqn, self.side, part, operands, _abstract(self.eqn.outvars[0]))


class Addend(NamedTuple):
    """Something that the program adds to a product, as in a residual stream.

    Attributes:
      variable: What is added.
      order: Its axes in the order of the product's.
    """

    variable: Var
    order: tuple[int, ...]


class Term(NamedTuple):
    """A unit whose product is added to something that is known at the stage.

    Attributes:
      unit: The unit.
      sources: The variables that it is multiplied by.
      observer: Of these variables.
      addend: What the product is added to.
    """

    unit: Unit
    sources: tuple[Var, ...]
    observer: Observer
    addend: Addend


class Observation(NamedTuple):
    """An observer of some variables, for units that share what it records.

    Attributes:
      sources: The variables.
      observer: Of these variables.
      units: The units.
    """

    sources: tuple[Var, ...]
    observer: Observer
    units: tuple[Unit, ...]


@dataclasses.dataclass(frozen=True)
class ProductSite:
    """A place in the program where units are multiplied by something.

    Attributes:
      position: Of the equation.
      unit: The unit.
      sources: The variables that it is multiplied by.
      observer: Of these variables.
      addend: What the product is added to, if that is looked for and known before the product.
    """

    position: int
    unit: Unit
    sources: tuple[Var, ...]
    observer: Observer
    addend: Addend | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """Evaluate up to a position, observe, and change some units.

    Attributes:
      position: Of the first equation that is not evaluated yet.
      observations: What to observe.
      units: The units to change: all that they multiply has been observed by then.
      terms: The observed units whose products are added to something.
    """

    position: int
    observations: tuple[Observation, ...]
    units: tuple[Unit, ...]
    terms: tuple[Term, ...]


def _abstract(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def product_sites(traced: Traced, closed: ClosedJaxpr, targets: Mapping[int, Use]) -> list[ProductSite]:
    """Follows the leaves through the flat program to their products."""
    jaxpr, uses, found = closed.jaxpr, rules.Uses(), list[ProductSite]()
    values: dict[Var, Value] = {variable: {} for variable in jaxpr.constvars} | dict.fromkeys(jaxpr.invars, None)
    for index, variable in enumerate(jaxpr.invars[: len(traced.leaves)]):
        values[variable] = rules.whole(index, shape_of(variable))
    for position, eqn in enumerate(jaxpr.eqns):
        operands = [{} if isinstance(atom, Literal) else values[atom] for atom in eqn.invars]
        entered = [(side, leaf) for side, value in enumerate(operands) for leaf in value or () if leaf in targets]
        name = eqn.primitive.name
        if name in CONTRACTIONS:
            found += [_product(traced, position, eqn, operands, side, leaf, targets[leaf]) for side, leaf in entered]
        elif name in CONTROL:
            leaves = dict.fromkeys(leaf for _, leaf in entered)
            found += [_control(traced, position, eqn, operands, leaf, targets[leaf]) for leaf in leaves]
        uses.arrays = [_known(atom) for atom in eqn.invars]
        values.update(zip(eqn.outvars, rules.visit(uses, eqn, *operands), strict=True))
    return found


def _known(atom: Any) -> Any:
    """A literal index; NaN for one that is only known when the program runs, also in a vector of them."""
    if len(shape_of(atom)) > 1:
        return atom  # a list of positions, to be observed with the product
    if isinstance(atom, Literal):
        return int(atom.val) if np.asarray(atom.val).dtype.kind in "iu" else atom.val
    return math.nan if not shape_of(atom) else [math.nan] * shape_of(atom)[0]


def _product(
    traced: Traced, position: int, eqn: JaxprEqn, operands: Sequence[Value], side: int, leaf: int, use: Use
) -> ProductSite:
    part = (operands[side] or {})[leaf]
    place = _place(part, use, traced.leaves[leaf].shape)
    if any(start != start for _, start, _ in place):
        raise ValueError(
            f"Which layer of the stack '{traced.paths[leaf]}' is used is computed while the program runs, so layers "
            "cannot be pruned in order. Leave it out with `where=`, or step along it with `lax.scan`."
        )
    starts = {axis: start for axis, start in part.starts.items() if axis not in use.stacked}
    part = dataclasses.replace(part, starts=starts)
    unit = _unit(leaf, traced.leaves[leaf].shape, place)
    values: tuple[Value, ...] = tuple({leaf: part} if s == side else None for s in range(len(eqn.invars)))
    if not isinstance(eqn.invars[1 - side], Var):
        raise ValueError(f"'{traced.paths[leaf]}' is multiplied by a constant. Leave it out with `where=`.")
    observer = Observer(unit.shape, _observer_key(eqn, side, part, len(unit.shape), use), eqn, leaf, side, values)
    observed = [atom for s, atom in enumerate(eqn.invars) if s != side]
    observed += [part.looked_up.indices] if part.looked_up is not None else []
    return ProductSite(position, unit, tuple(atom for atom in observed if isinstance(atom, Var)), observer)


def _observer_key(eqn: JaxprEqn, side: int, part: Part, rank: int, use: Use) -> Any:
    common = (rank, use.inputs, use.stacked, use.groups, part.unplaced, tuple(sorted(part.starts.items())))
    if part.looked_up is not None:
        common = (*common, part.looked_up._replace(indices=None), part.axes)
    if eqn.primitive.name != "dot_general":
        return id(eqn), common
    contracted, batch = eqn.params["dimension_numbers"]
    pairs = tuple(
        (theirs, part.axes[ours])
        for axes in (contracted, batch)
        for ours, theirs in zip(axes[side], axes[1 - side], strict=True)
    )
    return len(contracted[0]), pairs, common


def _control(
    traced: Traced, position: int, eqn: JaxprEqn, operands: Sequence[Value], leaf: int, use: Use
) -> ProductSite:
    """A loop or a branch that a leaf enters: all its products are observed at once, and the leaf is one unit."""
    shape = traced.leaves[leaf].shape
    unit = _unit(leaf, shape, tuple((axis, 0, shape[axis]) for axis in use.stacked))
    observer = Observer(shape, (id(eqn), leaf), eqn, leaf, None, tuple(operands))
    return ProductSite(position, unit, tuple(atom for atom in eqn.invars if isinstance(atom, Var)), observer)


def _place(part: Part, use: Use, shape: Sequence[int]) -> Place:
    """Which part of each stacked axis a product uses: all of one along which positions are looked up."""
    sizes = dict.fromkeys(use.stacked, 1)
    if part.looked_up is not None:
        sizes[part.looked_up.axis] = shape[part.looked_up.axis]
    for digit in (digit for digits in part.axes for digit in digits if digit.axis in sizes):
        sizes[digit.axis] *= digit.size
    return tuple((axis, part.starts.get(axis, 0), sizes[axis]) for axis in use.stacked)


def _unit(leaf: int, shape: Sequence[int], place: Place) -> Unit:
    sizes = {axis: size for axis, _, size in place}
    return Unit(leaf, place, tuple(sizes.get(axis, n) for axis, n in enumerate(shape)))


def stages_of(sites: Sequence[ProductSite], made: Callable[[Var], float]) -> tuple[Stage, ...]:
    """Observes as early as the sources are known, and changes a unit once everything that it multiplies was observed.

    Args:
      sites: In the order of the program.
      made: The position at which a variable is made; infinite if it does not depend on the inputs.
    """
    stages = list[Stage]()
    left = list(sites)
    while left:
        position = left[0].position
        ready = [site for site in left if site.position == position or all(made(v) < position for v in site.sources)]
        left = [site for site in left if site not in ready]
        units_of: dict[tuple[tuple[Var, ...], Observer], dict[Unit, None]] = {}
        for site in ready:
            units_of.setdefault((site.sources, site.observer), {})[site.unit] = None
        waiting = {site.unit for site in left}
        done = dict.fromkeys(site.unit for site in ready if site.unit not in waiting)
        observations = tuple(Observation(*key, tuple(units)) for key, units in units_of.items())
        terms = [
            Term(site.unit, site.sources, site.observer, site.addend)
            for site in ready
            if site.addend is not None and made(site.addend.variable) < position
        ]
        stages.append(Stage(position, observations, tuple(done), tuple(terms)))
    return tuple(stages)
