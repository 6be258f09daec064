"""One walker for every question asked of a jaxpr.

A question is a table from primitive name to a rule. The walker reads each equation's operands, calls the rule, and
binds what it returns; rules of equations that hold jaxprs (`scan`, `cond`, `jit`) call `walk` again.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

Rule = Callable[..., Sequence[Any]]

_JAX = str(Path(jax.__file__).parent)


def walk(
    jaxpr: Jaxpr,
    arguments: Sequence[Any],
    rule_of: Callable[[JaxprEqn], Rule],
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
      rule_of: The rule of an equation; called as `rule(context, eqn, *operands)`, returns one value per output.
      context: Handed to every rule.
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
        outputs = rule_of(eqn)(context, eqn, *map(read, eqn.invars))
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


def opened(jaxpr: ClosedJaxpr | Jaxpr) -> tuple[Jaxpr, list[Any]]:
    """The jaxpr and its constants, for parameters that hold either kind."""
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, list(jaxpr.consts)
    return jaxpr, list(getattr(jaxpr, "consts", ()))


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many operands of a `scan` are constants and how many are carried.

    JAX 0.12 replaced the two counts by flat trees `ft_in = (constants, carry, scanned)`.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()
    return len(constants), len(carry)


def source_of(eqn: JaxprEqn) -> str | None:
    """Where the user's program made an equation, "file:line (function)", if JAX knows."""
    for frame in getattr(eqn.source_info.traceback, "frames", ()):
        if not frame.file_name.startswith(_JAX):
            return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num} ({frame.function_name})"
    return None


def bind(eqn: JaxprEqn, *operands: Any, **changes: Any) -> Sequence[Any]:
    """Applies an equation's primitive to other operands, with some parameters changed."""
    got = eqn.primitive.get_bind_params({**eqn.params, **changes})
    # JAX 0.10.0 returns the functions among the parameters apart.
    functions, params = got if isinstance(got, tuple) else ((), got)
    outputs = eqn.primitive.bind(*functions, *operands, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def held(eqn: JaxprEqn) -> ClosedJaxpr | Jaxpr:
    """The jaxpr of a call."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return eqn.params[name]
    raise TypeError(f"`{eqn.primitive.name}` holds no jaxpr under a known name; it has {sorted(eqn.params)}.")


def shape_of(atom: Any) -> tuple[int, ...]:
    """Shape of an operand or result; tokens and the like have none."""
    return getattr(atom.aval, "shape", ())
