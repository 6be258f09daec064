"""From a function and its arguments to a jaxpr whose inputs and outputs have names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxprune._arrays import checks, tree

_NUMBERS = (bool, int, float, complex, np.generic)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced call `fun(params, *args)`.

    Attributes:
      jaxpr: Its inputs are the array leaves of `params`, then those of `args`.
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


def trace(fun: Callable[..., Any], params: Any, *args: Any) -> Traced:
    """Traces `fun(params, *args)` without running it.

    Args:
      fun: Any JAX function.
      params: A pytree; its arrays may be `jax.ShapeDtypeStruct`s. Leaves that are not arrays are passed as they are.
      *args: Likewise.

    Raises:
      TypeError: `fun` is not a function, or returns what is no array; or the parameters are no tree of arrays.
    """
    checks.function(fun, "fun", "model.apply")
    tree.check_tree(params)
    names, leaves, rebuild = _arrays(params)
    input_names, inputs, rebuild_args = _arrays(args)

    def flat(leaves: list[Any], inputs: list[Any]) -> Any:
        outputs = fun(rebuild(leaves), *rebuild_args(inputs))
        if not all(tree.is_array(leaf) or isinstance(leaf, _NUMBERS) for leaf in jax.tree.leaves(outputs)):
            raise TypeError(f"`fun` must return arrays; got {tree.kinds(outputs)}. Return the logits alone.")
        return outputs

    jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(leaves, inputs)
    return Traced(
        jaxpr=jaxpr,
        paths=tuple(names),
        leaves=tuple(leaves),
        inputs=tuple(input_names),
        outputs=tuple(tree.paths(shapes)),
        structure=jax.tree.structure(shapes),
    )


def _arrays(values: Any) -> tuple[list[str], list[Any], Callable[[list[Any]], Any]]:
    """The paths of the array leaves of a tree, the leaves, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(values)
    places = [i for i, leaf in enumerate(leaves) if tree.is_array(leaf)]
    paths = tree.paths(values)

    def rebuild(arrays: list[Any]) -> Any:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return structure.unflatten(filled)

    return [paths[i] for i in places], [leaves[i] for i in places], rebuild


def arrays(values: Any) -> dict[str, Any]:
    """The array leaves of a tree by path."""
    names, leaves, _ = _arrays(values)
    return dict(zip(names, leaves, strict=True))
