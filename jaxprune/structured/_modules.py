"""Modules that keep their sizes as numbers beside their arrays, at the sizes of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxprune._arrays import checks, tree
from jaxprune.structured._leaf_plan import LeafPlan, taken
from jaxprune.structured._plan import Plan

# By the attribute of a layer of Flax NNX or Equinox: the arrays that show its number, of which a layer has one, and
# along which axes.
_AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "in_features": {"kernel": (-2,), "weight": (1,), "query/kernel": (0,)},
    "out_features": {"kernel": (-1,), "weight": (0,), "out/kernel": (-1,)},
    "in_channels": {"weight": (1,)},
    "out_channels": {"weight": (0,)},
    "channels": {"weight": (0,)},
    "num_features": {"scale": (-1,), "bias": (-1,), "mean": (-1,)},
    "group_size": {"scale": (-1,), "bias": (-1,)},
    "num_embeddings": {"embedding": (0,), "weight": (0,)},
    "features": {"embedding": (1,)},
    "embedding_size": {"weight": (1,)},
    "input_size": {"weight_ih": (1,), "weight": (0,)},
    "hidden_size": {"weight_hh": (1,)},
    "hidden_features": {"hi/kernel": (0,), "dense_h/kernel": (0,)},
    "num_heads": {"query/kernel": (1,)},
    "num_kv_heads": {"key/kernel": (1,)},
    "head_dim": {"query/kernel": (2,)},
    "qkv_features": {"query/kernel": (1, 2)},
    "in_kv_features": {"key/kernel": (0,)},
    "query_size": {"query_proj/weight": (1,)},
    "key_size": {"key_proj/weight": (1,)},
    "value_size": {"value_proj/weight": (1,)},
    "output_size": {"output_proj/weight": (0,)},
}
_OF_DEPTHWISE = ("in_features", "in_channels", "feature_group_count", "groups")
_OF_HEADS = {"qk_size": "query_proj/weight", "vo_size": "value_proj/weight"}


def resized(module: PyTree[Any], plan: Plan) -> PyTree[Any]:
    """A module of the same class that runs by itself at the sizes of a plan.

    Besides the arrays, it changes the numbers that the layers of Flax NNX and Equinox keep, such as `out_features`,
    `num_features` and `num_heads`. Numbers of your own classes stay as they are.

    The result computes what its class computes at the small sizes. That is what the shrunk function computes, unless
    the code divides by a width that was pruned: a layer norm over pruned channels, or attention whose heads have
    become narrower. Compare the two once. The shrunk function itself goes on taking the parameters that `shrink`
    returned, not this.

    Args:
      module: The module that the plan was made for, or any pytree of modules. Each array has its full size or its
        small one; it may be a `jax.ShapeDtypeStruct`. Weights of removed units are not looked at. Arrays that the plan
        does not know stay as they are, and what is shared inside the module stays shared.
      plan: From `shrink`, or `Plan.load`.

    Returns:
      A new module; the one given is not changed.

    Raises:
      ValueError: An array has neither its full nor its small shape (the message names the path), or the plan knows no
        array of the module.

    Examples:
      >>> import equinox as eqx
      >>> module = eqx.nn.MLP(4, 2, width_size=8, depth=1, key=jax.random.key(0))
      >>> fun, x = lambda module, x: jax.vmap(module)(x), jnp.ones((3, 4))
      >>> coupling = jaxprune.couple(fun, module, x)
      >>> masks = jaxprune.slim(module, 0.5, coupling=coupling)
      >>> small, small_params, plan = jaxprune.shrink(fun, module, masks, coupling)
      >>> small_module = resized(module, plan)
      >>> small_module.layers[0].out_features
      4
      >>> bool(jnp.allclose(fun(small_module, x), small(small_params, x), atol=1e-6))
      True
    """
    if not checks.is_a(plan, Plan):
        raise TypeError(f"`plan` must come from `shrink` or `Plan.load`; got {type(plan).__name__}.")
    tree.check_tree(module)
    leaves = {path: _plan_of(plan, path) for path, leaf in tree.flatten(module)[0] if tree.is_array(leaf)}
    known = {path: leaf for path, leaf in leaves.items() if leaf is not None}
    if not known:
        raise ValueError(
            f"The plan is for {tree.some([*plan.leaves])}; the module has {tree.some([*leaves])}. Give the module that "
            "the plan was made for."
        )
    return _rebuilt(module, (), known, {})


def _plan_of(plan: Plan, path: str) -> LeafPlan | None:
    """The plan of an array, with or without the key of the tuple or dictionary that held the module."""
    inside = [leaf for name, leaf in plan.leaves.items() if name.partition("/")[2] == path]
    found = plan.leaves.get(path) or plan.leaves.get(path.partition("/")[2])
    return inside[0] if found is None and len(inside) == 1 else found


def _rebuilt(node: Any, keys: tuple[Any, ...], plans: Mapping[str, LeafPlan], made: dict[int, tuple[Any, Any]]) -> Any:
    """The node with small arrays and numbers. One that is shared, and not known by this path too, is made once."""
    children, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
    if jax.tree_util.treedef_is_leaf(structure):
        return _small(tree.path_of(keys), node, plans)
    if id(node) in made and not any(
        tree.path_of((*keys, *further)) in plans for further, _ in jax.tree_util.tree_flatten_with_path(node)[0]
    ):
        return made[id(node)][1]
    small = structure.unflatten([_rebuilt(child, (*keys, *key), plans, made) for key, child in children])
    prefix = tree.path_of((*keys, jax.tree_util.DictKey("")))
    for name, value in _numbers(getattr(node, "__dict__", {}), prefix, plans).items():
        object.__setattr__(small, name, value)  # since modules may be frozen dataclasses
    made[id(node)] = (node, small)  # The node too, lest its id is given to another.
    return small


def _small(path: str, leaf: Any, plans: Mapping[str, LeafPlan]) -> Any:
    if not tree.is_array(leaf) or path not in plans or leaf.shape == plans[path].small:
        return leaf
    if leaf.shape != plans[path].shape:
        raise ValueError(
            f"'{path}' has shape {tuple(leaf.shape)}; by the plan it is {plans[path].shape}, and small "
            f"{plans[path].small}. Give the module that the plan was made for."
        )
    return taken(leaf, plans[path])


def _numbers(attributes: Mapping[str, Any], prefix: str, plans: Mapping[str, LeafPlan]) -> dict[str, Any]:
    """The new values of the attributes of a layer that say a size."""
    arrays = {name.removeprefix(prefix): plan for name, plan in plans.items() if name.startswith(prefix)}
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        if type(value) is int:
            found[name] = _number(name, value, attributes, arrays)
        elif isinstance(value, tuple):
            found[name] = _sizes(name, value, arrays)
    return {name: value for name, value in found.items() if value != attributes[name]}


def _number(name: str, value: int, attributes: Mapping[str, Any], arrays: Mapping[str, LeafPlan]) -> int:
    heads = attributes.get("num_heads")
    if name == "num_heads" and "query_proj/weight" in arrays:
        return _kept_heads(arrays["query_proj/weight"], value)
    if name in _OF_HEADS and _OF_HEADS[name] in arrays and isinstance(heads, int):
        projection = arrays[_OF_HEADS[name]]
        return projection.small[0] // _kept_heads(projection, heads)
    kernel = arrays.get("kernel", arrays.get("weight"))
    if name in _OF_DEPTHWISE and kernel is not None and _is_depthwise(attributes, kernel, "kernel" in arrays):
        return _scaled(value, kernel, (-1,) if "kernel" in arrays else (0,))
    if attributes.get("transpose_kernel"):
        return value  # Its kernel has inputs and outputs the other way round.
    places = [(arrays[array], axes) for array, axes in _AXES.get(name, {}).items() if array in arrays]
    return _scaled(value, *places[0]) if places else value


def _scaled(value: int, plan: LeafPlan, axes: tuple[int, ...]) -> int:
    """A number that is a multiple or a divisor of a size, at the small size."""
    if not all(-len(plan.shape) <= axis < len(plan.shape) for axis in axes):
        return value
    full, small = (math.prod(shape[axis] for axis in axes) for shape in (plan.shape, plan.small))
    related = value > 0 and full > 0 and (value % full == 0 or full % value == 0)
    return value * small // full if related and value * small % full == 0 else value


def _is_depthwise(attributes: Mapping[str, Any], kernel: LeafPlan, inputs_are_last: bool) -> bool:
    """Whether each group of a convolution has one input, so that whole groups are removed."""
    groups = attributes.get("groups", attributes.get("feature_group_count", 1))
    return groups != 1 and len(kernel.shape) > 2 and kernel.shape[-2 if inputs_are_last else 1] == 1


def _kept_heads(projection: LeafPlan, heads: int) -> int:
    """How many heads have outputs left; they are one after the other."""
    kept = projection.keep.get(0)
    return heads if kept is None else len(np.unique(kept // (projection.shape[0] // heads)))


def _sizes(name: str, value: tuple[Any, ...], arrays: Mapping[str, LeafPlan]) -> tuple[Any, ...]:
    """Several sizes: those of a whole array, or the first or the last of a kernel's."""
    if name in ("shape", "kernel_shape"):
        alike = [plan for array, plan in arrays.items() if "/" not in array and plan.shape == value]
        return alike[0].small if alike else value
    if name in ("in_features", "out_features") and "kernel" in arrays:
        part = slice(len(value)) if name == "in_features" else slice(-len(value), None)
        kernel = arrays["kernel"]
        return kernel.small[part] if kernel.shape[part] == value else value
    return value
