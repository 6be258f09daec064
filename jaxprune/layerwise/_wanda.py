"""Wanda: removes the weights that add least to their output; the others do not change."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxprune import patterns
from jaxprune._arrays import inputs
from jaxprune.layerwise import _choice
from jaxprune.typing import Kernel, Sparsity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanda:
    """Wanda as a method for `oneshot.prune`; see `wanda`. The fastest one: the weights that it keeps do not change.

    `jaxprune.wanda` chooses by what `calibrate` measured in the dense model; with this one, each kernel is pruned for
    the inputs that the pruned kernels before it give.

    Attributes:
      within: Which weights compete, if unstructured: those of one output, as in the paper, or all of the layer.

    Examples:
      >>> from jaxprune import layerwise, oneshot
      >>> params, x = {"kernel": jnp.ones((8, 4))}, jax.random.normal(jax.random.key(0), (64, 8))
      >>> params, masks = oneshot.prune(lambda p, x: x @ p["kernel"], params, [x], layerwise.Wanda(), sparsity=0.75)
      >>> print(jaxprune.sparsity(params, masks))
      0.75

    References:
      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models".
    """

    within: Literal["layer", "output"] = "output"

    def __post_init__(self) -> None:
        _choice.checked_within(self.within, "layer", "output")

    @property
    def statistic(self) -> Literal["norm"]:
        """The norms of the inputs are enough."""
        return "norm"

    def prepare(self, statistic: Float[Array, " in"]) -> Float[Array, " in"]:
        """The norms themselves."""
        return statistic

    def prune(
        self,
        kernel: Kernel,
        prepared: Float[Array, " in"],
        sparsity: Sparsity,
        pattern: patterns.Unstructured | patterns.NM,
        mask: Bool[Array, "in out"] | None = None,
    ) -> tuple[Kernel, Bool[Array, "in out"]]:
        """Calls `wanda`."""
        return wanda(kernel, prepared, sparsity, pattern=pattern, within=self.within, mask=mask)


def wanda(
    kernel: Kernel,
    norm: Float[Array, " in"],
    sparsity: Sparsity | None = None,
    *,
    pattern: patterns.Unstructured | patterns.NM = patterns.Unstructured(),
    within: Literal["layer", "output"] = "output",
    mask: Bool[Array, "in out"] | None = None,
) -> tuple[Kernel, Bool[Array, "in out"]]:
    r"""Prunes one layer by weight magnitude times input norm, $|W_{ij}| \lVert x_i \rVert_2$.

    Args:
      kernel: `(in, out)`, floating.
      norm: Of each of the layer's inputs over all samples, `(in,)`: the root of the Gram matrix's diagonal.
      sparsity: Fraction to remove, in [0, 1]; may be traced. `None` means what the pattern fixes, else 0.5.
      pattern: `Unstructured()`, or `NM(n, m)` along the inputs.
      within: See `Wanda`.
      mask: Which weights may stay, `True`; the others are pruned whatever their number. `None` means all.

    Returns:
      The kernel, exactly 0 where it is pruned, and the mask, `True` = kept.

    Raises:
      ValueError: The shapes or the pattern do not fit.
      TypeError: The kernel is not floating, or the pattern is another one.

    Examples:
      >>> from jaxprune import layerwise
      >>> kernel, mask = layerwise.wanda(jnp.array([[3.0, 1.0], [1.0, 2.0]]), jnp.array([0.1, 1.0]), 0.5)
      >>> print(kernel)
      [[0. 0.]
       [1. 2.]]

    References:
      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1.
    """
    sparsity = _choice.checked(kernel, norm.shape * 2, pattern, sparsity)
    _choice.check_mask(kernel, mask)
    _choice.checked_within(within, "layer", "output")
    by_output = within == "output"
    keep = _choice.counts([kernel.shape[0] if by_output else kernel.size], sparsity)[0]
    return _chosen(kernel, norm, keep, mask, pattern, by_output)


@functools.partial(jax.jit, static_argnames=("pattern", "by_output"))
def _chosen(
    kernel: Kernel,
    norm: Float[Array, " in"],
    keep: Int[Array, ""],
    allowed: Bool[Array, "in out"] | None,
    pattern: Any,
    by_output: bool,
) -> tuple[Kernel, Bool[Array, "in out"]]:
    dtype = _choice.working(kernel, norm)
    norm = norm.astype(dtype)
    norm = jnp.maximum(norm, jnp.sqrt(inputs.least_square(jnp.square(norm))))
    scores = jnp.abs(kernel.astype(dtype)) * norm[:, None]
    mask = _choice.chosen(_choice.scored(scores, allowed), keep, pattern, by_output)
    mask = mask if allowed is None else mask & allowed
    return jnp.where(mask, kernel, 0), mask
