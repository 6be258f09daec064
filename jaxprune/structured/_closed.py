"""A function as a closed program, for what runs it without its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._arrays import tree
from jaxprune._jaxpr.programs import as_function
from jaxprune._jaxpr.symbols import Sizes, is_symbolic, solved
from jaxprune._jaxpr.tracing import inputs_of, options_of, trace
from jaxprune.typing import Params


@options_of
def closed(
    fun: Callable[..., Any], params: Params, *args: Any, kwargs: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Traces a function once, to a program that no longer runs its code.

    A small function traces the model again at every call. Where the model's framework has been changed since, as some
    exporters do while they trace, close the function before. It works under `jit`, `grad`, `vmap` and `jax.export`.

    Args:
      fun: Any `fun(params, *args)`, such as a small function from `shrink`.
      params: Its parameters; their arrays may be `jax.ShapeDtypeStruct`s.
      *args: Arguments of the shapes that the program is for, likewise. Their sizes may be symbols, as
        `jax.export.symbolic_shape` makes them; the program then takes any sizes in their place.
      kwargs: Keyword arguments of `fun`, by name, such as `{"train": False}`.

    Returns:
      `program(params, *args, **kwargs)`; jit it. What is no array, such as a flag, has to be what it was here. It
      raises ValueError for arguments of other shapes, dtypes or structure.

    Examples:
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.ones((4, 8)), "second": jnp.ones((8, 2))}
      >>> (batch,) = jax.export.symbolic_shape("b")
      >>> program = closed(mlp, params, jax.ShapeDtypeStruct((batch, 4), jnp.float32))
      >>> float(program(params, jnp.ones((3, 4)))[0, 0])
      32.0
    """
    traced = trace(fun, params, *args, kwargs=kwargs, symbolic=True)
    names = (*(f"'{path}'" for path in traced.paths), *(f"argument '{path}'" for path in traced.inputs))
    jaxpr, outputs = traced.jaxpr, traced.structure
    structure, others = _rest(params, args, dict(kwargs or {}))

    def program(params: Params, *args: Any, **kwargs: Any) -> Any:
        if _rest(params, args, kwargs) != (structure, others):
            raise ValueError(
                "The function was closed for arguments of another structure, or other values of what is no array; got "
                f"{tree.kinds((params, args, kwargs))}. Close it for these."
            )
        given = [*inputs_of((params,)), *inputs_of(args, kwargs)]
        sizes = _fitted(names, jaxpr.in_avals, [jax.typeof(array) for array in given])
        return jax.tree.unflatten(outputs, as_function(jaxpr, sizes)(*map(jnp.asarray, given)))

    return program


def _rest(*call: Any) -> tuple[Any, list[Any]]:
    """The structure of a call, and its leaves that are no arrays."""
    return jax.tree.structure(call), tree.partition(call, lambda leaf: not tree.is_array(leaf))[0]


def _fitted(names: Sequence[str], expected: Sequence[Any], given: Sequence[Any]) -> Sizes:
    """What stands for the symbols among the shapes that are expected."""
    for name, wanted, got in zip(names, expected, given, strict=True):
        same = got.dtype == wanted.dtype and len(got.shape) == len(wanted.shape)
        numbers = [pair for pair in zip(wanted.shape, got.shape, strict=False) if not is_symbolic(pair[:1])]
        if not same or any(size != other for size, other in numbers):
            raise ValueError(
                f"The function was closed for {name} of shape {wanted.shape}, {wanted.dtype}; got {got.shape}, "
                f"{got.dtype}. Close it for such arguments."
            )
    return solved(*([size for aval in avals for size in aval.shape] for avals in (expected, given)))
