"""Measures what multiplies each parameter while a function runs, in any framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune._arrays import tree
from jaxprune._calibration import _accumulators
from jaxprune._jaxpr.roles import capture
from jaxprune._jaxpr.roles.operands import Product, UnsupportedProduct
from jaxprune._jaxpr.roles.rules import Use, settled, uses
from jaxprune._jaxpr.tracing import Traced, arrays, trace
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, Statistics, Where

_KINDS = {"norm": _accumulators.NORM, "variance": _accumulators.VARIANCE, "gram": _accumulators.GRAM}


def calibrate(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    *,
    statistic: Literal["norm", "variance", "gram"] = "norm",
    where: Where = is_kernel,
    valid: Callable[..., Any] | None = None,
) -> Statistics:
    """Runs a function over data and measures what each parameter is multiplied by.

    Every product with a parameter is found in the jaxpr, wherever it is: in loops, branches and calls, batched by
    `vmap`, behind casts, transposes and reshapes of the parameter. Each layer of a scan and each expert has its own
    statistic. A parameter that is used several times, as in a recurrent network, has one statistic over all its uses;
    of a `cond`, only the branch that is taken counts. A convolution's inputs are those under each tap, with the zeros
    of its padding. What the program does to a parameter before the product (a scale, a mask) does not change its input.

    Each batch is one compiled pass, compiled once for every shape of batch. Statistics are float32 and merged as means
    and variances, so that their accuracy does not fall with the number of batches. Batches that are sharded over
    devices give the statistics of all their samples.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      statistic: `"norm"`, the size of each input; `"variance"`, mean and variance of each input and each output;
        `"gram"`, the Gram matrix of the inputs.
      where: Picks the leaves to measure, by `(path, leaf)`; the rest get `None`.
      valid: `valid(*args)` says which samples count, as `tokens != padding` would: boolean, over the leading axes of
        the samples of every product, `(batch,)` or `(batch, time)`. A product whose samples are `(batch * time, ...)`
        is understood too.

    Returns:
      A tree with the structure of `params` of `statistics.Norm`, `statistics.Variance` or `statistics.Gram`.

    Raises:
      ValueError: Nothing multiplies a picked leaf, or what does is not understood; the message names paths and reasons.
        Or there are no batches.

    Examples:
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
      >>> batches = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 0.0]])]
      >>> got = jaxprune.calibrate(lambda p, x: x @ p["kernel"] + p["bias"], params, batches, statistic="gram")
      >>> print(got["kernel"].gram, got["kernel"].count, got["bias"])
      [[10.  2.]
       [ 2.  4.]] 2 None

    References:
      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models" (norms); Frantar & Alistarh,
      2023, "SparseGPT" (Gram matrices).
    """
    if statistic not in _KINDS:
        raise ValueError(f"`statistic` must be 'norm', 'variance' or 'gram'; got {statistic!r}.")
    kind = _KINDS[statistic]
    tree.choose(where, params)  # raises where it picks nothing
    leaves = list(arrays(params).values())
    made = ByShape(fun, params, where, lambda traced, found: (_step(traced, found, kind), found))
    found: Mapping[int, Use] = {}
    states: Any = None
    for batch in batches:
        (step, found), args = made(batch)
        if states is None:
            states = {leaf: kind.empty(leaves[leaf].shape, use) for leaf, use in found.items()}
        counts = None if valid is None else jnp.asarray(valid(*args), bool)
        states = step(states, leaves, list(arrays(args).values()), counts)
    if states is None:
        raise ValueError("`calibrate` needs at least one batch; `batches` is empty.")
    numbers = iter(range(len(leaves)))

    def result(_: str, leaf: Any) -> Any:
        index = next(numbers) if tree.is_array(leaf) else -1
        return kind.finish(states[index], leaf.shape, found[index]) if index in states else None

    return tree.map_with_path(result, params)


@dataclasses.dataclass
class ByShape:
    """Traces a function once for each shape of batch, and keeps what a caller builds from the trace.

    Attributes:
      fun: The function.
      params: Its parameters.
      where: Picks the leaves.
      make: `make(traced, found)`, where `found` says how each picked leaf is used.
      made: The results of `make`, by the structure, shapes and dtypes of the batch.
    """

    fun: Callable[..., Any]
    params: Params
    where: Where
    make: Callable[[Traced, dict[int, Use]], Any]
    made: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, batch: Any) -> tuple[Any, tuple[Any, ...]]:
        """The result of `make` for a batch of this shape, and the batch as a tuple of arguments."""
        args = batch if isinstance(batch, tuple) else (batch,)
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple(jax.typeof(leaf) if tree.is_array(leaf) else leaf for leaf in leaves)
        if key not in self.made:
            traced = trace(self.fun, self.params, *args)
            self.made[key] = self.make(traced, _picked(traced, self.where))
        return self.made[key], args


def _picked(traced: Traced, where: Where) -> dict[int, Use]:
    """How each picked leaf is used."""
    found = uses(traced)
    uses_of: dict[int, Use] = {}
    unclear = list[str]()
    for index, (path, leaf) in enumerate(zip(traced.paths, traced.leaves, strict=True)):
        if where(path, leaf):
            use = settled(found, index, leaf.ndim)
            if isinstance(use, Use):
                uses_of[index] = use
            else:
                unclear.append(f"'{path}' ({use})")
    if unclear:
        raise ValueError(
            f"`calibrate` measures what a parameter is multiplied by; there is no such thing for {', '.join(unclear)}. "
            "Leave them out with `where=`."
        )
    return uses_of


def _step(traced: Traced, found: Mapping[int, Use], kind: _accumulators.Kind) -> Callable[..., Any]:
    """The compiled function that adds one batch to the states."""

    def step(states: Any, leaves: list[Any], inputs: list[Any], valid: Any) -> Any:
        def record(product: Product, state: Any) -> Any:
            try:
                return kind.take(state, product, found[product.leaf], valid)
            except UnsupportedProduct as error:
                path = traced.paths[product.leaf]
                raise ValueError(
                    f"`calibrate` cannot tell what multiplies '{path}': {error}. Leave it out with `where=`."
                ) from error

        return capture.evaluate(traced, leaves, inputs, states, record)[1]

    return jax.jit(step, donate_argnums=0)
