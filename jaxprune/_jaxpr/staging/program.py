"""A traced function that is evaluated stage by stage, while its parameters change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jax.extend.core import ClosedJaxpr, Var

from jaxprune._jaxpr.roles.rules import Use
from jaxprune._jaxpr.staging.addends import Addends
from jaxprune._jaxpr.staging.flattening import flatten
from jaxprune._jaxpr.staging.segment import Segment
from jaxprune._jaxpr.staging.stages import ProductSite, product_sites, stages_of
from jaxprune._jaxpr.tracing import Traced


class Program:
    """A traced function, cut into stages.

    Args:
      traced: From `trace`.
      targets: How the leaves that will change are used, by index.
      with_addends: Whether to find what products are added to.

    Attributes:
      stages: In order.
      inputs: The variables of the arguments.
      constants: What the program holds besides.

    Raises:
      ValueError: Which layer of a stack a product uses is not known; the message names the path.
    """

    def __init__(self, traced: Traced, targets: Mapping[int, Use], with_addends: bool = False):
        closed = flatten(traced, targets)
        self._eqns = closed.jaxpr.eqns
        self._leaves, self.inputs = closed.jaxpr.invars[: len(traced.leaves)], closed.jaxpr.invars[len(traced.leaves) :]
        self.constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        self._made = {variable: i for i, eqn in enumerate(self._eqns) for variable in eqn.outvars}
        self._varying = _varying(closed, self.inputs)
        sites = product_sites(traced, closed, targets)
        if with_addends:
            addends = Addends(closed.jaxpr, self._made, self._varying)
            sites = [s if s.observer.side is None else replace(s, addend=addends.of(s.position)) for s in sites]
        self.stages = stages_of(sites, lambda v: self._made.get(v, -1) if v in self._varying else math.inf)
        self._last = self._last_uses(sites)
        self._segments: dict[int, Segment] = {}

    def leaves(self, arrays: Iterable[Any]) -> dict[Var, Any]:
        """The variables of the parameters with their values."""
        return dict(zip(self._leaves, arrays, strict=True))

    def segment(self, number: int) -> Segment:
        """The equations from the stage before to a stage, without those that no stage needs."""
        if number not in self._segments:
            start, stop = self.stages[number - 1].position if number else 0, self.stages[number].position
            chosen = [i for i in range(start, stop) if self._is_needed(i)]
            outputs = dict.fromkeys(v for i in chosen for v in self._eqns[i].outvars if self._last.get(v, -1) >= stop)
            observed = (v for observation in self.stages[number].observations for v in observation.sources)
            outputs |= dict.fromkeys(v for v in observed if v in self._made and v not in self._varying)
            eqns = [self._eqns[i] for i in self._with_parameters_only(chosen, outputs)]
            self._segments[number] = Segment(eqns, tuple(outputs))
        return self._segments[number]

    def keeps(self, variable: Var, position: int) -> bool:
        """Whether a value is needed from a position on."""
        return self._last.get(variable, -1) >= position

    def _is_needed(self, position: int) -> bool:
        return any(v in self._last and v in self._varying for v in self._eqns[position].outvars)

    def _with_parameters_only(self, chosen: Sequence[int], outputs: Iterable[Var]) -> list[int]:
        """Adds the equations that depend on parameters alone: parameters change, so their results are not kept."""
        found = set(chosen)
        queue = [*outputs, *(v for i in chosen for v in _variables(self._eqns[i].invars))]
        while queue:
            variable = queue.pop()
            position = self._made.get(variable)
            if position is not None and variable not in self._varying and position not in found:
                found.add(position)
                queue += _variables(self._eqns[position].invars)
        return sorted(found)

    def _last_uses(self, sites: Sequence[ProductSite]) -> dict[Var, int]:
        """Where each value is needed last for what the stages observe."""
        last: dict[Var, int] = {}
        for site in sites:
            needed = site.sources if site.addend is None else (*site.sources, site.addend.variable)
            last |= {variable: max(site.position, last.get(variable, -1)) for variable in needed}
        for position in reversed(range(max((site.position for site in sites), default=0))):
            if any(v in last for v in self._eqns[position].outvars):
                for variable in _variables(self._eqns[position].invars):
                    last[variable] = max(position, last.get(variable, -1))
        return last


class Run:
    """One batch on its way through a program.

    Args:
      program: The program.
      inputs: Arrays of the arguments.
    """

    def __init__(self, program: Program, inputs: Iterable[Any]):
        self.program = program
        self._values: dict[Var, Any] = dict(zip(program.inputs, inputs, strict=True))

    def advance(self, number: int, leaves: Iterable[Any]) -> None:
        """Evaluates what lies between a stage and the one before it, and drops what is not needed any more."""
        segment = self.program.segment(number)
        known = self.program.constants | self.program.leaves(leaves) | self._values
        self._values.update(zip(segment.outputs, segment([known[v] for v in segment.inputs]), strict=True))
        stage = self.program.stages[number]
        needed = {v for observation in stage.observations for v in observation.sources}
        needed |= {term.addend.variable for term in stage.terms}
        self._values = {
            v: value for v, value in self._values.items() if v in needed or self.program.keeps(v, stage.position)
        }

    def values(self, sources: Sequence[Var], leaves: Iterable[Any]) -> list[Any]:
        """The values of what a stage observes."""
        known = self.program.constants | self.program.leaves(leaves) | self._values
        return [known[variable] for variable in sources]


def _varying(closed: ClosedJaxpr, inputs: Sequence[Var]) -> set[Var]:
    """What depends on the inputs."""
    varying = set(inputs)
    for eqn in closed.jaxpr.eqns:
        if any(variable in varying for variable in _variables(eqn.invars)):
            varying.update(eqn.outvars)
    return varying


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [atom for atom in atoms if isinstance(atom, Var)]
