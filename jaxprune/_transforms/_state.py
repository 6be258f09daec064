"""Masks and moments inside optimizer states, found by structure and never by a list of known optimizers."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxprune._arrays import tree
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
    holders = [node for node in jax.tree.leaves(opt_state, is_leaf=_holds_masks) if _holds_masks(node)]
    if not holders:
        raise ValueError(
            "This optimizer state holds no masks; build the optimizer with `masked`, `gradual` or the like."
        )
    found = [masking.unpack(_without_placeholders(holder.masks)) for holder in holders]
    merged = found[0]
    for other in found[1:]:
        merged = masking.intersection(merged, other)
    return merged


def restrict(masks: Masks, params: Params) -> Masks:
    """The masks of the leaves that a transform sees: `optax.multi_transform` puts `MaskedNode` for the others."""
    if not any(_is_placeholder(leaf) for leaf in jax.tree.leaves(params, is_leaf=_is_placeholder)):
        return masks
    return jax.tree.map(lambda p, m: p if _is_placeholder(p) else m, params, masks, is_leaf=_is_placeholder)


def fitting(params: Params, masks: Masks) -> Masks:
    """The masks of the leaves that a transform sees, each where its parameter lies.

    Raises:
      ValueError: They do not fit the parameters; the message names the path.
      TypeError: One is neither boolean nor `Spectral`; the message names the path.
    """
    visible = restrict(masks, params)
    for path, leaf, mask in tree.flatten(params, visible, names=("masks",))[0]:
        jax.eval_shape(lambda w, m, p=path: verbs.apply(p, w, m), leaf, mask)
    return sharded_like(params, visible)


def sharded_like(params: Params, masks: Masks) -> Masks:
    """The masks, each split over devices as its parameter is, along the axes that it has."""
    return jax.tree.map(verbs.sharded_like, params, masks)


def zero_pruned(state: Any, params: Params, masks: Masks) -> Any:
    """Zeroes what a state remembers of pruned weights, so that a weight that is regrown starts afresh.

    Every subtree with the structure of the parameters counts: moments, averages, copies. A leaf of it is masked where
    it is floating and has the parameter's shape. Frequency-pruned leaves keep their moments.
    """
    structure = jax.tree.structure(params, is_leaf=_is_placeholder)

    def matches(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=_is_placeholder) == structure

    def zero(node: Any) -> Any:
        if not matches(node):
            return node
        return jax.tree.map(_zero_leaf, node, params, masks, is_leaf=_is_placeholder)

    return jax.tree.map(zero, state, is_leaf=matches)


def _zero_leaf(moment: Any, param: Any, mask: Any) -> Any:
    if _is_placeholder(moment) or _is_placeholder(param):
        return moment
    if not tree.is_floating(moment) or moment.shape != param.shape:
        return moment
    # A frequency mask is left out: a projection would make second moments negative.
    return verbs.apply("", moment, verbs.of_weights("", moment, mask))


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
