"""Paths, maps over several trees that tell `None` leaves apart, and errors that name the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.typing import Params, Where


def path_of(key_path: tuple[Any, ...]) -> str:
    """Renders a JAX key path the way people write one: "encoder/layers/0/kernel".

    Args:
      key_path: As given by `jax.tree_util.tree_flatten_with_path`.

    Returns:
      The keys joined by "/". The wrapper key that Flax NNX puts below each variable is left out.
    """
    parts = [jax.tree_util.keystr((key,), simple=True) for key in key_path]
    if len(parts) > 1 and isinstance(key_path[-1], jax.tree_util.GetAttrKey) and parts[-1] == "value":
        parts = parts[:-1]
    return "/".join(parts)


def paths(tree: Params, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The path of each leaf, in the order of `jax.tree.leaves`."""
    return [path_of(key_path) for key_path, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]]


def some(names: Sequence[str]) -> str:
    """The first few of many names, quoted, for a message."""
    shown = ", ".join(f"'{name}'" for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown or "none"


def is_array(leaf: Any) -> bool:
    """Whether `leaf` is an array, a tracer, or something with a shape that stands for one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def described(value: Any) -> str:
    """What a value is, for a message."""
    return f"an array of shape {value.shape}, {value.dtype}" if is_array(value) else f"{value!r:.60}"


def is_floating(leaf: Any) -> bool:
    """Whether `leaf` is an array of real floating-point numbers."""
    return is_array(leaf) and bool(jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating))


def promote(first: Any, second: Any) -> Any:
    """The dtype that holds both, asked for by name and so allowed under strict promotion too."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.numpy.promote_types(first, second)


def flatten(tree: Params, *others: Any, names: tuple[str, ...] = ()) -> tuple[list[tuple[Any, ...]], Any]:
    """Pairs each leaf of `tree` with whatever the other trees hold at that place.

    Args:
      tree: Decides the structure.
      *others: Trees of the same structure. A leaf of `tree` may meet `None` or a whole subtree there.
      names: What to call the others in an error.

    Returns:
      Rows `(path, leaf, *others)` and the structure of `tree`.

    Raises:
      ValueError: Another tree has a different structure; the message names the first path that differs.
    """
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    columns = [_flatten_up_to(tree, treedef, other, name) for other, name in _named(others, names)]
    keys = [path_of(key_path) for key_path, _ in with_paths]
    leaves = [leaf for _, leaf in with_paths]
    return list(zip(keys, leaves, *columns, strict=True)), treedef


def map_with_path(function: Callable[..., Any], tree: Params, *others: Any, names: tuple[str, ...] = ()) -> Any:
    """Maps `function(path, leaf, *others)` over the leaves of `tree`; see `flatten`."""
    rows, treedef = flatten(tree, *others, names=names)
    return treedef.unflatten([function(*row) for row in rows])


def partition(
    tree: Params, picked: Callable[[Any], bool] = is_array
) -> tuple[list[Any], Callable[[Sequence[Any]], Params]]:
    """The picked leaves of a tree, and a function that puts others in their place: modules hold functions too."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if picked(leaf)]

    def rebuild(values: Sequence[Any]) -> Params:
        filled = list(leaves)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        return structure.unflatten(filled)

    return [leaves[i] for i in places], rebuild


def choose(where: Where, tree: Params) -> Params:
    """The tree with `None` in place of each leaf that `where` does not pick."""
    return map_with_path(lambda path, leaf: leaf if where(path, leaf) else None, tree)


def check_floating(path: str, leaf: Any) -> None:
    """Raises a `TypeError` that names the path unless `leaf` is an array of real floating-point numbers."""
    if not is_floating(leaf):
        got = f"dtype {leaf.dtype}" if is_array(leaf) else type(leaf).__name__
        raise TypeError(f"'{path}' must be a floating-point array to be pruned; got {got}. Leave it out with `where=`.")


def _named(others: tuple[Any, ...], names: tuple[str, ...]) -> list[tuple[Any, str]]:
    return [(other, names[i] if i < len(names) else f"tree {i + 2}") for i, other in enumerate(others)]


def _flatten_up_to(tree: Params, treedef: Any, other: Any, name: str) -> list[Any]:
    try:
        return treedef.flatten_up_to(other)
    except (ValueError, TypeError, KeyError) as error:
        found = _by_path(tree, other)
        if found is None:
            raise ValueError(_difference(tree, other, name)) from error
        return found


def _by_path(tree: Params, other: Any) -> list[Any] | None:
    """What the other tree has at the same paths, in other containers; `None` may stand for a whole subtree."""
    rows = jax.tree_util.tree_flatten_with_path(other, lambda node: node is None or _is_value(node))[0]
    values = {path_of(key_path): value for key_path, value in rows}
    missing = object()
    found, used = list[Any](), set[str]()
    for path in paths(tree):
        above = [path[:end] for end in (*_ends(path), len(path))]
        place = next((p for p in above if p in values and (p == path or values[p] is None)), missing)
        if place is missing:
            return None
        used.add(str(place))
        found.append(values[str(place)])
    return found if used == set(values) else None


def _ends(path: str) -> list[int]:
    return [0, *(i for i, letter in enumerate(path) if letter == "/")]


def _is_value(node: Any) -> bool:
    """Whether a node is what a leaf meets, though it is a container: a mask, or a statistic, of a type of its own."""
    return not is_array(node) and type(node).__module__.startswith("jaxprune.")


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _difference(tree: Params, other: Any, name: str) -> str:
    ours = paths(tree)
    theirs = set(paths(other, is_leaf=_is_none))
    missing = [path for path in ours if not any(_is_prefix(theirs_, path) for theirs_ in theirs)]
    extra = sorted(path for path in theirs if not any(_is_prefix(path, p) or _is_prefix(p, path) for p in ours))
    if missing:
        detail = f"it has nothing at '{missing[0]}'"
    elif extra:
        detail = f"it has '{extra[0]}', which the parameters do not"
    else:
        detail = f"the containers differ: {jax.tree.structure(other)} against {jax.tree.structure(tree)}"
    return (
        f"The {name} must have the structure of the parameters, with `None` where a leaf has none; {detail}. "
        f"Build them from the same tree."
    )


def _is_prefix(short: str, path: str) -> bool:
    return path == short or path.startswith(short + "/") or short == ""
