"""Sizes that are symbols, as `jax.export` gives them, and what stands for them.

The label pass takes numbers for them. What is pruned never has a symbolic size, so any number that meets the user's
constraints gives the labels that all others give.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from jax import export
from jax.extend.core import JaxprEqn, Literal, Var

Shape: TypeAlias = tuple[Any, ...]
"""Sizes, each an `int` or an expression of symbols, whose type JAX does not name."""

_OPERATIONS = {"floordiv": operator.floordiv, "mod": operator.mod, "max": max, "min": min}
_PRIMES = (101, 103, 107, 109, 113, 97, 61, 31, 13, 7)
# Few widths share a large prime factor, so no reshape takes a stand-in for one of them.
_CANDIDATES = (*(m * p for m in (*range(1, 17), *(2**k for k in range(5, 11))) for p in _PRIMES), *range(1, 129))


def is_symbolic(sizes: Iterable[Any]) -> bool:
    """Whether any of several sizes is a symbol or an expression of some."""
    return any(map(export.is_symbolic_dim, sizes))


class Sizes:
    """What stands for each symbol: a number, or an expression of other symbols."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self._known: dict[str, Any] = {}

    @property
    def any(self) -> bool:
        """Whether there are symbols."""
        return bool(self._values)

    def of(self, size: Any) -> Any:
        """What stands for a symbolic size, or for those in a tuple; anything else as it is."""
        if type(size) is tuple:
            found = tuple(map(self.of, size))
            return size if all(old is new for old, new in zip(size, found, strict=True)) else found
        if not export.is_symbolic_dim(size):
            return size
        text = str(size)
        if text not in self._known:
            self._known[text] = _value(text, self._values)
        return self._known[text]

    def view(self, eqn: JaxprEqn) -> JaxprEqn:
        """An equation with other sizes of its operands, results and parameters; itself if none of them is symbolic."""
        if not self.any:
            return eqn
        params = {name: self.of(value) for name, value in eqn.params.items()}
        atoms = [self._atom(atom) for atom in (*eqn.invars, *eqn.outvars)]
        replaced = zip((*eqn.params.values(), *eqn.invars, *eqn.outvars), (*params.values(), *atoms), strict=True)
        if all(old is new for old, new in replaced):
            return eqn
        return eqn.replace(invars=atoms[: len(eqn.invars)], outvars=atoms[len(eqn.invars) :], params=params)

    def _atom(self, atom: Any) -> Any:
        shape = getattr(atom.aval, "shape", ())
        if isinstance(atom, Literal) or not is_symbolic(shape):
            return atom
        return Var(atom.aval.update(shape=self.of(shape)))


def stand_ins(sizes: Iterable[Any]) -> Sizes:
    """A number for each symbol of a function's arguments, which meets the constraints that the user stated.

    Raises:
      ValueError: No numbers that were tried meet the constraints.
    """
    symbolic = [size for size in sizes if export.is_symbolic_dim(size)]
    constraints = _constraints(symbolic)
    names = sorted({name for text in (*symbolic, *constraints) for name in _names(text)})
    chosen = _extended({}, names, [(text, _names(text)) for text in constraints])
    if chosen is None:
        raise ValueError(
            f"The symbolic sizes {', '.join(names)} need numbers that meet {', '.join(constraints)}; none of those "
            f"tried, up to {max(_CANDIDATES)}, do. State wider constraints."
        )
    return Sizes(chosen)


def solved(sizes: Sequence[Any], given: Sequence[Any]) -> Sizes:
    """What each symbol is where arguments have the given sizes in place of these.

    Raises:
      ValueError: No value of the symbols gives these sizes, or it breaks the constraints that the user stated.
    """
    symbolic = [size for size in sizes if export.is_symbolic_dim(size)]
    pairs = [(str(size), other) for size, other in zip(sizes, given, strict=True) if export.is_symbolic_dim(size)]
    values: dict[str, Any] = {}
    for text, other in sorted(pairs, key=lambda pair: len(_names(pair[0]))):
        if len(unknown := _names(text) - set(values)) == 1:
            (name,) = unknown
            first, second = (_value(text, {**values, name: n}) for n in (0, 1))
            values[name] = (other - first) // (second - first or 1)
    missing = {name for text, _ in pairs for name in _names(text)} - set(values)
    constraints = [] if is_symbolic(given) else _constraints(symbolic)
    if (
        missing
        or any(_value(text, values) != other for text, other in pairs)
        or not all(_value(text, values) for text in constraints)
    ):
        under = f", under {', '.join(constraints)}," if constraints else ""
        wanted, got = (", ".join(map(str, side)) for side in zip(*pairs, strict=True))
        raise ValueError(f"The sizes {wanted} cannot be {got}{under} whatever the symbols are. Give other arguments.")
    return Sizes(values)


def _constraints(sizes: Iterable[Any]) -> list[str]:
    """The constraints on the symbols of several sizes, as the user wrote them."""
    lines = [line for size in sizes for line in str(size.scope).partition(" with constraints:")[2].splitlines()]
    return sorted({line.strip() for line in lines} - {""})


def _names(text: Any) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", str(text))) - set(_OPERATIONS)


def _value(text: str, values: Mapping[str, Any]) -> Any:
    """The value of an expression in the syntax of `jax.export.symbolic_shape`, which is Python's but for powers."""
    return eval(text.replace("^", "**"), {"__builtins__": {}, **_OPERATIONS}, dict(values))


def _extended(
    chosen: dict[str, int], names: Sequence[str], constraints: Sequence[tuple[str, set[str]]]
) -> dict[str, int] | None:
    """Numbers for all symbols, given those of the first; different ones where the constraints let them."""
    if not names:
        return chosen
    decided = [text for text, used in constraints if names[0] in used and used <= {*chosen, names[0]}]
    for number in (*(n for n in _CANDIDATES if n not in chosen.values()), *chosen.values()):
        with_this = {**chosen, names[0]: number}
        if all(_value(text, with_this) for text in decided):
            found = _extended(with_this, names[1:], constraints)
            if found is not None:
                return found
    return None
