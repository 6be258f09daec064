"""Multiply-accumulates of a function, dense and under masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxprune._arrays import checks, tree
from jaxprune._jaxpr.products import count
from jaxprune._jaxpr.tracing import options_of, trace
from jaxprune._masks import verbs
from jaxprune.typing import Masks, Params


@dataclasses.dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one call.

    Attributes:
      dense: Of the function as it is.
      effective: Counting only the weights that the masks keep. Dense hardware does not skip the others: only `shrink`
        and sparse kernels turn this into time.
      by_leaf: Dense count by the path of the parameter that is multiplied by; "" for products of two activations.
      unbounded: Whether the function has a `while` loop, whose body is counted once.
      uncounted: Primitives that may multiply matrices, of which nothing is known and nothing counted.
    """

    dense: int
    effective: float
    by_leaf: dict[str, int]
    unbounded: bool
    uncounted: tuple[str, ...] = ()


@options_of
def macs(
    fun: Callable[..., Any],
    params: Params,
    *args: Any,
    masks: Masks | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Macs:
    """Counts multiply-accumulates from the jaxpr: matrix products and convolutions, not elementwise work.

    A convolution counts every tap at every position of its output, padding included; a scan every step; a `cond` its
    most expensive branch; a `shard_map` all devices; a ragged product each row once. What may be a product and is not
    known, such as a kernel by Pallas, is not counted; a warning names it.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree; its arrays may be `jax.ShapeDtypeStruct`s.
      *args: Likewise. The count is for their batch size.
      masks: Of the structure of `params`. A `Spectral` mask saves nothing here.
      kwargs: Keyword arguments of `fun`, by name, such as `{"train": False}`.

    Returns:
      The counts.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> got = macs(lambda p, x: x @ p["kernel"], params, jnp.ones((2, 4)), masks={"kernel": jnp.arange(8)[None] < 2})
      >>> got.dense, got.effective
      (64, 16.0)
    """
    traced = trace(fun, params, *args, kwargs=kwargs)
    total = count(traced)
    density = [1.0] * len(traced.paths)
    if masks is not None:
        rows, _ = tree.flatten(params, masks, names=("masks",))
        kept = {path: _density(path, leaf, mask) for path, leaf, mask in rows if tree.is_array(leaf)}
        density = [kept[path] for path in traced.paths]
    by_leaf = {("" if i is None else traced.paths[i]): n for i, n in total.by_leaf.items()}
    effective = sum(n * (1.0 if i is None else density[i]) for i, n in total.by_leaf.items())
    if total.unknown:
        names = ", ".join(f"'{name}'" for name in total.unknown)
        checks.warn(f"`macs` does not know what is multiplied in {names}; not counted.")
    return Macs(sum(total.by_leaf.values()), float(effective), by_leaf, total.unbounded, tuple(total.unknown))


def _density(path: str, leaf: Any, mask: Any) -> float:
    keeps = verbs.of_weights(path, leaf, mask)
    return float(np.mean(keeps)) if keeps is not None and keeps.size else 1.0
