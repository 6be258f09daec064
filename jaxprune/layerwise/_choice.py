"""What the algorithms share: checks of their arguments, how many weights to keep, and which."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxprune import budgets, patterns
from jaxprune._arrays import checks, ordering, tree
from jaxprune._selection import requests
from jaxprune.typing import Kernel, Sparsity

_WHOLE = {
    "block": "is a number of inputs, at least 1",
    "iterations": "must be at least 1, a whole number",
    "steps": "must be at least 1, a whole number",
}


def checked(kernel: Kernel, width: tuple[int, ...], pattern: Any, sparsity: Sparsity | None) -> Sparsity:
    """Checks the arguments of an algorithm, and returns the sparsity that follows from pattern and request.

    Raises:
      ValueError: Kernel, Gram matrix and pattern do not fit together, or the sparsity contradicts the pattern.
      TypeError: The kernel is not floating, or the pattern is neither `Unstructured` nor `NM`.
    """
    tree.check_floating("kernel", kernel)
    if kernel.ndim != 2 or width != (kernel.shape[0],) * 2:
        raise ValueError(
            f"The kernel must be (in, out) and the Gram matrix (in, in); got {kernel.shape} and {width}. Transpose an "
            "(out, in) kernel."
        )
    if isinstance(pattern, patterns.NM):
        if pattern.axis not in (None, 0, -2) or kernel.shape[0] % pattern.m:
            raise ValueError(
                f"`{pattern}` runs along the inputs, axis 0, which {pattern.m} must divide; the kernel has shape "
                f"{kernel.shape} and the pattern axis {pattern.axis}."
            )
    elif not isinstance(pattern, patterns.Unstructured):
        raise TypeError(f"The pattern must be `Unstructured()` or `NM(n, m)`; got {pattern}.")
    return requests.without_budget(pattern, sparsity)


def checked_options(**options: float | None) -> None:
    """Raises where an option is out of range: counts are 1 or more, other numbers 0 or more; `None` passes.

    Raises:
      ValueError: One is out of range, infinite or NaN.
      TypeError: One is no number.
    """
    for name, value in options.items():
        if value is None or not checks.is_concrete(value):
            continue
        if name in _WHOLE:
            if checks.real(value, name) < 1 or value != int(value):
                raise ValueError(f"`{name}` {_WHOLE[name]}; got {value}.")
        else:
            checks.positive(value, name, zero=True)


def checked_within(within: str, *allowed: str) -> None:
    """Raises a `ValueError` unless `within` is one of the words allowed."""
    if within not in allowed:
        raise ValueError(f"`within` must be {' or '.join(map(repr, allowed))}; got {within!r}.")


def check_mask(kernel: Kernel, mask: Bool[Array, "in out"] | None) -> None:
    """Raises a `ValueError` unless the mask, if there is one, is a boolean array of the kernel's shape."""
    if mask is not None and (mask.shape != kernel.shape or mask.dtype != bool):
        raise ValueError(
            f"The mask must be boolean and of the kernel's shape {kernel.shape}; got {mask.dtype} {mask.shape}. "
            "Broadcast it, or compare it with 0."
        )


def scored(scores: Float[Array, "in out"], allowed: Bool[Array, "in out"] | None) -> Float[Array, "in out"]:
    """The scores, NaN for weights that may not stay, so that they are pruned first."""
    return scores if allowed is None else jnp.where(allowed, scores, jnp.nan)


def working(kernel: Kernel, statistic: Float[Array, "..."]) -> Any:
    """The dtype to compute in: float32 or wider."""
    return tree.promote(tree.promote(kernel.dtype, statistic.dtype), jnp.float32)


def counts(sizes: list[int], sparsity: Sparsity) -> Int[Array, " size"]:
    """How many of each number of weights stay; the sparsity may be traced."""
    return jnp.stack([jnp.asarray(budgets.keep_count(size, sparsity), jnp.int32) for size in sizes])


def chosen(
    scores: Float[Array, "in out"], keep: Int[Array, ""], pattern: Any, by_output: bool
) -> Bool[Array, "in out"]:
    """The mask of the highest scores: those that the pattern chooses, or `keep` of all, or of each output."""
    return pattern.select(scores, 0) if isinstance(pattern, patterns.NM) else highest(scores, keep, by_output)


def highest(scores: Float[Array, "in out"], keep: Int[Array, ""], by_output: bool) -> Bool[Array, "in out"]:
    """The `keep` highest of all scores, or of each output's; ties to the lowest index, NaN last.

    By bisection in one small loop: `jaxprune.select` takes fewer passes, but compiles for seconds.
    """
    groups = scores.shape[1] if by_output else 1
    return ordering.highest(scores, jnp.full((1, groups), keep), (0,) if by_output else (0, 1))
