"""Runs a traced program without the code that it was traced from, also at other sizes in place of its symbols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun, jaxprs_in_params

from jaxprune._jaxpr.primitives import inner_jaxpr
from jaxprune._jaxpr.symbols import Sizes
from jaxprune._jaxpr.walker import bind, dtype_of, jaxpr_and_constants, shape_of, walk

_CUSTOM = ("custom_jvp_call", "custom_vjp_call")


def as_function(program: ClosedJaxpr, sizes: Sizes) -> Callable[..., Sequence[Any]]:
    """A traced program as a function of flat arrays.

    Args:
      program: From `trace`.
      sizes: What stands for its symbols.
    """
    if not sizes.any:
        return jaxpr_as_fun(program)

    # What is inside has its derivative rules at symbolic sizes alone, so the derivative of the whole is taken there.
    @jax.custom_jvp
    def at_sizes(*arrays: Any) -> list[Any]:
        return _run(sizes, program, arrays)

    @at_sizes.defjvp
    def rule(arrays: tuple[Any, ...], directions: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        varied = [i for i, aval in enumerate(program.in_avals) if _is_inexact(aval)]

        def derivative(arrays: Sequence[Any], directions: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            def function(*xs: Any) -> list[Any]:
                filled = list(arrays)
                for i, x in zip(varied, xs, strict=True):
                    filled[i] = x
                return list(jaxpr_as_fun(program)(*filled))

            outputs, tangents = jax.jvp(function, [arrays[i] for i in varied], directions)
            return outputs, [x for x, aval in zip(tangents, program.out_avals, strict=True) if _is_inexact(aval)]

        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
        traced = jax.make_jaxpr(derivative)(shapes, [shapes[i] for i in varied])
        results = _run(sizes, traced, [*arrays, *(directions[i] for i in varied)])
        count = len(program.out_avals)
        outputs, tangents = results[:count], iter(results[count:])
        return outputs, [next(tangents) if _is_inexact(x) else np.zeros(x.shape, jax.dtypes.float0) for x in outputs]

    return at_sizes


def _is_inexact(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)


def _run(sizes: Sizes, jaxpr: ClosedJaxpr | Jaxpr, operands: Sequence[Any]) -> list[Any]:
    jaxpr, constants = jaxpr_and_constants(jaxpr)
    return walk(jaxpr, operands, _visit, sizes, literal=lambda value: value, constants=constants)


def _visit(sizes: Sizes, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    if not _is_symbolic(sizes, eqn):
        return bind(eqn, *operands)
    if eqn.primitive.name in _CUSTOM:
        jaxpr, constants = inner_jaxpr(eqn)
        return _run(sizes, ClosedJaxpr(jaxpr, constants), operands)
    if eqn.primitive.name == "custom_lin":
        raise ValueError(
            "A gradient passes a `jax.custom_vjp` function, whose rule is closed for its symbolic sizes. Close the "
            "function for sizes that are numbers to take gradients."
        )
    if eqn.primitive.name == "dim_as_value":
        return [jnp.asarray(sizes.of(eqn.params["dim"]), dtype_of(eqn.outvars[0]))]
    return bind(eqn, *operands, **{name: _resized(sizes, value) for name, value in eqn.params.items()})


def _is_symbolic(sizes: Sizes, eqn: JaxprEqn) -> bool:
    """Whether symbols are among the sizes of an equation, or in a jaxpr that it holds."""
    return sizes.view(eqn) is not eqn or any(
        _is_symbolic(sizes, inner) for jaxpr in jaxprs_in_params(eqn.params) for inner in jaxpr.eqns
    )


def _resized(sizes: Sizes, value: Any) -> Any:
    """A parameter of an equation at other sizes; a jaxpr is traced again from its own equations."""
    if type(value) is tuple:
        return tuple(_resized(sizes, item) for item in value)
    if not isinstance(value, ClosedJaxpr | Jaxpr):
        return sizes.of(value)
    jaxpr, _ = jaxpr_and_constants(value)
    shapes = [jax.ShapeDtypeStruct(sizes.of(shape_of(v)), dtype_of(v)) for v in jaxpr.invars]
    again = jax.make_jaxpr(lambda *xs: _run(sizes, value, xs))(*shapes)
    return again if isinstance(value, ClosedJaxpr) else again.jaxpr
