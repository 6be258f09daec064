"""From a function and its arguments to a jaxpr whose inputs and outputs have names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval

from jaxprune._arrays import checks, tree
from jaxprune._jaxpr.symbols import is_symbolic

_NUMBERS = (bool, int, float, complex, np.generic)

P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced call `fun(params, *args)`.

    Attributes:
      jaxpr: Its inputs are the array leaves of `params`, then those of `args`. What no output needs is left out, as
        compilers do.
      paths: Path of each parameter leaf.
      leaves: The parameter leaves as given.
      inputs: Path of each input leaf, "0/images" for the first argument's.
      outputs: Path of each output leaf.
      structure: Tree structure of the outputs.
    """

    jaxpr: ClosedJaxpr
    paths: tuple[str, ...]
    leaves: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    structure: Any


def trace(
    fun: Callable[..., Any],
    params: Any,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    symbolic: bool = False,
) -> Traced:
    """Traces `fun(params, *args, **kwargs)` without running it.

    Args:
      fun: Any JAX function.
      params: A pytree; its arrays may be `jax.ShapeDtypeStruct`s. Leaves that are not arrays are passed as they are.
      *args: Likewise.
      kwargs: Likewise.
      symbolic: Whether the caller takes sizes that are symbols.

    Raises:
      TypeError: `fun` is not a function, or returns what is no array; or the parameters are no tree of arrays.
      ValueError: A size is a symbol, and the caller does not take them.
    """
    checks.function(fun, "fun", "model.apply")
    tree.check_tree(params)
    leaves, rebuild = tree.partition(params)
    inputs, rebuild_inputs = tree.partition((args, dict(kwargs or {})))
    if not symbolic:
        require_numbers(args, kwargs)

    def flat(leaves: list[Any], inputs: list[Any]) -> Any:
        positional, named = rebuild_inputs(inputs)
        outputs = fun(rebuild(leaves), *positional, **named)
        if not all(tree.is_array(leaf) or isinstance(leaf, _NUMBERS) for leaf in jax.tree.leaves(outputs)):
            raise TypeError(f"`fun` must return arrays; got {tree.kinds(outputs)}. Return the logits alone.")
        return outputs

    jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(leaves, inputs)
    return Traced(
        jaxpr=_living(jaxpr),
        paths=tuple(_names(params)),
        leaves=tuple(leaves),
        inputs=(*_names(args), *_names(dict(kwargs or {}))),
        outputs=tuple(tree.paths(shapes)),
        structure=jax.tree.structure(shapes),
    )


def require_numbers(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> None:
    """Refuses arguments of symbolic shapes, where sizes are counted or timed."""
    for path, leaf in (*arrays(tuple(args)).items(), *arrays(dict(kwargs or {})).items()):
        if is_symbolic(leaf.shape):
            raise ValueError(
                f"Argument '{path}' has the symbolic shape {tuple(leaf.shape)}; expected numbers. Give an example: "
                "a shrunk or deployed function then runs at any size, and is exported with symbolic ones."
            )


def _living(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """Without the equations that no output needs, such as an activation of which only the shape was read."""
    alive, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), instantiate=True)
    return ClosedJaxpr(alive, jaxpr.consts)


def _names(values: Any) -> list[str]:
    return [path for path, leaf in tree.flatten(values)[0] if tree.is_array(leaf)]


def inputs_of(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
    """The array leaves of arguments, in the order in which a traced function takes them."""
    return tree.partition((tuple(args), dict(kwargs or {})))[0]


def arrays(values: Any) -> dict[str, Any]:
    """The array leaves of a tree by path."""
    return {path: leaf for path, leaf in tree.flatten(values)[0] if tree.is_array(leaf)}


def options_of(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function whose own options are keywords say where a model's go."""
    known = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        unknown = {name: value for name, value in kwargs.items() if name not in known}
        if unknown:
            name, value = next(iter(unknown.items()))
            raise TypeError(
                f"`{function.__name__}` has no option `{name}`. If the model takes it, give it as "
                f"`kwargs={{'{name}': {value!r:.50}}}`."
            )
        return function(*args, **kwargs)

    return checked
