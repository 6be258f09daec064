"""`jaxprune run`: pruning what a program of the user's defines."""

from __future__ import annotations

import functools
import runpy
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxprune import _atomic, _strategies, io, layerwise, structured, targets
from jaxprune._arrays import tree
from jaxprune._calibration import calibrate
from jaxprune._evaluation import Report
from jaxprune._evaluation import report as reported
from jaxprune._forecast import forecast
from jaxprune._masks import masking
from jaxprune._training import Rounds, Trainer, prune_retrain
from jaxprune.oneshot import prune
from jaxprune.structured._coupling import couple
from jaxprune.structured._shrink import shrink
from jaxprune.typing import Masks, Params

_WEIGHTS = {"magnitude": _strategies.magnitude, "lamp": _strategies.lamp, "dft": _strategies.dft}
_MEASURED: dict[str, tuple[Callable[..., Masks], Literal["norm", "variance"]]] = {
    "wanda": (_strategies.wanda, "norm"), "ria": (_strategies.ria, "norm"),
    "variance": (_strategies.variance, "variance"),
}  # fmt: skip
_ONE_SHOT = {"sparsegpt": layerwise.SparseGPT(), "admm": layerwise.ADMM()}
_GRADIENTS = {"taylor": _strategies.taylor, "snip": _strategies.snip}
METHODS = sorted([*_WEIGHTS, *_MEASURED, *_GRADIENTS, *_ONE_SHOT, "random", "grasp", "synflow", "slim"])


class Program(NamedTuple):
    """What a program defines.

    Attributes:
      fun: `fun(params, inputs)`.
      params: Its parameters.
      batches: A list of inputs, or a function without arguments that gives a new iterable of them.
      evaluate: `evaluate(fun, params)`, a number or numbers by name, or `None`.
      loss: `loss(params)`, for methods that need gradients, or `None`.
      retrain: `retrain(fun, params, masks)`, which returns parameters, or `None`; a smaller model has no masks.
      trainer: A `jaxprune.Trainer`, for rounds, or `None`.
    """

    fun: Callable[..., Any]
    params: Params
    batches: Any
    evaluate: Callable[..., Any] | None = None
    loss: Callable[[Params], Any] | None = None
    retrain: Callable[..., Params] | None = None
    trainer: Trainer | None = None

    def inputs(self) -> list[Any]:
        """The batches, once more."""
        found: Any = self.batches() if callable(self.batches) else self.batches
        return list(found)

    def metrics(self) -> dict[str, Callable[..., Any]]:
        """One function for each number that `evaluate` gives."""
        if self.evaluate is None:
            return {}
        found = {id(self.params): self._numbers(self.fun, self.params)}

        def number(name: str, fun: Callable[..., Any], params: Params) -> Any:
            if id(params) not in found:  # evaluated once for all numbers
                found[id(params)] = self._numbers(fun, params)
            return found[id(params)][name]

        return {name: functools.partial(number, name) for name in found[id(self.params)]}

    def _numbers(self, fun: Callable[..., Any], params: Params) -> dict[str, Any]:
        assert self.evaluate is not None
        found = self.evaluate(fun, params)
        return dict(found) if isinstance(found, Mapping) else {"evaluate": found}


def loaded(path: Path) -> Program:
    """Runs a program, and takes what it defines.

    Raises:
      ValueError: It fails, or lacks something; the message names its line.
    """
    try:
        names = runpy.run_path(str(path), run_name="jaxprune_program")
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise ValueError(f"'{path}'{where}: {type(error).__name__}: {error}") from error
    missing = [name for name in ("fun", "params", "batches") if name not in names]
    if missing:
        raise ValueError(f"'{path}' must define `fun`, `params` and `batches`; it has no `{missing[0]}`.")
    return Program(**{name: names[name] for name in Program._fields if name in names})


