"""Measures what multiplies each parameter while a function runs, in any framework."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune._arrays import checks, tree
from jaxprune._calibration import _accumulators
from jaxprune._jaxpr.roles import capture
from jaxprune._jaxpr.roles.operands import Product, UnsupportedProduct
from jaxprune._jaxpr.roles.rules import Use, settled, uses
from jaxprune._jaxpr.tracing import Traced, arrays, inputs_of, options_of, trace
from jaxprune.filters import is_kernel
from jaxprune.typing import Params, Statistics, Where

_MOST_KEPT = 32
_KEPT: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_KINDS = {"norm": _accumulators.NORM, "variance": _accumulators.VARIANCE, "gram": _accumulators.GRAM}


@options_of
def calibrate(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    *,
    statistic: Literal["norm", "variance", "gram"] = "norm",
    where: Where | None = None,
    valid: Callable[..., Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Statistics:
    """Runs a function over data and measures what each parameter is multiplied by.

    Every product with a parameter is found in the jaxpr, wherever it is: in loops, branches and calls, batched by
    `vmap`, behind casts, transposes and reshapes of the parameter. Each layer of a scan and each expert has its own
    statistic. A parameter that is used several times, as in a recurrent network, has one statistic over all its uses;
    of a `cond`, only the branch that is taken counts. A convolution's inputs are those under each tap, with the zeros
    of its padding. What the program does to a parameter before the product (a scale, a mask) does not change its input.

    Each batch is one compiled pass, compiled once for every shape of batch, also over several calls with the same
    function. As with `jax.jit`, what the function closes over must not change in between. Statistics are float32 and
    merged as means and variances, so that their accuracy does not fall with the number of batches. Batches that are
    sharded over devices give the statistics of all their samples.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      statistic: `"norm"`, the size of each input; `"variance"`, mean and variance of each input and each output;
        `"gram"`, the Gram matrix of the inputs.
      where: Picks the leaves to measure, by `(path, leaf)`; the rest get `None`. By default those that `filters.
        is_kernel` picks and the function multiplies something by; a warning names those that it does not, such as
        tables that are only looked up.
      valid: `valid(*args)` says which samples count, as `tokens != padding` would: boolean, over the leading axes of
        the samples of every product, `(batch,)` or `(batch, time)`. A product whose samples are `(batch * time, ...)`
        is understood too.
      kwargs: Keyword arguments of `fun`, by name and the same for every batch, such as `{"train": False}`.

    Returns:
      A tree with the structure of `params` of `statistics.Norm`, `statistics.Variance` or `statistics.Gram`.

    Raises:
      ValueError: Nothing multiplies a picked leaf, or what does is not understood; the message names paths and reasons.
        Or there are no batches, one has no rows or gives statistics that are not finite, or no sample counts: the last
        two are looked at where values are known, and not while this is itself traced.
      TypeError: `batches` is no iterable of batches.

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
    named = arrays(params)
    leaves, paths = list(named.values()), list(named)
    made = ByShape(
        fun, params, where, ("calibrate", statistic), lambda traced, found: (_step(traced, found, kind), found), kwargs
    )
    found: Mapping[int, Use] = {}
    states: Any = None
    finite = list[dict[int, Any]]()
    for batch in checked_batches(batches):
        (step, found), args = made(batch)
        if states is None:
            states = {leaf: kind.empty(leaves[leaf].shape, use) for leaf, use in found.items()}
        counts = None if valid is None else jnp.asarray(valid(*args), bool)
        states, is_finite = step(states, leaves, inputs_of(args, kwargs), counts)
        finite.append(is_finite)
    _check_finite(finite, paths)
    _check_counted(states, [paths[leaf] for leaf in found])
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
      where: Picks the leaves; `None` as for `calibrate`.
      purpose: What `make` depends on besides: results are kept with the function for later calls.
      make: `make(traced, found)`, where `found` says how each picked leaf is used. The trace holds no arrays of the
        parameters.
      kwargs: Keyword arguments of `fun`.
    """

    fun: Callable[..., Any]
    params: Params
    where: Where | None
    purpose: tuple[Any, ...]
    make: Callable[[Traced, dict[int, Use]], Any]
    kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.where is not None:
            tree.choose(self.where, self.params)  # raises where it picks nothing
        self._made = _kept_with(self.fun)
        self._given = self.purpose, self.where, *_signature((self.params, dict(self.kwargs or {})))

    def __call__(self, batch: Any) -> tuple[Any, tuple[Any, ...]]:
        """The result of `make` for a batch of this shape, and the batch as a tuple of arguments."""
        args = batch if type(batch) is tuple else (batch,)  # a NamedTuple is one argument
        key = (*self._given, *_signature(args))
        if key not in self._made:
            traced = trace(self.fun, self.params, *args, kwargs=self.kwargs)
            found, unclear = _picked(traced, is_kernel if self.where is None else self.where)
            if self.where is None and found and unclear:
                checks.warn(
                    f"These stay dense, since nothing is multiplied by them: {tree.some(unclear)}. Leave them out with "
                    "`where=` to say that they shall."
                )
            elif unclear or not found:
                raise ValueError(
                    f"Pruning by data needs what a parameter is multiplied by; there is no such thing for "
                    f"{', '.join(unclear) or f'any of {tree.some(traced.paths)}'}. Choose others with `where=`."
                )
            if len(self._made) >= _MOST_KEPT:
                self._made.clear()
            shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in traced.leaves)
            self._made[key] = self.make(dataclasses.replace(traced, leaves=shapes), found)
        return self._made[key], args


def _kept_with(fun: Callable[..., Any]) -> dict[Any, Any]:
    """What is kept for a function as long as that lives; nothing for one that cannot be told from others."""
    try:
        return _KEPT.setdefault(fun, {})
    except TypeError:  # neither hashable nor open to weak references, as modules with arrays are
        return {}


def _signature(values: Any) -> tuple[Any, ...]:
    """What a trace depends on: structure, shapes, dtypes and shardings, and leaves that are no arrays."""
    leaves, structure = jax.tree.flatten(values)
    return structure, tuple(jax.typeof(leaf) if tree.is_array(leaf) else leaf for leaf in leaves)


def checked_batches(batches: Any) -> Iterator[Any]:
    """The batches, each with at least one row.

    Raises:
      ValueError: There are none, or one has no rows; the message has its number.
      TypeError: They are one array, a string, a dictionary or a function.
    """
    if tree.is_array(batches) or not isinstance(batches, Iterable) or isinstance(batches, str | Mapping):
        got = tree.described(batches)
        raise TypeError(
            f"`batches` is an iterable, each item a tuple of the function's arguments or the one argument; got {got}. "
            "For a single batch give `[batch]`."
        )
    number = -1
    for number, batch in enumerate(batches):
        for path, leaf in zip(tree.paths(batch), jax.tree.leaves(batch), strict=True):
            if tree.is_array(leaf) and 0 in leaf.shape:
                where = f"'{path}'" if path else "the argument"
                raise ValueError(f"Batch {number} has no samples: {where} has shape {leaf.shape}. Leave it out.")
        yield batch
    if number < 0:
        raise ValueError("At least one batch is needed; `batches` is empty.")


def _check_finite(finite: Sequence[Mapping[int, Any]], paths: Sequence[str]) -> None:
    for number, flags in enumerate(finite):
        bad = [paths[leaf] for leaf, flag in flags.items() if checks.is_concrete(flag) and not bool(flag)]
        if bad:
            raise ValueError(
                f"Batch {number} gives statistics with NaN or infinity for {tree.some(bad)}. Look at the batch, and "
                "for NaN in the parameters."
            )


def _check_counted(states: Any, paths: Sequence[str]) -> None:
    numbers = [x for x in jax.tree.leaves(states) if jnp.issubdtype(x.dtype, jnp.integer)]
    if all(map(checks.is_concrete, numbers)) and not any(bool((number > 0).any()) for number in numbers):
        raise ValueError(f"No sample counts for {tree.some(paths)}. Look at `valid=`, which must be true for some.")


def _picked(traced: Traced, where: Where) -> tuple[dict[int, Use], list[str]]:
    """How each picked leaf is used, and for which it cannot be told, with the reason."""
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
    return uses_of, unclear


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

        states = capture.evaluate(traced, leaves, inputs, states, record)[1]
        return states, {leaf: _is_finite(state) for leaf, state in states.items()}

    return jax.jit(step, donate_argnums=0)


def _is_finite(state: Any) -> Any:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]).all()
