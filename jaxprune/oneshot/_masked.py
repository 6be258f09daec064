"""Improves a whole model whose masks are given: solves for its kept weights anew, or refines the masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Unpack

import jax.numpy as jnp

from jaxprune import layerwise, patterns
from jaxprune._arrays import tree
from jaxprune._masks import masking
from jaxprune.filters import is_kernel
from jaxprune.oneshot import _kernels, _sequential
from jaxprune.oneshot._sequential import Options, Solver
from jaxprune.typing import Kernel, Mask, Masks, Params, Where


def repair(
    fun: Callable[..., Any],
    params: Params,
    masks: Masks,
    batches: Iterable[Any],
    *,
    where: Where = is_kernel,
    within: Masks = None,
    damping: float = 0.01,
    correction: float = 0.0,
    **options: Unpack[Options],
) -> Params:
    """Solves for the weights that any masks keep, so that they make up for the pruned ones; layer by layer.

    Each kernel's kept weights become the least-squares fit to the outputs of the given kernel, on the inputs that the
    repaired kernels before it give. No gradient is needed.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Of the dense model, whose outputs the kernels are fitted to.
      masks: From any strategy. They may broadcast, as those of whole channels do.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      where: Picks the leaves to repair, by `(path, leaf)`, of those that have a mask; the others are only masked.
      within: Further masks, such as those of a sparse model that was pruned again: what these prune stays 0 too.
      damping: See `layerwise.refit`.
      correction: See `oneshot.prune`; 0 by default.
      **options: `propagate`, `valid` and `progress`; see `oneshot.prune`.

    Returns:
      The parameters, exactly 0 where they are pruned.

    Raises:
      ValueError: A mask is not a boolean array that broadcasts against its kernel, nothing multiplies a picked leaf, or
        what does is not understood; the message names the path.

    Examples:
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> masks = jaxprune.magnitude(params, 0.5)
      >>> repaired = jaxprune.oneshot.repair(fun, params, masks, [x])
      >>> print(jaxprune.sparsity(repaired))
      0.5
    """
    start, given, chosen = _prepared(params, masks if within is None else masking.intersection(masks, within), where)

    def solve(kernel: Kernel, gram: Any, mask: Any, path: str, place: tuple[int, ...]) -> tuple[Kernel, Mask]:
        del path, place
        return layerwise.refit(kernel, gram, mask, damping=damping), mask

    solver = Solver("gram", lambda gram: gram, solve)
    return _sequential.run(fun, start, batches, solver, where=chosen, masks=given, correction=correction, **options)[0]


def swap(
    fun: Callable[..., Any],
    params: Params,
    masks: Masks,
    batches: Iterable[Any],
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    where: Where = is_kernel,
    steps: int = 100,
    **options: Unpack[Options],
) -> tuple[Params, Masks]:
    """Refines masks by `layerwise.swap`, layer by layer; the weights that are kept do not change.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Of the dense model.
      masks: From any strategy; those of picked leaves have the leaf's shape.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      pattern: `Unstructured()`, or the `NM(n, m)` along the inputs that the masks obey.
      where: Picks the leaves, by `(path, leaf)`, of those that have a mask; the others are only masked.
      steps: See `layerwise.swap`.
      **options: `propagate`, `valid` and `progress`; see `oneshot.prune`.

    Returns:
      The parameters, exactly 0 where they are pruned, and the masks. To go on with `repair`, give it these masks and
      the parameters of the dense model.

    Raises:
      ValueError: As `repair`.

    Examples:
      >>> from jaxprune import oneshot
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> pruned, masks = oneshot.swap(fun, params, jaxprune.magnitude(params, 0.5), [x])
      >>> print(jaxprune.sparsity(params, masks))
      0.5

    References:
      Zhang et al., 2024, "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs".
    """
    start, given, chosen = _prepared(params, masks, where)
    pattern = _kernels.along_inputs(pattern)

    def solve(kernel: Kernel, gram: Any, mask: Any, path: str, place: tuple[int, ...]) -> tuple[Kernel, Mask]:
        del path, place
        refined = layerwise.swap(kernel, gram, mask, pattern=pattern, steps=steps)
        return jnp.where(refined, kernel, 0), refined

    solver = Solver("gram", lambda gram: gram, solve)
    pruned, found = _sequential.run(fun, start, batches, solver, where=chosen, masks=given, **options)
    return pruned, tree.map_with_path(lambda _, leaf, new, old: old if new is None else new, params, found, masks)


def _prepared(params: Params, masks: Masks, where: Where) -> tuple[Params, Masks, Where]:
    """Applies the masks of the leaves that are not picked.

    Returns:
      The parameters, the masks of the picked leaves in their full shape, and which leaves are picked.
    """
    rows, structure = tree.flatten(params, masks, names=("masks",))
    chosen = {path for path, leaf, given in rows if given is not None and where(path, leaf)}
    whole = [_kernels.full_mask(path, leaf, given) if path in chosen else None for path, leaf, given in rows]
    others = [None if path in chosen else given for path, _, given in rows]
    start = masking.apply(params, structure.unflatten(others))
    return start, structure.unflatten(whole), lambda path, _: path in chosen
