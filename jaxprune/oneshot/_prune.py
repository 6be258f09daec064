"""SparseGPT, ADMM and Wanda for a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from jaxprune import layerwise, patterns
from jaxprune._arrays import tree
from jaxprune.filters import is_kernel
from jaxprune.oneshot import _kernels, _sequential
from jaxprune.oneshot._sequential import Method, Progress
from jaxprune.typing import Kernel, Mask, Masks, Params, Sparsity, Where


def sparsegpt(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    sparsity: Sparsity | Any | None = None,
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    where: Where = is_kernel,
    block: int = 128,
    damping: float = 0.1,
    within: Literal["block", "output"] = "block",
    propagate: bool = True,
    correction: float = 0.5,
    mask: Callable[..., Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Params, Masks]:
    """Prunes a model and adjusts what is left, layer by layer, each for the inputs that the pruned ones before it give.

    The function is evaluated once, for all batches together, and stops at each kernel to prune it; beside it, so is the
    function of the given parameters, whose outputs the pruned kernels are to come near. Kernels with the same input
    share its Gram matrix; layers of a `lax.scan` are pruned one after another. Between two kernels only what the rest
    of the function needs is held, for every batch; smaller batches take less besides.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays; a kernel's axes may lie in any order.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      sparsity: Fraction of each kernel to remove, in [0, 1]; or a tree with one for each leaf, an array of them for the
        layers of a stack. `None` means what the pattern fixes, else 0.5.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      where: Picks the leaves, by `(path, leaf)`.
      block: See `layerwise.sparsegpt`.
      damping: Likewise, and larger than for a layer alone: what fits a few samples too closely serves others worse. The
        paper's program takes 0.01.
      within: Likewise.
      propagate: Whether a kernel sees what the pruned ones before it make of the batches, or what the given ones do.
      correction: How much of what pruned kernels before it have changed each kernel makes up for, in [0, 1]: in its
        inputs, and in what its outputs are added to; see `layerwise.correct`. 0, as in the paper, evaluates no second
        function. A kernel in a loop that no stack of kernels goes along with is not corrected.
      mask: `mask(*args)` says which samples count; see `calibrate`.
      progress: Called as `progress(done, total, path)` after each kernel.

    Returns:
      The parameters, exactly 0 where they are pruned, and the masks: `None` for leaves that were not picked.

    Raises:
      ValueError: Nothing multiplies a picked leaf, what does is not understood, or its Gram matrix is not finite; the
        message names the path.

    Example:
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> batches = [jax.random.normal(jax.random.key(i), (32, 4)) for i in range(2)]
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params, masks = jaxprune.sparsegpt(fun, params, batches, 0.75)
      >>> print(jaxprune.sparsity(params, masks))
      0.75

    References:
      Frantar & Alistarh, 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot".
    """
    of = _sparsities(params, sparsity)
    pattern = _kernels.along_inputs(pattern)

    def solve(kernel: Kernel, damped: Any, _: Any, path: str, place: tuple[int, ...]) -> tuple[Kernel, Mask]:
        return layerwise.sparsegpt(kernel, damped, of(path, place), pattern, block=block, within=within)

    method = Method(_sequential.GRAM, lambda gram: layerwise.damp(gram, damping), solve)
    return _sequential.run(
        fun,
        params,
        batches,
        method,
        where=where,
        valid=mask,
        propagate=propagate,
        correction=correction,
        progress=progress,
    )


def admm(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    sparsity: Sparsity | Any | None = None,
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    where: Where = is_kernel,
    iterations: int = 20,
    damping: float = 0.3,
    penalty: float | None = None,
    within: Literal["layer", "output"] = "output",
    propagate: bool = True,
    correction: float = 0.5,
    mask: Callable[..., Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Params, Masks]:
    """As `sparsegpt`, with `layerwise.admm` for each kernel: several times as long, and nearer to the dense model.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      sparsity: One for all kernels, or a tree; see `sparsegpt`.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      where: Picks the leaves, by `(path, leaf)`.
      iterations: See `layerwise.admm`.
      damping: Likewise, and larger than for a layer alone, as in `sparsegpt`.
      penalty: See `layerwise.admm`. `None` means 1 for N:M, which takes a higher one badly, else 3.
      within: Likewise; those of one output by default, which serves a whole model better.
      propagate: Whether a kernel sees what the pruned ones before it make of the batches, or what the given ones do.
      correction: See `sparsegpt`.
      mask: `mask(*args)` says which samples count; see `calibrate`.
      progress: Called as `progress(done, total, path)` after each kernel.

    Returns:
      The parameters, exactly 0 where they are pruned, and the masks: `None` for leaves that were not picked.

    Raises:
      ValueError: As `sparsegpt`.

    Example:
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params, masks = jaxprune.admm(fun, params, [x], pattern=jaxprune.patterns.NM(2, 4))
      >>> print(jaxprune.sparsity(params, masks))
      0.5

    References:
      Boža, 2024, "Fast and Effective Weight Update for Pruned Large Language Models".
    """
    of = _sparsities(params, sparsity)
    pattern = _kernels.along_inputs(pattern)
    if penalty is None:
        penalty = 1.0 if isinstance(pattern, patterns.NM) else 3.0

    def solve(kernel: Kernel, gram: Any, _: Any, path: str, place: tuple[int, ...]) -> tuple[Kernel, Mask]:
        asked = of(path, place), pattern, iterations, damping, penalty
        return layerwise.admm(kernel, gram, *asked, within=within)

    method = Method(_sequential.GRAM, lambda gram: gram, solve)
    return _sequential.run(
        fun,
        params,
        batches,
        method,
        where=where,
        valid=mask,
        propagate=propagate,
        correction=correction,
        progress=progress,
    )


def wanda(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    sparsity: Sparsity | Any | None = None,
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    where: Where = is_kernel,
    within: Literal["layer", "output"] = "output",
    propagate: bool = True,
    mask: Callable[..., Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Params, Masks]:
    """As `sparsegpt`, with `layerwise.wanda` for each kernel: quick, and what is left is not adjusted.

    `jaxprune.wanda` chooses by what `calibrate` measured in the dense model; this one sees what the pruned kernels
    before each make of the batches.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      sparsity: One for all kernels, or a tree; see `sparsegpt`.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      where: Picks the leaves, by `(path, leaf)`.
      within: See `layerwise.wanda`.
      propagate: Whether a kernel sees what the pruned ones before it make of the batches, or what the given ones do.
      mask: `mask(*args)` says which samples count; see `calibrate`.
      progress: Called as `progress(done, total, path)` after each kernel.

    Returns:
      The parameters, exactly 0 where they are pruned, and the masks: `None` for leaves that were not picked.

    Raises:
      ValueError: Nothing multiplies a picked leaf, or what does is not understood; the message names the path.

    Example:
      >>> from jaxprune import oneshot
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params, masks = oneshot.wanda(fun, params, [x], 0.5)
      >>> print(jaxprune.sparsity(params, masks))
      0.5

    References:
      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models".
    """
    of = _sparsities(params, sparsity)
    pattern = _kernels.along_inputs(pattern)

    def solve(kernel: Kernel, norm: Any, _: Any, path: str, place: tuple[int, ...]) -> tuple[Kernel, Mask]:
        return layerwise.wanda(kernel, norm, of(path, place), pattern, within=within)

    method = Method(_sequential.NORM, lambda norm: norm, solve)
    return _sequential.run(
        fun, params, batches, method, where=where, valid=mask, propagate=propagate, progress=progress
    )


def _sparsities(params: Params, sparsity: Any) -> Callable[[str, tuple[int, ...]], Any]:
    """The sparsity of each kernel, of one number or of a tree."""
    if isinstance(sparsity, float | int | None) or (tree.is_array(sparsity) and sparsity.ndim == 0):
        return lambda path, place: sparsity
    rows, _ = tree.flatten(params, sparsity, names=("tree of sparsities",))
    table = {path: given for path, _, given in rows}
    return lambda path, place: table[path] if np.ndim(table[path]) == 0 else float(np.asarray(table[path])[place])
