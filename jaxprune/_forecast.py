"""Whether masks will make a model faster on this device, before anyone retrains under them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jaxprune import _text
from jaxprune._arrays import checks, tree
from jaxprune._jaxpr.roles.stored import StoredKernel
from jaxprune._jaxpr.tracing import require_numbers, trace
from jaxprune._masks import masking
from jaxprune.formats import _race, _timing
from jaxprune.formats._deploy import Choice, choose, compiled, deployed_fun, filled
from jaxprune.formats._products import Products, products
from jaxprune.structured._coupling import Coupling, couple
from jaxprune.structured._shrink import plan_of, shrink_fun
from jaxprune.typing import Masks, Params

_REPEATS, _SECONDS = 11, 2.0  # timings of the whole function at least, and how long they take at least


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What masks would gain on this device. Prints as a table, with the verdict below.

    Attributes:
      leaves: One for each masked leaf with two axes or more. The form is "shrink" where its smaller kernel is the
        fastest, else that of `deploy`, else "dense".
      best: What makes the whole function fastest: "shrink", "deploy", or "dense" where nothing is measurably faster.
      dense: Milliseconds of the whole function, masked and dense.
      shrunk: And after `shrink`; `None` where no unit is masked as a whole.
      deployed: And with those kernels stored that gain from it by themselves; `None` where none does.
    """

    leaves: Sequence[Choice]
    best: Literal["shrink", "deploy", "dense"]
    dense: float
    shrunk: float | None
    deployed: float | None

    @property
    def verdict(self) -> str:
        """In words, whether anything is faster, and if not, why not."""
        if self.best == "shrink" and self.shrunk is not None:
            return f"Yes: `shrink` it, {self.dense / self.shrunk:.2f} times as fast."
        if self.best == "deploy" and self.deployed is not None:
            return f"Yes: `deploy` it, {self.dense / self.deployed:.2f} times as fast."
        no_shrink = "no unit is masked as a whole, so `shrink` removes nothing"
        no_form = "no stored form of a kernel beats the dense one"
        why = [
            no_shrink if self.shrunk is None else f"shrunk it takes {self.shrunk:.3f} ms",
            no_form if self.deployed is None else f"with stored kernels it takes {self.deployed:.3f} ms",
        ]
        return f"No, nothing is measurably faster than the dense {self.dense:.3f} ms: {'; '.join(why)}."

    def rows(self) -> list[tuple[str, ...]]:
        """One for each leaf: path, shape, share kept, best form, milliseconds dense and in that form, reason."""
        return [leaf.row() for leaf in self.leaves]

    def __str__(self) -> str:
        table = [("leaf", "shape", "kept", "best", "dense ms", "ms", "why"), *self.rows()]
        whole = [f"{self.dense:.3f} ms dense"]
        whole += [] if self.shrunk is None else [f"{self.shrunk:.3f} ms shrunk"]
        whole += [] if self.deployed is None else [f"{self.deployed:.3f} ms deployed"]
        lines = _text.aligned(table, "lllllll")
        return "\n".join([*lines, f"the whole function: {', '.join(whole)}", f"faster? {self.verdict}"])


def forecast(
    fun: Callable[..., Any], params: Params, masks: Masks, *args: Any, coupling: Coupling | None = None
) -> Forecast:
    """Times, before any retraining, whether masks like these make the model faster on this device, and by what.

    For each kernel: dense, in every stored form that `deploy` considers, and at the size that `shrink` leaves, in turn
    and with the same rules. Then the whole function: dense, with the stored kernels that won, and shrunk. Time does not
    depend on the values of weights, so masks of the dense model tell what those of the retrained one will gain.

    Args:
      fun: The model, `fun(params, *args)`, for inference.
      params: Its parameters, dense.
      masks: Any masks of the structure of `params`, concrete, such as a strategy returns for the dense parameters.
      *args: Arguments of the size to be served, or `jax.ShapeDtypeStruct`s, which are filled with zeros.
      coupling: From `couple`, where it was given options; `None` couples here.

    Returns:
      The forecast; print it.

    Raises:
      ValueError: The parameters are not those that were coupled; the message names the path.

    Examples:
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params = {"first": jnp.ones((8, 16)), "second": jnp.ones((16, 4))}
      >>> masks = jaxprune.magnitude(params, pattern=jaxprune.patterns.NM(2, 4))
      >>> found = jaxprune.forecast(mlp, params, masks, jnp.ones((4, 8)))
      >>> [leaf.path for leaf in found.leaves], found.shrunk  # print it for the times and the verdict
      (['first', 'second'], None)
    """
    require_numbers(args)
    if coupling is not None and not checks.is_a(coupling, Coupling):
        raise TypeError(f"`coupling` must come from `couple(fun, params, *args)`; got {type(coupling).__name__}.")
    inputs, masked = filled(args), masking.apply(params, masks)
    plan = plan_of(masked, masks, couple(fun, masked, *inputs) if coupling is None else coupling)
    is_smaller = any(leaf.keep for leaf in plan.leaves.values())
    small_fun, small_params = shrink_fun(fun, plan), plan.take(masked)
    small = {path: leaf for path, leaf in tree.flatten(small_params)[0] if is_smaller}
    used = products(trace(fun, masked, *inputs))
    small_used = products(trace(small_fun, small_params, *inputs)) if is_smaller else {}
    known = _race.Known({})
    leaves, stored = list[Choice](), dict[str, StoredKernel]()
    for path, leaf, mask in tree.flatten(masked, masks, names=("masks",))[0]:
        if mask is None or leaf.ndim < 2:
            continue
        form, choice = choose(path, leaf, mask, used[path], known)
        if form is not None:
            stored[path] = form
        if path in small and small[path].shape != leaf.shape:
            choice = _with_shrunk(choice, leaf, used[path], small[path], small_used[path], known)
        leaves.append(choice)
    models = {"dense": compiled(fun, masked)}
    if stored:
        models["deploy"] = compiled(deployed_fun(fun), tree.map_with_path(stored.get, masked))
    if is_smaller:
        models["shrink"] = compiled(small_fun, small_params)
    times = _timing.seconds([functools.partial(call, *inputs) for call in models.values()], _REPEATS, _SECONDS)
    medians = {name: 1e3 * float(np.median(row)) for name, row in zip(models, times, strict=True)}
    surely = [name for i, name in enumerate(models) if i and _timing.sure_speedup(times, of=i, over=0) > 1]
    best: Any = min(surely, key=lambda name: medians[name], default="dense")
    return Forecast(leaves, best, medians["dense"], medians.get("shrink"), medians.get("deploy"))


def _with_shrunk(
    choice: Choice, leaf: Any, used: Products | str, small: Any, small_used: Products | str, known: _race.Known
) -> Choice:
    """What was chosen of the stored forms, or the smaller kernel where it gains more."""
    if isinstance(used, str) or isinstance(small_used, str):
        return choice._replace(reason=f"{choice.reason}; shrunk, it is timed with the whole function alone")
    kernels = [np.asarray(x) if used.summed == 0 else np.asarray(x).T for x in (leaf, small)]
    winner = _race.shrunk(kernels[0], used, kernels[1], small_used, known)
    reason = f"{winner.reason}; {choice.reason if choice.form == 'dense' else f'{choice.form}: {choice.reason}'}"
    gain = 1.0 if choice.dense is None or choice.chosen is None else choice.dense / choice.chosen
    if winner.form is None or (choice.form != "dense" and winner.dense / winner.milliseconds <= gain):
        return choice._replace(reason=reason)
    return choice._replace(form="shrink", dense=winner.dense, chosen=winner.milliseconds, reason=reason)
