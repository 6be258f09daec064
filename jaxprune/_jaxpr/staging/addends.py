"""Finds what a program adds to a product: the residual stream that a block's last kernel writes to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from jax.extend.core import Jaxpr, JaxprEqn, Var

from jaxprune._jaxpr.staging.stages import Addend
from jaxprune._jaxpr.walker import shape_of


class Addends:
    """What the products of a flat program are added to.

    Args:
      jaxpr: The program.
      made: Where each variable is made, but the inputs.
      varying: The variables that depend on the inputs.
    """

    def __init__(self, jaxpr: Jaxpr, made: Mapping[Var, int], varying: Collection[Var]):
        self._eqns, self._made, self._varying = jaxpr.eqns, made, varying
        self._readers: dict[Var, list[JaxprEqn]] = {}
        for eqn in jaxpr.eqns:
            for atom in eqn.invars:
                if isinstance(atom, Var):
                    self._readers.setdefault(atom, []).append(eqn)
        self._returned = {atom for atom in jaxpr.outvars if isinstance(atom, Var)}

    def of(self, position: int) -> Addend | None:
        """What is added to an equation's result, if known before it. Parameters that are added are passed over."""
        variable = self._eqns[position].outvars[0]
        order = tuple(range(len(shape_of(variable))))
        while len(readers := self._readers.get(variable, ())) == 1 and variable not in self._returned:
            eqn = readers[0]
            if eqn.primitive.name == "transpose":
                order = tuple(order[axis] for axis in eqn.params["permutation"])
            elif eqn.primitive.name == "add":
                varying = [atom for atom in eqn.invars if isinstance(atom, Var) and atom in self._varying]
                others = [atom for atom in varying if atom is not variable]
                if others:
                    known = self._made.get(others[0], -1) < position and shape_of(others[0]) == shape_of(variable)
                    return Addend(others[0], _inverse(order)) if known else None
            elif eqn.primitive.name != "convert_element_type":
                return None
            variable = eqn.outvars[0]
        return None


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))
