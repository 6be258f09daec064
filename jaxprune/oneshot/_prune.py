"""Prunes a whole model by any method for one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack

import numpy as np

from jaxprune import layerwise, patterns
from jaxprune._arrays import tree
from jaxprune._masks import masking
from jaxprune._progress import Progress
from jaxprune._selection import requests
from jaxprune.oneshot import _kernels, _sequential
from jaxprune.oneshot._sequential import Options
from jaxprune.typing import Kernel, Mask, Masks, Params, Sparsity, Where

_CORRECTION = 0.5


class PruneOptions(Options, total=False):
    """The keyword arguments of `prune`, for functions that pass them on; the sparsity aside."""

    pattern: patterns.Unstructured | patterns.NM
    where: Where | None
    correction: float | None


def prune(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    method: layerwise.Method,
    *,
    sparsity: Sparsity | Any | None = None,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    where: Where | None = None,
    within: Masks = None,
    propagate: bool = True,
    correction: float | None = None,
    valid: Callable[..., Any] | None = None,
    progress: Progress | bool = False,
) -> tuple[Params, Masks]:
    """Prunes a model layer by layer, each for the inputs that the pruned layers before it give.

    The function is evaluated once, for all batches together, and stops at each kernel to prune it. The function of the
    given parameters is evaluated along with it, since a correction compares the two. Kernels with the same input share
    what is measured of it; layers of a `lax.scan` are pruned one after another. Between two kernels only what the rest
    of the function needs is kept, for every batch; smaller batches need less memory in between.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays; the axes of a kernel may be in any order.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      method: What prunes a single kernel: `layerwise.SparseGPT()`, `layerwise.ADMM()`, `layerwise.Wanda()`, or a
        `layerwise.Method` of your own.
      sparsity: Fraction of each kernel to remove, in [0, 1]; or a tree with one for each leaf, an array of them for the
        layers of a stack. `None` means what the pattern fixes, else 0.5. A method that compares within outputs, as ADMM
        and Wanda do by default, rounds for each output: half of 15 inputs are 8 that stay.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      where: Picks the leaves, by `(path, leaf)`. By default those that `filters.is_kernel` picks and the function
        multiplies something by; a warning names those that it does not.
      within: Masks of weights that may stay: what these prune is and stays 0, whatever the method. An output or a block
        with fewer weights than it may keep keeps those. A leaf that is not picked is only masked.
      propagate: Whether a kernel's inputs are those that the pruned kernels before it give, or those of the given
        model.
      correction: How much of the change that the pruned kernels before it have caused each kernel makes up for, in
        [0, 1]: the change of its inputs, and of the sum that its outputs are added to; see `layerwise.correct`. 0, as
        in the papers, needs no second evaluation. `None` means 0.5 for methods that measure Gram matrices; the others
        cannot be corrected. A kernel inside a loop is not corrected unless the loop steps along a stack of kernels.
      valid: `valid(*args)` says which samples count; see `calibrate`.
      progress: Called as `progress(done, total, path)` after each kernel; or `True`, to show a bar by rich.

    Returns:
      The parameters, exactly 0 where they are pruned, and the masks: `None` for leaves that were not picked.

    Raises:
      ValueError: There are no batches, an option is out of range, weights or inputs are NaN or infinite, nothing
        multiplies a picked leaf, or what does is not understood; the message names the path.
      ImportError: Without rich, if a bar is asked for; `pip install "jaxprune[training]"` brings it.

    Examples:
      >>> from jaxprune import layerwise, oneshot
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> batches = [jax.random.normal(jax.random.key(i), (32, 4)) for i in range(2)]
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params, masks = oneshot.prune(fun, params, batches, layerwise.ADMM(), sparsity=0.75)
      >>> print(jaxprune.sparsity(params, masks))
      0.75

    References:
      Frantar & Alistarh, 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", for pruning
      layer by layer; the methods name their own.
    """
    sparsity_of = _sparsities(params, sparsity)
    pattern = _kernels.along_inputs(pattern)
    statistic = getattr(method, "statistic", None)
    if statistic not in ("gram", "norm"):
        raise ValueError(
            f"`{type(method).__name__}.statistic` must be 'gram' or 'norm'; got {statistic!r}. Give a value, "
            "such as `layerwise.SparseGPT()`."
        )
    if correction is None:
        correction = _CORRECTION if method.statistic == "gram" else 0.0
    elif correction and method.statistic != "gram":
        raise ValueError(
            f"`correction` needs the Gram matrices of the inputs, and {method} measures their norms. Leave it out."
        )

    def solve(kernel: Kernel, prepared: Any, mask: Any, path: str, place: tuple[int, ...]) -> tuple[Kernel, Mask]:
        asked = requests.without_budget(pattern, sparsity_of(path, place))
        # A method of the user's need not know of masks that are never given.
        found = method.prune(kernel, prepared, asked, pattern, *(() if mask is None else (mask,)))
        _check_result(method, kernel, *found)
        return found

    if within is not None:
        params = masking.apply(params, within)

    return _sequential.run(
        fun,
        params,
        batches,
        _sequential.Solver(method.statistic, method.prepare, solve),
        where=where,
        masks=_kernels.full_masks(params, within),
        propagate=propagate,
        correction=correction,
        valid=valid,
        progress=progress,
    )


def sparsegpt(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    sparsity: Sparsity | Any | None = None,
    *,
    block: int = 128,
    damping: float = 0.1,
    within: Literal["block", "output"] = "block",
    **options: Unpack[PruneOptions],
) -> tuple[Params, Masks]:
    """`oneshot.prune` by `layerwise.SparseGPT`: prunes a model layer by layer and adjusts the weights that are left.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      sparsity: See `oneshot.prune`.
      block: See `layerwise.SparseGPT`.
      damping: See `layerwise.SparseGPT`.
      within: See `layerwise.SparseGPT`.
      **options: `pattern`, `where`, `propagate`, `correction`, `valid` and `progress`; see `oneshot.prune`.

    Returns:
      The parameters, exactly 0 where they are pruned, and the masks.

    Raises:
      ValueError: See `oneshot.prune`.

    Examples:
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params, masks = jaxprune.sparsegpt(fun, params, [x], 0.75)
      >>> print(jaxprune.sparsity(params, masks))
      0.75

    References:
      Frantar & Alistarh, 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot".
    """
    method = layerwise.SparseGPT(block=block, damping=damping, within=within)
    return prune(fun, params, batches, method, sparsity=sparsity, **options)


def admm(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    sparsity: Sparsity | Any | None = None,
    *,
    iterations: int = 20,
    damping: float = 0.3,
    penalty: float | None = None,
    within: Literal["layer", "output"] = "output",
    **options: Unpack[PruneOptions],
) -> tuple[Params, Masks]:
    """`oneshot.prune` by `layerwise.ADMM`: takes several times as long as `sparsegpt`, and comes nearer to the model.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      sparsity: See `oneshot.prune`.
      iterations: See `layerwise.ADMM`.
      damping: See `layerwise.ADMM`.
      penalty: See `layerwise.ADMM`.
      within: See `layerwise.ADMM`.
      **options: `pattern`, `where`, `propagate`, `correction`, `valid` and `progress`; see `oneshot.prune`.

    Returns:
      The parameters, exactly 0 where they are pruned, and the masks.

    Raises:
      ValueError: See `oneshot.prune`.

    Examples:
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> fun = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> params, masks = jaxprune.admm(fun, params, [x], pattern=jaxprune.patterns.NM(2, 4))
      >>> print(jaxprune.sparsity(params, masks))
      0.5

    References:
      Boža, 2024, "Fast and Effective Weight Update for Pruned Large Language Models".
    """
    method = layerwise.ADMM(iterations=iterations, damping=damping, penalty=penalty, within=within)
    return prune(fun, params, batches, method, sparsity=sparsity, **options)


def _check_result(method: layerwise.Method, kernel: Kernel, new: Any, mask: Any) -> None:
    got = [f"{array.dtype} {array.shape}" if tree.is_array(array) else type(array).__name__ for array in (new, mask)]
    expected = [f"{kernel.dtype} {kernel.shape}", f"bool {kernel.shape}"]
    if got != expected:
        raise ValueError(
            f"`{type(method).__name__}.prune` must return the kernel as {expected[0]} and the mask as {expected[1]}; "
            f"got {got[0]} and {got[1]}. Cast or broadcast them."
        )


def _sparsities(params: Params, sparsity: Any) -> Callable[[str, tuple[int, ...]], Any]:
    """The sparsity of each kernel, from one number or from a tree."""
    if isinstance(sparsity, float | int | str | np.generic | None) or (tree.is_array(sparsity) and sparsity.ndim == 0):
        return lambda path, place: sparsity
    rows, _ = tree.flatten(params, sparsity, names=("tree of sparsities",))
    table = {path: given for path, _, given in rows}
    return lambda path, place: table[path] if np.ndim(table[path]) == 0 else float(np.asarray(table[path])[place])
