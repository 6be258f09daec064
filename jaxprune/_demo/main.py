"""The demo: train, prune and retrain by each strategy, shrink, verify, report."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxprune import _strategies, budgets, filters, patterns, structured
from jaxprune import scores as scoring
from jaxprune._calibration._calibrate import calibrate
from jaxprune._demo import classifier, publishing
from jaxprune._demo.data import Images, digits, fashion_mnist
from jaxprune._demo.publishing import Result
from jaxprune._evaluation._report import Report, report
from jaxprune._masks import masking
from jaxprune._transforms import gradual, masks_of
from jaxprune.structured._coupling import Coupling, couple
from jaxprune.structured._shrink import shrink
from jaxprune.typing import Masks, Params, Statistics

_RATE = 2e-3
_IN_FOURS = filters.is_kernel & filters.Filter(lambda path, leaf: leaf.shape[-2] % 4 == 0)

GRADUAL: dict[str, Any] = {
    "uniform": _strategies.magnitude,
    "global": functools.partial(_strategies.magnitude, budget=budgets.global_),
    "block": functools.partial(_strategies.magnitude, pattern=patterns.Block((4, 4))),
    "dft-energy": _strategies.dft,
    "dft-low": functools.partial(_strategies.dft, keep="low"),
    "dft-high": functools.partial(_strategies.dft, keep="high"),
}
FIXED: dict[str, Any] = {
    "2:4": functools.partial(_strategies.magnitude, pattern=patterns.NM(2, 4), where=_IN_FOURS),
    "1:4": functools.partial(_strategies.magnitude, pattern=patterns.NM(1, 4), where=_IN_FOURS),
}


# By name: whether the neurons that vary most are removed (else those that vary least), and whether the mean of what
# they gave is added to the next bias.
VARIANCE: dict[str, tuple[bool, bool]] = {
    "var-large": (True, False),
    "var-large+mean": (True, True),
    "var-small": (False, False),
    "var-small+mean": (False, True),
}
_UNTRAINED = (0.25, 0.5)  # larger fractions, without retraining, bring the accuracy of every rule down to chance


class Settings(NamedTuple):
    """The options of the command line."""

    strategies: tuple[str, ...]
    sparsities: tuple[float, ...]
    seed: int
    data: str
    folder: Path
    output: Path


class Task(NamedTuple):
    """Data, model, batch size, and the epochs of training and of retraining."""

    data: Images
    model: classifier.Classifier
    batch: int
    epochs: int
    retrain: int


def run(settings: Settings) -> list[Result]:
    """Runs the demo and writes `report.md` and two pictures to the output folder.

    Args:
      settings: From the command line.

    Returns:
      What was found, in the order of the table.

    Raises:
      ValueError: The data are missing, or a strategy missed the sparsity asked for.
    """
    started = time.perf_counter()
    console = Console()
    task = _task(settings)
    fun = classifier.apply(task.model)
    jobs = _jobs(settings)
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training the dense model", total=len(jobs) + 1)
        params = _train_dense(task, fun, settings.seed)
        progress.advance(bar)
        results = list[Result]()
        for name, sparsity in jobs:
            progress.update(bar, description=f"{name} at {100 * sparsity:g} %")
            prune = _slim if name == "slim" else functools.partial(_by_variance if name in VARIANCE else _prune, name)
            results.append(prune(task, fun, params, sparsity, settings.seed))
            progress.advance(bar)
    groups = dict.fromkeys(FIXED, "n:m")
    publishing.publish(console, task.data, results, groups, settings.output)
    console.print(f"It took {time.perf_counter() - started:.0f} seconds.")
    return results


def _task(settings: Settings) -> Task:
    if settings.data == "digits":
        return Task(digits(settings.seed), classifier.Classifier((16, 32), 64), 64, 40, 16)
    model = classifier.Classifier((16, 32), 120, first_stride=2)
    return Task(fashion_mnist(settings.folder), model, 128, 5, 2)


def _jobs(settings: Settings) -> list[tuple[str, float]]:
    """Each strategy at each sparsity; N:M at those that its patterns fix, variances at moderate ones."""
    jobs = list[tuple[str, float]]()
    for name in settings.strategies:
        if name == "n:m":
            jobs += [(n, p.keywords["pattern"].sparsity) for n, p in FIXED.items()]
        elif name == "variance":
            jobs += [(n, sparsity) for n in VARIANCE for sparsity in _UNTRAINED]
        else:
            jobs += [(name, sparsity) for sparsity in settings.sparsities]
    return jobs


def _train(
    task: Task,
    fun: Callable[..., Any],
    params: Params,
    optimizer: classifier.Optimizer,
    epochs: int,
    seed: int,
    number: Any,
) -> tuple[Params, Any]:
    step = _step(fun, optimizer)
    state = optimizer(number).init(params)
    for images, labels in classifier.batches(task.data, epochs, task.batch, seed):
        params, state, _ = step(params, state, images, labels, number)
    return params, state


@functools.lru_cache
def _step(fun: Callable[..., Any], optimizer: classifier.Optimizer) -> Callable[..., Any]:
    """Compiled once for each strategy: the sparsity is an argument."""
    return classifier.train_step(fun, optimizer)


def _steps(task: Task, epochs: int) -> int:
    return epochs * (len(task.data.train_images) // task.batch)


@functools.lru_cache
def _adam(steps: int) -> classifier.Optimizer:
    return lambda _: optax.adam(optax.cosine_decay_schedule(_RATE, steps))


@functools.lru_cache
def _gradual(name: str, steps: int) -> classifier.Optimizer:
    end = steps // 2

    def optimizer(sparsity: Any) -> optax.GradientTransformation:
        adam = _adam(steps)(sparsity)
        every = max(1, steps // 40)
        if name in FIXED:
            return gradual(adam, FIXED[name], None, end=end, every=every)
        schedule = optax.polynomial_schedule(0.0, sparsity, power=3, transition_steps=end)
        return gradual(adam, GRADUAL[name], schedule, end=end, every=every)

    return optimizer


def _train_dense(task: Task, fun: Callable[..., Any], seed: int) -> Params:
    params = classifier.initialise(task.model, task.data.train_images, seed)
    return _train(task, fun, params, _adam(_steps(task, task.epochs)), task.epochs, seed, jnp.float32(0))[0]


def _prune(name: str, task: Task, fun: Callable[..., Any], params: Params, sparsity: float, seed: int) -> Result:
    """Prunes and retrains in one jitted step."""
    optimizer = _gradual(name, _steps(task, task.retrain))
    pruned, state = _train(task, fun, params, optimizer, task.retrain, seed, jnp.float32(sparsity))
    found = masks_of(state)
    evidence = report(
        (fun, params), (fun, pruned), task.data.test_images, task.data.test_labels, masks=found, requested=sparsity
    )
    _check(name, sparsity, evidence)
    kernel = np.asarray(pruned["hidden"]["kernel"])
    return Result(name, sparsity, evidence, kernel if name.startswith("dft") else kernel != 0)


def _check(name: str, sparsity: float, evidence: Report) -> None:
    """Raises unless a strategy kept what was asked for, to within the rounding to whole weights, or to whole blocks."""
    size = sum(leaf.size for leaf in evidence.leaves)
    kept = sum(leaf.kept for leaf in evidence.leaves)
    each = 16 * 0.5 * max(leaf.size for leaf in evidence.leaves) / size if name == "block" else 0.5
    allowed = each * len(evidence.leaves) if name != "global" else each
    if abs(kept - size * (1 - sparsity)) > allowed + 1e-6 * size:
        raise ValueError(f"{name} kept {kept} of {size} weights at sparsity {sparsity}. This is a defect; report it.")


def _slim(task: Task, fun: Callable[..., Any], params: Params, sparsity: float, seed: int) -> Result:
    """Removes whole units, makes the model smaller, checks it against the masked one, and retrains the small one."""
    images = task.data.test_images[:256]
    coupling = couple(fun, params, images)
    chosen: Masks = _strategies.slim(params, sparsity, coupling=coupling)
    small, small_params, _ = shrink(fun, params, chosen, coupling)
    masked, shrunk = jax.jit(fun)(masking.apply(params, chosen), images), jax.jit(small)(small_params, images)
    difference = float(jnp.max(jnp.abs(masked - shrunk)) / jnp.max(jnp.abs(masked)))
    if difference > 1e-4:
        raise ValueError(
            f"The shrunk model differs from the masked one by {difference:.1e}. This is a defect; report it."
        )
    optimizer = _adam(_steps(task, task.retrain))
    small_params = _train(task, small, small_params, optimizer, task.retrain, seed, jnp.float32(0))[0]
    evidence = report(
        (fun, params),
        (small, small_params),
        task.data.test_images,
        task.data.test_labels,
        requested=sparsity,
        timed=True,
    )
    speed = (evidence.before.milliseconds or 0) / (evidence.after.milliseconds or 1)
    fewer = evidence.before.macs / evidence.after.macs
    note = (
        f"{100 * sparsity:g} % of units gone, equal to the masked model to {difference:.0e}, {fewer:.1f}x fewer MACs, "
    )
    note += f"{speed:.1f}x faster at batch {min(1000, len(task.data.test_labels))}"
    return Result("slim", sparsity, evidence, _hidden(chosen, params), note)


def _by_variance(name: str, task: Task, fun: Callable[..., Any], params: Params, sparsity: float, seed: int) -> Result:
    """Removes the neurons and channels that vary most or least, and evaluates the model without retraining it."""
    del seed
    most, keep_mean = VARIANCE[name]
    coupling, statistics = _measured(task, fun, params)
    ranked = structured.of_outputs(scoring.variance(params, statistics), coupling).by_group
    scores = structured.UnitScores({group: -values if most else values for group, values in ranked.items()})
    chosen: Masks = _strategies.slim(params, sparsity, coupling=coupling, scores=scores)
    small, small_params, _ = shrink(fun, params, chosen, coupling, compensate=statistics if keep_mean else None)
    evidence = report(
        (fun, params), (small, small_params), task.data.test_images, task.data.test_labels, requested=sparsity
    )
    return Result(
        name, sparsity, evidence, _hidden(chosen, params), "whole units are removed, and nothing is retrained"
    )


def _hidden(masks: Masks, params: Params) -> np.ndarray:
    """The mask of the hidden layer, in the shape of its kernel."""
    return np.broadcast_to(np.asarray(masks["hidden"]["kernel"]), params["hidden"]["kernel"].shape)


def _measured(task: Task, fun: Callable[..., Any], params: Params) -> tuple[Coupling, Statistics]:
    """The coupling, and how much each neuron varies over the training images."""
    images = np.split(task.data.train_images[: len(task.data.train_images) // 3 * 3], 3)
    return couple(fun, params, images[0][:2]), calibrate(fun, params, images, statistic="variance")
