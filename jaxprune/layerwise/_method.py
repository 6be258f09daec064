"""What `oneshot.prune` asks of a method that prunes one kernel."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float

from jaxprune import patterns
from jaxprune.typing import Kernel, Sparsity


@runtime_checkable
class Method(Protocol):
    """A method that `oneshot.prune` applies to one kernel after another: `SparseGPT`, `ADMM`, `Wanda`, or your own.

    A method is a value: a class of yours with these three members, best a frozen dataclass whose fields are its
    options. It sees every kernel as a matrix, inputs first, however the axes lie in the parameter.

    Examples:
      Magnitudes, among the inputs that are not small:

      >>> import dataclasses
      >>> from jaxprune import oneshot
      >>> @dataclasses.dataclass(frozen=True)
      ... class LargeInputs:
      ...     statistic = "norm"
      ...     def prepare(self, statistic):
      ...         return statistic > 0.5
      ...     def prune(self, kernel, prepared, sparsity, pattern):
      ...         scores = {"kernel": jnp.abs(kernel) * prepared[:, None]}
      ...         mask = jaxprune.from_scores(scores, sparsity, pattern=pattern)["kernel"]
      ...         return jnp.where(mask, kernel, 0), mask
      >>> params, x = {"kernel": jnp.ones((3, 2))}, jnp.array([[1.0, 0.1, 2.0]])
      >>> _, masks = oneshot.prune(lambda p, x: x @ p["kernel"], params, [x], LargeInputs(), sparsity=1 / 3)
      >>> print(masks["kernel"])
      [[ True  True]
       [False False]
       [ True  True]]
    """

    @property
    def statistic(self) -> Literal["gram", "norm"]:
        r"""What is measured of a kernel's inputs X, one row a sample.

        `"gram"`: $X^\top X$, float32 `(in, in)`. `"norm"`: the norm of each column, float32 `(in,)`, which takes far
        less memory.
        """
        ...

    def prepare(self, statistic: Float[Array, "..."]) -> Any:
        """Does once what all kernels with the same inputs can share, such as a factorisation.

        Args:
          statistic: Of the inputs that they share.

        Returns:
          Whatever `prune` needs; the statistic itself where there is nothing to share.
        """
        ...

    def prune(
        self,
        kernel: Kernel,
        prepared: Any,
        sparsity: Sparsity,
        pattern: patterns.Unstructured | patterns.NM,
        mask: Bool[Array, "in out"] | None = None,
    ) -> tuple[Kernel, Bool[Array, "in out"]]:
        """Prunes one kernel.

        Args:
          kernel: `(in, out)`, floating; a method may change the weights that it keeps.
          prepared: From `prepare`.
          sparsity: The fraction of this kernel to remove, in [0, 1]: what the pattern fixes where it fixes one.
          pattern: `NM(n, m)` runs along the inputs.
          mask: Which weights may stay; only passed where `oneshot.prune` is given `within=`.

        Returns:
          The new kernel, of the same shape and dtype and 0 where it is pruned, and the mask, `True` = kept.

        Raises:
          ValueError: It cannot be done. `oneshot.prune` puts the path of the parameter before the message.
        """
        ...
