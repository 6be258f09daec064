"""From a masked model to one whose products are fast on this device, where that can be had."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _text
from jaxprune._arrays import checks, tree
from jaxprune._jaxpr.roles.stored import StoredKernel, evaluate
from jaxprune._jaxpr.tracing import inputs_of, require_numbers, trace
from jaxprune._masks import masking, verbs
from jaxprune.formats import _timing
from jaxprune.formats._products import Products, products
from jaxprune.formats._race import Known, fastest
from jaxprune.typing import Masks, Params

_REPEATS, _SECONDS = 11, 2.0  # timings of the whole function at least, and how long they take at least
_NO_GAIN = "the whole function is not measurably faster with the forms that won by themselves"


class Choice(NamedTuple):
    """How one parameter is stored.

    Attributes:
      path: Of the parameter.
      shape: Its own.
      density: The share of its weights that is kept.
      form: What was chosen.
      dense: Milliseconds of its products in the best dense form; `None` where nothing was timed.
      chosen: Milliseconds in the form that was chosen.
      reason: Why.
    """

    path: str
    shape: tuple[int, ...]
    density: float
    form: str
    dense: float | None
    chosen: float | None
    reason: str

    def row(self) -> tuple[str, ...]:
        """As the cells of a table: path, shape, share kept, form, milliseconds dense and in that form, reason."""
        times = ("" if time is None else f"{time:.3f}" for time in (self.dense, self.chosen))
        shape = "×".join(map(str, self.shape))
        return self.path, shape, f"{100 * self.density:.1f} %", self.form, *times, self.reason


@dataclasses.dataclass(frozen=True)
class Choices:
    """What `deploy` chose. Prints as a table.

    Attributes:
      leaves: One for each masked parameter.
      dense: Milliseconds of the whole function, masked and dense.
      deployed: And as it is returned.
    """

    leaves: Sequence[Choice]
    dense: float
    deployed: float

    def rows(self) -> list[tuple[str, ...]]:
        """One for each leaf: path, shape, share kept, form, milliseconds dense and in that form, reason."""
        return [leaf.row() for leaf in self.leaves]

    def __str__(self) -> str:
        table = [("leaf", "shape", "kept", "form", "dense ms", "ms", "why"), *self.rows()]
        whole = f"the whole function: {self.dense:.3f} ms dense, {self.deployed:.3f} ms deployed"
        lines = _text.aligned(table, "lllllll")
        return "\n".join([*lines, f"{whole}, {self.dense / self.deployed:.2f} times as fast"])


def deploy(
    fun: Callable[..., Any], params: Params, masks: Masks, *args: Any
) -> tuple[Callable[..., Any], Params, Choices]:
    """Stores each masked kernel in the form whose products are fastest on this device, as measured here and now.

    A matrix that the function only multiplies with (through transposes, casts and calls) is stored as strips of blocks
    or as compressed rows, whatever its mask allows, and each is timed against the dense kernel in both layouts at the
    sizes that occur. What does not win stays dense, and if in the end the whole function is no faster, all of it does:
    what comes back is never slower than the masked model, to within noise. The products are the masked model's, summed
    in another order.

    Args:
      fun: The model, `fun(params, *args)`, for inference: derivative rules inside are not kept.
      params: Its parameters.
      masks: Any masks of the structure of `params`, concrete.
      *args: Arguments of the size to be served, or `jax.ShapeDtypeStruct`s, which are filled with zeros.

    Returns:
      `(fast_fun, fast_params, choices)`: jit `fast_fun(fast_params, *args)`; `choices` prints what was chosen and why.

    Examples:
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.ones((32, 64)), "second": jnp.ones((64, 8))}
      >>> masks = {"first": jnp.arange(64) < jnp.full((32, 1), 32), "second": None}
      >>> fast, fast_params, choices = jaxprune.deploy(mlp, params, masks, jnp.ones((4, 32)))
      >>> bool(jnp.allclose(fast(fast_params, jnp.ones((4, 32))), 32 * 32))
      True
      >>> print(choices.leaves[0].path, choices.leaves[0].density)
      first 0.5
    """
    require_numbers(args)
    inputs = filled(args)
    masked = masking.apply(params, masks)
    used, known = products(trace(fun, masked, *inputs)), Known({})
    chosen = dict[str, StoredKernel]()
    leaves = list[Choice]()
    for path, leaf, mask in tree.flatten(masked, masks, names=("masks",))[0]:
        if mask is not None:
            form, choice = choose(path, leaf, mask, used[path], known)
            leaves.append(choice)
            if form is not None:
                chosen[path] = form
    fast_fun, fast_params = deployed_fun(fun), tree.map_with_path(chosen.get, masked)
    models = [compiled(fun, masked), compiled(fast_fun, fast_params)]
    times = _timing.seconds([functools.partial(call, *inputs) for call in models], _REPEATS, _SECONDS)
    dense, fast = (1e3 * float(np.median(row)) for row in times)
    if not chosen or _timing.sure_speedup(times, of=1, over=0) <= 1:
        stay = [
            leaf._replace(form="dense", chosen=leaf.dense, reason=_NO_GAIN) if leaf.path in chosen else leaf
            for leaf in leaves
        ]
        return fun, masked, Choices(stay, dense, dense)
    return fast_fun, fast_params, Choices(leaves, dense, fast)


def compiled(fun: Callable[..., Any], params: Params) -> Callable[..., Any]:
    """The function of its other arguments, jitted; leaves that are no arrays, as modules have, stay outside."""
    leaves, rebuild = tree.partition(params)
    return functools.partial(jax.jit(lambda leaves, *args: fun(rebuild(leaves), *args)), leaves)


def deployed_fun(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The function for parameters some of which `deploy` has stored in another form."""
    checks.function(fun, "fun", "model.apply")

    def fast_fun(params: Params, *args: Any, **kwargs: Any) -> Any:
        full = jax.tree.map(
            lambda leaf: jax.eval_shape(leaf.dense) if _is_stored(leaf) else leaf, params, is_leaf=_is_stored
        )
        leaves = [
            leaf for leaf in jax.tree.leaves(params, is_leaf=_is_stored) if _is_stored(leaf) or tree.is_array(leaf)
        ]
        return evaluate(trace(fun, full, *args, kwargs=kwargs, symbolic=True), leaves, inputs_of(args, kwargs))

    return fast_fun


def choose(path: str, leaf: Any, mask: Any, used: Products | str, known: Known) -> tuple[StoredKernel | None, Choice]:
    """The form in which the products of one masked leaf are fastest; `None` where it stays as it is."""
    keeps = verbs.of_weights(path, leaf, mask)
    if keeps is None:
        return None, Choice(path, leaf.shape, 1.0, "dense", None, None, "a frequency mask leaves no weight out")
    kept = np.broadcast_to(np.asarray(keeps), leaf.shape)
    density = float(kept.mean())
    if isinstance(used, str):
        return None, Choice(path, leaf.shape, density, "dense", None, None, used)
    kernel = np.asarray(leaf)
    winner = fastest(kernel, kept, used, known) if used.summed == 0 else fastest(kernel.T, kept.T, used, known)
    stored = None if winner.form is None else StoredKernel(winner.form, used.summed)
    name = "dense" if winner.form is None else str(winner.form)
    return stored, Choice(path, leaf.shape, density, name, winner.dense, winner.milliseconds, winner.reason)


def filled(args: Any) -> Any:
    """Arguments with zeros in place of what has only a shape."""
    is_abstract = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if is_abstract(leaf) else leaf, args)


def _is_stored(leaf: Any) -> bool:
    return isinstance(leaf, StoredKernel)
