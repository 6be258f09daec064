"""One walker for every question asked of a jaxpr.

A question is a visitor, most often one that looks a rule up in a table by the primitive's name. The walker reads each
equation's operands, calls the visitor, and binds what it returns; rules of equations that hold jaxprs (`scan`, `cond`,
`jit`) call `walk` again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from jaxprune._jaxpr.symbols import Shape

Rule: TypeAlias = Callable[..., Sequence[Any]]
"""Called as `rule(context, eqn, *operands)`; returns one value per output."""

_JAX = str(Path(jax.__file__).parent)


def walk(
    jaxpr: Jaxpr,
    arguments: Sequence[Any],
    visit: Rule,
    context: Any,
    *,
    literal: Callable[[Any], Any],
    constants: Sequence[Any] = (),
    keep: dict[Var, Any] | None = None,
) -> list[Any]:
    """Interprets a jaxpr.

    Args:
      jaxpr: What to walk.
      arguments: One abstract or concrete value per input.
      visit: Called for each equation, in order.
      context: The first argument of `visit`.
      literal: Makes a value of a `Literal`'s own value.
      constants: One value per `constvar`.
      keep: If given, receives every value; otherwise a value is dropped after its last use, so that memory follows
        the widest point of the program, not its length.

    Returns:
      One value per output.
    """
    environment: dict[Var, Any] = {} if keep is None else keep
    last_use = _last_uses(jaxpr) if keep is None else {}

    def read(atom: Any) -> Any:
        return literal(atom.val) if isinstance(atom, Literal) else environment[atom]

    for variable, value in zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True):
        environment[variable] = value
    for position, eqn in enumerate(jaxpr.eqns):
        outputs = visit(context, eqn, *map(read, eqn.invars))
        for variable, value in zip(eqn.outvars, outputs, strict=True):
            environment[variable] = value
        for variable in last_use.get(position, ()):
            del environment[variable]
    return [read(atom) for atom in jaxpr.outvars]


def _last_uses(jaxpr: Jaxpr) -> dict[int, list[Var]]:
    last = {out: i for i, eqn in enumerate(jaxpr.eqns) for out in eqn.outvars}
    last |= {atom: i for i, eqn in enumerate(jaxpr.eqns) for atom in eqn.invars if not isinstance(atom, Literal)}
    for atom in jaxpr.outvars:
        if not isinstance(atom, Literal):
            last.pop(atom, None)
    drop: dict[int, list[Var]] = {}
    for variable, position in last.items():
        drop.setdefault(position, []).append(variable)
    return drop


def jaxpr_and_constants(jaxpr: ClosedJaxpr | Jaxpr) -> tuple[Jaxpr, list[Any]]:
    """The jaxpr and its constants, for parameters that hold either kind."""
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, list(jaxpr.consts)
    return jaxpr, list(getattr(jaxpr, "consts", ()))


def source_of(eqn: JaxprEqn) -> str | None:
    """Where the user's program made an equation, "file:line (function)", if JAX knows."""
    for frame in getattr(eqn.source_info.traceback, "frames", ()):
        if not frame.file_name.startswith(_JAX):
            return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num} ({frame.function_name})"
    return None


def source_among(equations: Sequence[JaxprEqn]) -> str:
    """Where the user's program made an equation or, of what a library made, one of those that hold it."""
    return next(filter(None, map(source_of, equations)), "an unknown line")


def bind(eqn: JaxprEqn, *operands: Any, **changes: Any) -> Sequence[Any]:
    """Applies an equation's primitive to other operands, with some parameters changed."""
    got = eqn.primitive.get_bind_params({**eqn.params, **changes})
    # JAX 0.10.0 returns the functions among the parameters apart.
    functions, params = got if isinstance(got, tuple) else ((), got)
    outputs = eqn.primitive.bind(*functions, *operands, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def shape_of(atom: Any) -> Shape:
    """Shape of an operand or result; tokens and the like have none."""
    return getattr(atom.aval, "shape", ())


def dtype_of(atom: Any) -> Any:
    """Dtype of an operand or result; tokens and the like have none."""
    return getattr(atom.aval, "dtype", None)
