"""What can be done for a whole model whose masks are given: its kept weights re-solved, its masks refined."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from jaxprune import layerwise, patterns
from jaxprune._arrays import tree
from jaxprune._masks import masking
from jaxprune.filters import is_kernel
from jaxprune.oneshot import _kernels, _sequential
from jaxprune.oneshot._sequential import Method, Progress
from jaxprune.typing import Kernel, Mask, Masks, Params, Where


def repair(
    fun: Callable[..., Any],
    params: Params,
    masks: Masks,
    batches: Iterable[Any],
    *,
    where: Where = is_kernel,
    damping: float = 0.01,
    propagate: bool = True,
    correction: float = 0.0,
    mask: Callable[..., Any] | None = None,
    progress: Progress | None = None,
) -> Params:
    """Re-solves what any masks keep, so that it makes up for what they prune: without gradients, layer by layer.

    Each kernel's kept weights become the least-squares fit to the outputs of the given kernel, on the inputs that the
    repaired kernels before it give.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Before it was pruned: what the kernels are fitted to.
      masks: From any strategy. They may broadcast, as those of whole channels do.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      where: Picks the leaves to repair, by `(path, leaf)`, of those that have a mask; the others are only masked.
      damping: See `layerwise.refit`.
      propagate: Whether a kernel sees what the repaired ones before it make of the batches, or what the given ones do.
      correction: See `jaxprune.sparsegpt`.
      mask: `mask(*args)` says which samples count; see `calibrate`.
      progress: Called as `progress(done, total, path)` after each kernel.

    Returns:
      The parameters, exactly 0 where they are pruned.

    Raises:
      ValueError: A mask is not a boolean array that broadcasts against its kernel, nothing multiplies a picked leaf, or
        what does is not understood; the message names the path.

    Example:
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> masks = jaxprune.magnitude(params, 0.5)
      >>> repaired = jaxprune.oneshot.repair(fun, params, masks, [x])
      >>> print(jaxprune.sparsity(repaired))
      0.5
    """
    start, given, chosen = _prepared(params, masks, where)

    def solve(kernel: Kernel, gram: Any, kept: Any, path: str, place: tuple[int, ...]) -> tuple[Kernel, Mask]:
        del path, place
        return layerwise.refit(kernel, gram, kept, damping), kept

    method = Method(_sequential.GRAM, lambda gram: gram, solve)
    return _sequential.run(
        fun,
        start,
        batches,
        method,
        where=chosen,
        masks=given,
        valid=mask,
        propagate=propagate,
        correction=correction,
        progress=progress,
    )[0]


def swap(
    fun: Callable[..., Any],
    params: Params,
    masks: Masks,
    batches: Iterable[Any],
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    where: Where = is_kernel,
    steps: int = 100,
    propagate: bool = True,
    mask: Callable[..., Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Params, Masks]:
    """Refines masks by `layerwise.swap`, layer by layer; what is kept has its given value.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Before it was pruned.
      masks: From any strategy; those of picked leaves have the leaf's shape.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      pattern: `Unstructured()`, or the `NM(n, m)` along the inputs that the masks obey.
      where: Picks the leaves, by `(path, leaf)`, of those that have a mask; the others are only masked.
      steps: See `layerwise.swap`.
      propagate: Whether a kernel sees what the pruned ones before it make of the batches, or what the given ones do.
      mask: `mask(*args)` says which samples count; see `calibrate`.
      progress: Called as `progress(done, total, path)` after each kernel.

    Returns:
      The parameters, exactly 0 where they are pruned, and the masks. `repair` takes the masks, and what was given.

    Raises:
      ValueError: As `repair`.

    Example:
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

    def solve(kernel: Kernel, gram: Any, kept: Any, path: str, place: tuple[int, ...]) -> tuple[Kernel, Mask]:
        del path, place
        refined = layerwise.swap(kernel, kept, gram, pattern, steps)
        return jnp.where(refined, kernel, 0), refined

    method = Method(_sequential.GRAM, lambda gram: gram, solve)
    pruned, found = _sequential.run(
        fun, start, batches, method, where=chosen, masks=given, valid=mask, propagate=propagate, progress=progress
    )
    return pruned, tree.map_with_path(lambda _, leaf, new, old: old if new is None else new, params, found, masks)


def _prepared(params: Params, masks: Masks, where: Where) -> tuple[Params, Masks, Where]:
    """The parameters with the masks of what is not picked applied, the picked masks whole, and what is picked."""
    rows, structure = tree.flatten(params, masks, names=("masks",))
    chosen = {path for path, leaf, given in rows if given is not None and where(path, leaf)}
    whole = [_whole(path, leaf, given) if path in chosen else None for path, leaf, given in rows]
    others = [None if path in chosen else given for path, _, given in rows]
    start = masking.apply(params, structure.unflatten(others))
    return start, structure.unflatten(whole), lambda path, _: path in chosen


def _whole(path: str, leaf: Any, given: Any) -> Mask:
    got = f"{given.dtype} {given.shape}" if tree.is_array(given) else type(given).__name__
    if not tree.is_array(given) or given.dtype != bool or not _broadcasts(given.shape, leaf.shape):
        raise ValueError(
            f"The mask of '{path}' must be a boolean array that broadcasts against {leaf.shape}; got {got}. Leave it "
            "out with `where=`, or unpack it."
        )
    return jnp.broadcast_to(given, leaf.shape)


def _broadcasts(shape: tuple[int, ...], against: tuple[int, ...]) -> bool:
    return len(shape) == len(against) and all(size in (1, wide) for size, wide in zip(shape, against, strict=True))