def run(
    path: Path,
    output: Path,
    method: str,
    sparsity: float,
    options: Mapping[str, Any],
    rounds: int | None,
    *,
    timed: bool = False,
) -> Report:
    """Prunes what a program defines, and writes a folder: parameters, plan, and a report.

    Args:
      path: Of the program.
      output: A folder that is not there yet.
      method: One of `METHODS`.
      sparsity: The fraction to remove.
      options: `where`, `pattern` and `budget`, as far as they are given.
      rounds: How many rounds of pruning and retraining, if it is to be rounds.
      timed: Whether to forecast if masks like these make the model faster.

    Returns:
      The report.

    Raises:
      ValueError: The program lacks what the method needs, or see the method.
    """
    program = loaded(path)
    inputs = program.inputs()
    if not inputs or not all(tree.is_array(batch) for batch in inputs):
        raise ValueError(f"'{path}': `batches` must be arrays, the one argument of `fun` besides the parameters.")
    with _atomic.complete(output, 0, folder=True) as folder:
        fun, params, masks = program.fun, program.params, None
        if method == "slim":
            coupling = couple(fun, params, inputs[0])
            given = {name: value for name, value in options.items() if name != "pattern"}
            units = _strategies.slim(params, sparsity, coupling=coupling, **given)
            fun, params, plan = shrink(fun, params, units, coupling)
            params = params if program.retrain is None else program.retrain(fun, params, None)
            structured.save(folder / "model", params, plan)
        elif rounds is not None:
            found = _in_rounds(program, method, sparsity, options, rounds)
            params, masks = found.params, found.masks
            found.to_html(folder / "rounds.html", f"{path.stem}, {method} in rounds")
        else:
            params, masks = _pruned(program, inputs, method, sparsity, options)
            params = params if program.retrain is None else program.retrain(fun, params, masks)
            params = masking.apply(params, masks)
        if method != "slim":
            arrays = {name: leaf for name, leaf in tree.flatten(params)[0] if tree.is_array(leaf)}
            io.save(folder / "params.safetensors", arrays, separator="/")
        before, after = (program.fun, program.params), (fun, params)
        found = reported(
            before,
            after,
            inputs[0],
            metrics=program.metrics(),
            masks=masks,
            requested=sparsity,
            timed=masks is None,
            forecast=forecast(program.fun, program.params, masks, inputs[0]) if timed and masks is not None else None,
        )
        found.to_html(folder / "report.html", f"{path.stem}, {method} at {100 * sparsity:g} %")
        (folder / "report.md").write_text(found.to_markdown() + "\n", encoding="utf-8")
    return found


def _in_rounds(program: Program, method: str, sparsity: float, options: Mapping[str, Any], rounds: int) -> Rounds:
    if program.trainer is None or method not in _WEIGHTS:
        raise ValueError(
            f"Rounds need a `trainer` in the program, a `jaxprune.Trainer`, and a method of {', '.join(_WEIGHTS)}; got "
            f"{method} and {'no trainer' if program.trainer is None else 'a trainer'}."
        )
    strategy = functools.partial(_WEIGHTS[method], **options)
    target = targets.AtSparsity(sparsity, rounds=rounds)
    return prune_retrain(program.params, strategy, program.trainer, target, epochs=1)


def _pruned(
    program: Program, inputs: list[Any], method: str, sparsity: float, options: Mapping[str, Any]
) -> tuple[Params, Masks]:
    """The parameters, which one-shot methods change, and the masks."""
    fun, params = program.fun, program.params
    if method in _ONE_SHOT:
        given = {name: value for name, value in options.items() if name != "budget"}
        return prune(fun, params, inputs, _ONE_SHOT[method], sparsity=sparsity, **given)
    if method in _WEIGHTS:
        return params, _WEIGHTS[method](params, sparsity, **options)
    if method == "random":
        return params, _strategies.random(jax.random.key(0), params, sparsity, **options)
    if method in _MEASURED:
        strategy, statistic = _MEASURED[method]
        return params, strategy(params, calibrate(fun, params, inputs, statistic=statistic), sparsity, **options)
    if method == "synflow":
        return params, _strategies.synflow(fun, params, inputs[0][:1], sparsity, **options)
    if program.loss is None:
        raise ValueError(f"{method} needs a `loss(params)` in the program.")
    if method == "grasp":
        return params, _strategies.grasp(program.loss, params, sparsity, **options)
    grads = jax.grad(program.loss, allow_int=True)(params)
    return params, _GRADIENTS[method](params, grads, sparsity, **options)
