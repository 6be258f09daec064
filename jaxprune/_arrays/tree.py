"""Paths, maps over several trees that tell `None` leaves apart, and errors that name the path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.typing import Params, Where


class Path(str):
    """A path in a tree, with the names beside its last part: what `b` is depends on whether there is a `w`."""

    siblings: frozenset[str]


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
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]
    return [*_with_siblings([path_of(key_path) for key_path, _ in found])]


def is_array(leaf: Any) -> bool:
    """Whether `leaf` is an array, a tracer, or something with a shape that stands for one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Stands in for what has a shape and a dtype: float32 for float64, which JAX warns of where it has none."""
    wide = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) and leaf.dtype.itemsize == 8
    return jax.ShapeDtypeStruct(leaf.shape, np.float32 if wide else leaf.dtype)


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
    keys = _with_siblings([path_of(key_path) for key_path, _ in with_paths])
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
    """The tree with `None` in place of each leaf that `where` does not pick. Errors as in `map_picked`."""
    return map_picked(lambda path, leaf: leaf, where, tree)


def map_picked(
    function: Callable[..., Any], where: Where, tree: Params, *others: Any, names: tuple[str, ...] = ()
) -> Any:
    """Maps `function(path, leaf, *others)` over the leaves that `where` picks; the rest get `None`.

    Raises:
      ValueError: It picks none of the leaves that there are; the message names some. Or see `flatten`.
      TypeError: `where` is not a function of path and leaf, or the tree is no pytree of arrays.
    """
    check_where(where)
    check_tree(tree)
    rows, treedef = flatten(tree, *others, names=names)
    picked = [bool(where(*row[:2])) for row in rows]
    if rows and not any(picked):
        raise ValueError(f"`where` picks no leaf; there are {kinds(tree)}. The default picks floating-point kernels.")
    return treedef.unflatten([function(*row) if chosen else None for row, chosen in zip(rows, picked, strict=True)])


def matcher(rule: Any) -> Callable[[str], bool]:
    """A predicate over paths: itself, or whether a regular expression is found in the path.

    Raises:
      ValueError: The expression is not regular.
      TypeError: It is neither.
    """
    if callable(rule):
        return lambda path: bool(rule(path))
    if not isinstance(rule, str):
        raise TypeError(f"A path is matched by a regular expression or a function of it; got {rule!r}.")
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise ValueError(
            f"{rule!r} is not a regular expression: {error}. Put a backslash before special ones."
        ) from error
    return lambda path: expression.search(path) is not None


def check_where(where: Any) -> None:
    """Raises a `TypeError` unless `where` can be called with a path and a leaf."""
    if not callable(where) or not takes(where, 2):
        raise TypeError(
            f"`where` must be a function `(path, leaf) -> bool`; got {where!r}. For a part of a path give "
            f"`filters.named('kernel')`."
        )


def check_tree(tree: Params) -> None:
    """Raises a `TypeError` for a number, a function or a string in place of parameters."""
    if jax.tree_util.all_leaves([tree]) and not is_array(tree):
        raise TypeError(f"The parameters must be a pytree of arrays; got {tree!r}. They come before the sparsity.")


def takes(function: Callable[..., Any], number: int) -> bool:
    """Whether a function can be called with so many positional arguments, as far as its signature tells."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * number)
    except TypeError:
        return False
    return True


def kinds(tree: Params) -> str:
    """The paths of a tree and what is there, for an error: "'kernel' (float32 (8, 16)), 'step' (int)"."""
    rows, _ = flatten(tree)
    kinds = [f"{leaf.dtype} {tuple(leaf.shape)}" if is_array(leaf) else type(leaf).__name__ for _, leaf in rows]
    return listed([f"'{row[0]}' ({kind})" for row, kind in zip(rows, kinds, strict=True)])


def some(paths: Sequence[str]) -> str:
    """A few paths, quoted, and how many there are besides."""
    return listed([f"'{path}'" for path in paths])


def listed(names: Sequence[str], limit: int = 5) -> str:
    """A few names and how many there are besides: "'a', 'b' and 7 more"."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest


def check_floating(path: str, leaf: Any) -> None:
    """Raises a `TypeError` that names the path unless `leaf` is an array of real floating-point numbers.

    Of two, four or eight bytes: narrower ones have too few values to rank weights by, some of them no 0.
    """
    if not is_floating(leaf):
        got = f"dtype {leaf.dtype}" if is_array(leaf) else type(leaf).__name__
        raise TypeError(f"'{path}' must be a floating-point array to be pruned; got {got}. Leave it out with `where=`.")
    check_width(path, leaf)


def check_width(path: str, leaf: Any) -> None:
    """Raises a `TypeError` that names the path if `leaf` holds floats of one byte or less, or integers of less."""
    if not is_array(leaf):
        return
    jnp = jax.numpy
    is_narrow_float = is_floating(leaf) and leaf.dtype.itemsize not in (2, 4, 8)
    if is_narrow_float or (jnp.issubdtype(leaf.dtype, jnp.integer) and jnp.iinfo(leaf.dtype).bits < 8):
        raise TypeError(
            f"'{path}' has dtype {leaf.dtype}; weights are pruned in bfloat16, float16, float32 or float64. Cast it "
            f"first, or leave it out with `where=`."
        )


def _with_siblings(paths: list[str]) -> list[Path]:
    by_parent: dict[str, list[Path]] = {}
    found = [Path(path) for path in paths]
    for path in found:
        by_parent.setdefault(path.rpartition("/")[0], []).append(path)
    for beside in by_parent.values():
        names = frozenset(path.rpartition("/")[2] for path in beside)
        for path in beside:
            path.siblings = names
    return found


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
