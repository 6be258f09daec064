"""Masks: apply them, combine them, store them at one bit per weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune._arrays import tree
from jaxprune._masks import verbs
from jaxprune.typing import Masks, Params


def apply(params: Params, masks: Masks) -> Params:
    """Sets what is pruned to exactly 0.

    A pruned NaN or infinity becomes 0 as well: the value is selected, never multiplied.

    Args:
      params: Any pytree.
      masks: Of the same structure: a boolean array that broadcasts against its parameter, a `Spectral`, or `None`.

    Returns:
      The parameters, pruned, in their own dtypes.

    Raises:
      ValueError: The structures differ, or a mask does not broadcast; the message names the path.
      TypeError: A mask is neither boolean nor `Spectral`.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, -2.0], [jnp.nan, 4.0]]), "bias": jnp.zeros(2)}
      >>> masks = {"kernel": jnp.array([[True, False], [False, True]]), "bias": None}
      >>> print(apply(params, masks)["kernel"])
      [[1. 0.]
       [0. 4.]]
    """
    return tree.map_with_path(verbs.apply, params, masks, names=("masks",))


def pack(masks: Masks) -> Masks:
    """Stores each mask at one bit per entry.

    Returns:
      The same tree with a `Packed` in place of each boolean array, inside each `Spectral` too.

    Raises:
      TypeError: A mask is not boolean; the message names its path.

    Examples:
      >>> pack({"kernel": jnp.ones((4, 16), bool), "bias": None})["kernel"].nbytes
      8
    """
    return jax.tree_util.tree_map_with_path(
        lambda key_path, mask: verbs.pack(tree.path_of(key_path), mask), masks, is_leaf=verbs.is_mask
    )


def unpack(packed: Masks) -> Masks:
    """The masks that `pack` was given.

    Raises:
      ValueError: The bits of a mask do not fit its shape.
      TypeError: They are not uint8.
    """
    return _map(verbs.unpack, packed)


def intersection(first: Masks, second: Masks) -> Masks:
    """Keeps what both keep. `None` keeps everything.

    Raises:
      ValueError: The trees differ in structure, two masks in shape, or two frequency masks in axes or transform.
      TypeError: A mask is neither boolean nor `Spectral`.
    """
    return _combine(jnp.logical_and, lambda mask: mask, first, second)


def union(first: Masks, second: Masks) -> Masks:
    """Keeps what either keeps; `None`, which keeps everything, wins. Errors as in `intersection`."""
    return _combine(jnp.logical_or, lambda mask: None, first, second)


def overlap(first: Masks, second: Masks) -> Float[Array, ""]:
    """The share of entries that both keep among those that either keeps (Jaccard index), 1 where neither keeps any.

    Leaves that are dense in either tree do not count.

    Examples:
      >>> a, b = jnp.array([[True, True, False]]), jnp.array([[True, False, True]])
      >>> print(f"{overlap([a], [b]):.3f}")
      0.333
    """
    both, either = intersection(first, second), union(first, second)
    # A leaf that is dense in either tree is `None` in the union, and then counts in neither.
    kept = jax.tree.leaves(_map(lambda b, e: None if e is None else verbs.entries(b), both, either))
    shared, all_ = sum(kept, jnp.float32(0)), sum(map(verbs.entries, _masks_in(either)), jnp.float32(0))
    return jnp.where(all_ > 0, shared / jnp.maximum(all_, 1), jnp.ones_like(all_))


def _masks_in(masks: Masks) -> list[Any]:
    return [mask for mask in jax.tree.leaves(masks, is_leaf=verbs.is_mask) if mask is not None]


def _map(function: Callable[..., Any], *trees: Masks) -> Any:
    return jax.tree.map(function, *trees, is_leaf=verbs.is_mask)


def _combine(operation: Callable[..., Any], with_dense: Callable[[Any], Any], first: Masks, second: Masks) -> Masks:
    def leaf(path: str, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return with_dense(b if a is None else a)
        return verbs.combine(path, operation, a, b)

    with_paths, treedef = jax.tree_util.tree_flatten_with_path(first, is_leaf=verbs.is_mask)
    try:
        others = treedef.flatten_up_to(second)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"Both trees of masks must have the structure of one model; got {treedef} and "
            f"{jax.tree.structure(second, is_leaf=verbs.is_mask)}."
        ) from error
    rows = zip(with_paths, others, strict=True)
    return treedef.unflatten([leaf(tree.path_of(key_path), mask, other) for (key_path, mask), other in rows])
