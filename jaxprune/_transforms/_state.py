"""Masks and moments inside optimizer states, found by structure and never by a list of known optimizers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxprune._arrays import host, tree
from jaxprune._masks import masking, verbs
from jaxprune.typing import Masks, Params


def masks_of(opt_state: Any) -> Masks:
    """The masks that a state holds, at whatever depth: below `chain`, `MultiSteps`, `inject_hyperparams`.

    Args:
      opt_state: From the `init` or `update` of an optimizer built with this library.

    Returns:
      The masks. Where several transforms hold some, as under `optax.multi_transform`, each leaf is pruned by all that
      have a mask for it.

    Raises:
      ValueError: There are none.

    Examples:
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> optimizer = optax.chain(optax.clip(1.0), jaxprune.masked(optax.adam(1e-3), jaxprune.magnitude(params)))
      >>> jaxprune.masks_of(optimizer.init(params))["kernel"].shape
      (2, 2)
    """
    holders = _holders(opt_state)
    if not holders:
        raise ValueError(
            "This optimizer state holds no masks; build the optimizer with `masked`, `gradual` or the like."
        )
    return _without_placeholders(functools.reduce(_merged, (masking.unpack(holder.masks) for holder in holders)))


def _holders(opt_state: Any) -> list[Any]:
    """The states that hold masks, those inside of others too."""
    found = list[Any]()
    for node in jax.tree.leaves(opt_state, is_leaf=_holds_masks):
        if _holds_masks(node):
            found += [node, *_holders([getattr(node, name) for name in node._fields if name != "masks"])]
    return found


def _merged(first: Any, second: Any) -> Masks:
    """What both keep; where one of two transforms does not see a leaf or a subtree, what the other has there."""
    if _is_placeholder(first) or _is_placeholder(second):
        return second if _is_placeholder(first) else first
    parts, structure = _one_level(first)
    if verbs.is_mask(first) or verbs.is_mask(second) or jax.tree_util.treedef_is_leaf(structure):
        return masking.intersection(first, second)
    others, _ = _one_level(second)
    return structure.unflatten([_merged(*pair) for pair in zip(parts, others, strict=True)])


def _one_level(node: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(node, is_leaf=lambda inner: inner is not node)


def restrict(masks: Masks, params: Params) -> Masks:
    """The masks of the leaves that a transform sees: `optax.multi_transform` puts `MaskedNode` for the others."""
    if not any(_is_placeholder(leaf) for leaf in jax.tree.leaves(params, is_leaf=_is_placeholder)):
        return masks
    return jax.tree.map(lambda p, m: p if _is_placeholder(p) else m, params, masks, is_leaf=_is_placeholder)


def fitting(params: Params, masks: Masks) -> Masks:
    """Copies of the masks of the leaves that a transform sees, each where its parameter lies.

    Copies, so that a step that is given the state to overwrite does not delete the caller's masks.

    Raises:
      ValueError: They do not fit the parameters; the message names the path.
      TypeError: One is neither boolean nor `Spectral`; the message names the path.
    """
    if not any(map(_is_placeholder, jax.tree.leaves(params, is_leaf=_is_placeholder))):
        masks = tree.map_with_path(lambda path, leaf, mask: mask, params, masks, names=("masks",))
    visible = jax.tree.map(host.copied, restrict(masks, params))
    for path, leaf, mask in tree.flatten(params, visible, names=("masks",))[0]:
        jax.eval_shape(lambda w, m, p=path: verbs.apply(p, w, m), leaf, mask)
    return sharded_like(params, visible)


def owned(opt_state: Any, params: Params) -> Any:
    """The state with a copy of each array that belongs to the caller or is in it twice.

    A step that is given the state to overwrite would delete the caller's array with it, or overwrite one array twice.
    """
    seen = set(map(id, jax.tree.leaves(params)))

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and id(leaf) in seen:
            return host.copied(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(copied, opt_state)


def sharded_like(params: Params, masks: Masks) -> Masks:
    """The masks, each split over devices as its parameter is, along the axes that it has."""
    return jax.tree.map(verbs.sharded_like, params, masks)


def zero_pruned(state: Any, params: Params, masks: Masks) -> Any:
    """Zeroes what a state remembers of pruned weights, so that a weight that is regrown starts afresh.

    Every subtree with the structure of the parameters counts: moments, averages, copies, and histories, whose leaves
    have an axis in front. A leaf of it is masked where it is floating and has the parameter's shape. So is a vector of
    all parameters, as `optax.flatten` makes it, or a history of such. Frequency-pruned leaves keep their moments.
    """
    structure = jax.tree.structure(params, is_leaf=_is_placeholder)
    leaves = jax.tree.leaves(params)
    total, shapes = sum(leaf.size for leaf in leaves), [leaf.shape for leaf in leaves]

    def matches(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=_is_placeholder) == structure

    def zero(node: Any) -> Any:
        # A bare array as parameters has the structure of any array, so that vectors come first.
        is_vector = tree.is_floating(node) and node.ndim in (1, 2) and node.shape[-1] == total
        if is_vector and node.shape not in shapes and node.shape[1:] not in shapes:
            kept = jnp.concatenate(jax.tree.leaves(tree.map_with_path(_whole_mask, params, masks)))
            return jnp.where(jnp.broadcast_to(kept, node.shape), node, jnp.zeros_like(node))
        if matches(node):
            return jax.tree.map(_zero_leaf, node, params, masks, is_leaf=_is_placeholder)
        return node

    return jax.tree.map(zero, state, is_leaf=matches)


def _zero_leaf(moment: Any, param: Any, mask: Any) -> Any:
    if _is_placeholder(moment) or _is_placeholder(param):
        return moment
    axes = moment.ndim - param.ndim if tree.is_floating(moment) else -1
    if axes not in (0, 1) or moment.shape[axes:] != param.shape:
        return moment
    # A frequency mask is left out: a projection would make second moments negative.
    kept = verbs.of_weights("", param, mask)
    return verbs.apply("", moment, None if kept is None else kept.reshape((1,) * axes + kept.shape))


def _whole_mask(path: str, leaf: Any, mask: Any) -> Any:
    kept = verbs.of_weights(path, leaf, mask)
    return jnp.broadcast_to(jnp.bool_(True) if kept is None else kept, leaf.shape).reshape(-1)


def holds_masks(opt_state: Any) -> bool:
    """Whether a state holds masks, at whatever depth."""
    return any(map(_holds_masks, jax.tree.leaves(opt_state, is_leaf=_holds_masks)))


def _holds_masks(node: Any) -> bool:
    return isinstance(node, tuple) and "masks" in getattr(node, "_fields", ())


def _is_placeholder(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _without_placeholders(masks: Masks) -> Masks:
    return jax.tree.map(
        lambda mask: None if _is_placeholder(mask) else mask,
        masks,
        is_leaf=lambda node: _is_placeholder(node) or verbs.is_mask(node),
    )


def keep_all(params: Params, masks: Masks) -> Masks:
    """Masks of the same kinds and shapes, which may be abstract, that keep everything."""
    return jax.tree.map(verbs.keep_all, params, masks)
