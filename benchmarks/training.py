"""How well does each way of training a sparse model do within one budget of epochs, on Fashion-MNIST?

Every method trains the same network from scratch for the same number of epochs; lottery tickets take several such
trainings, which the column of training FLOPs shows. FLOPs are those of hardware that skips zeros, relative to dense
training. Rows are stored in `training.jsonl` next to this file, and some of those are measured again each time. For
`slim` the sparsity is of multiply-accumulates: the model is trained dense for part of the epochs, made smaller, and
trained on.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from benchmarks import accuracy, history, rows
from jaxprune import _text, budgets, structured
from jaxprune._arrays import tree
from jaxprune._demo import classifier
from jaxprune._demo.data import Images, fashion_mnist

_CACHE = Path(__file__).parent / "training.jsonl"
_TOLERANCE = 1.0  # points between the accuracies of one run on different devices
_PROTOCOL = 1  # raise it when anything below changes a result
_SEEDS = (0, 1, 2)
_EPOCHS = 2
_BATCH = 128
_RATES = {"adamw": 2e-3, "sgd": 0.1}
_SAMPLED = 40  # steps between two measurements of the density
_SPARSITIES = (0.9, 0.95, 0.98, 0.99)
_ROUNDS = (0.6, 0.8, *_SPARSITIES)  # of the lottery
_SNAPSHOT = 0.1  # epochs until the weights that the lottery rewinds to

FUN = accuracy.FUN


class Job(NamedTuple):
    """One job of a worker: a method by name, its sparsity (for the lottery the highest), a seed."""

    method: str
    sparsity: float
    seed: int


class Method(NamedTuple):
    """A way to train.

    Attributes:
      optimizer: From an inner optimizer, masks, the number of steps and the final sparsity to an optimizer.
      start: From a key, parameters, some examples and the sparsity to masks; `None` where the optimizer finds them.
      dense_passes: How many of a step's three passes (forward, gradients of activations and of weights) are dense.
    """

    optimizer: Callable[[Any, Any, int, Any], Any]
    start: Callable[..., Any] | None = None
    dense_passes: int = 0


def _cubic(steps: int, sparsity: Any) -> dict[str, Any]:
    begin, end = steps // 20, 6 * steps // 10
    schedule = optax.polynomial_schedule(0.0, sparsity, power=3, transition_steps=end - begin)
    return {"sparsity": schedule, "begin": begin, "end": end, "every": max(1, steps // 60)}


def _gradual(strategy: Any) -> Method:
    return Method(lambda inner, masks, steps, s: jaxprune.gradual(inner, strategy, **_cubic(steps, s)))


def _fixed(start: Callable[..., Any]) -> Method:
    return Method(lambda inner, masks, steps, s: jaxprune.masked(inner, masks), start)


def _random(key: Any, params: Any, images: Any, labels: Any, sparsity: Any) -> Any:
    del images, labels
    return jaxprune.random(key, params, sparsity, budget=budgets.erk)


def _at_start(name: str) -> Callable[..., Any]:
    return lambda key, *args: accuracy.AT_START[name](*args)


def _exchanging(steps: int) -> dict[str, int]:
    return {"begin": steps // 40, "end": 3 * steps // 4, "every": max(1, steps // 40)}


_GLOBAL = functools.partial(jaxprune.magnitude, budget=budgets.global_)
_BY_SCORES = functools.partial(jaxprune.from_scores, budget=budgets.global_)

METHODS: dict[str, Method] = {
    "dense": Method(lambda inner, masks, steps, s: inner),
    "static random": _fixed(_random),
    "SET": Method(
        lambda inner, masks, steps, s: jaxprune.sparse_evolution(jax.random.key(0), inner, masks, **_exchanging(steps)),
        _random,
    ),
    "RigL": Method(lambda inner, masks, steps, s: jaxprune.rigl(inner, masks, **_exchanging(steps)), _random),
    "AC/DC": Method(
        lambda inner, masks, steps, s: jaxprune.acdc(
            inner, _GLOBAL, s, begin=steps // 10, end=3 * steps // 4, every=max(1, steps // 10)
        )
    ),
    "STE (dpf)": Method(
        lambda inner, masks, steps, s: jaxprune.dpf(inner, _GLOBAL, **_cubic(steps, s)), dense_passes=1
    ),
    "magnitude, uniform": _gradual(jaxprune.magnitude),
    "magnitude, global": _gradual(_GLOBAL),
    "movement": Method(
        lambda inner, masks, steps, s: jaxprune.movement(inner, _BY_SCORES, **_cubic(steps, s)), dense_passes=1
    ),
    "snip": _fixed(_at_start("snip")),
    "grasp": _fixed(_at_start("grasp")),
    "synflow": _fixed(_at_start("synflow")),
}
LOTTERY = ("lottery, rewound", "lottery, re-initialised")
_NAMES = (*METHODS, "lottery", "slim")


def planned(seeds: Iterable[int], methods: Collection[str]) -> list[Job]:
    """Every job of the table, seed by seed."""
    return [job for job in _all_jobs(seeds) if job.method in methods]


def _all_jobs(seeds: Iterable[int]) -> list[Job]:
    sparse = [Job(name, s, 0) for s, name in itertools.product(_SPARSITIES, [*list(METHODS)[1:], "slim"])]
    return [job._replace(seed=s) for s in seeds for job in (Job("dense", 0.0, 0), Job("lottery", 0.99, 0), *sparse)]


class Trained(NamedTuple):
    """The result of a training: parameters, masks (`None` if dense) and FLOPs relative to one dense training."""

    params: Any
    masks: Any
    flops: float


class Task(NamedTuple):
    """The budget: data, epochs, steps, the optimizer by name, and the multiply-accumulates of each leaf per image."""

    data: Images
    epochs: int
    steps: int
    optimizer: str
    costs: dict[str, int]


def task_of(data: Images, epochs: int, optimizer: str) -> Task:
    """The budget of a number of epochs."""
    image = jax.ShapeDtypeStruct((1, *data.train_images.shape[1:]), jnp.float32)
    params = jax.eval_shape(lambda: classifier.initialise(accuracy.MODEL, data.train_images[:1], 0))
    steps = epochs * (len(data.train_images) // _BATCH)
    return Task(data, epochs, steps, optimizer, jaxprune.macs(FUN, params, image).by_leaf)


def _inner(name: str, steps: int, offset: int = 0) -> optax.GradientTransformation:
    """An optimizer with a learning rate that goes on from `offset`."""
    rate = accuracy.rate(steps, _RATES[name])

    def shifted(count: Any) -> Any:
        return rate(count + offset)

    if name == "sgd":
        return optax.sgd(shifted, momentum=0.9, nesterov=True)
    return optax.adamw(shifted, weight_decay=1e-4)


@functools.lru_cache
def _step(name: str, inner_name: str, steps: int, offset: int = 0) -> tuple[Any, Any]:
    """The jitted step, and the optimizer as a function of sparsity and masks."""
    inner = _inner(inner_name, steps, offset)

    def optimizer(sparsity: Any, masks: Any = None) -> Any:
        return METHODS[name].optimizer(inner, masks, steps, sparsity)

    return classifier.train_step(FUN, optimizer), optimizer


@functools.lru_cache
def _chooser(name: str) -> Any:
    return jax.jit(METHODS[name].start)


@jax.jit
def _densities(masks: Any) -> Any:
    return [jnp.mean(mask, dtype=jnp.float32) for mask in jax.tree.leaves(masks)]


def _train(
    task: Task,
    name: str,
    sparsity: float,
    seed: int,
    *,
    start: Any = None,
    masks: Any = None,
    skip: int = 0,
    stop: int | None = None,
) -> Trained:
    """One training from step `skip` to step `stop`, from fresh parameters, or from given ones under given masks."""
    method, number = METHODS[name], jnp.float32(sparsity)
    step, optimizer = _step(name, task.optimizer, task.steps, skip)
    params = classifier.initialise(accuracy.MODEL, task.data.train_images, seed) if start is None else start
    if method.start is not None and masks is None:
        examples = task.data.train_images[:1024], task.data.train_labels[:1024]
        masks = _chooser(name)(jax.random.key(seed), params, *examples, number)
    if masks is not None:
        params = jaxprune.apply(params, masks)
    state = optimizer(number, masks).init(params)
    samples = []
    batches = classifier.batches(task.data, task.epochs, _BATCH, seed)
    for i, (images, labels) in enumerate(itertools.islice(batches, skip, stop)):
        params, state, _ = step(params, state, images, labels, number)
        if name != "dense" and i % _SAMPLED == 0:
            samples.append(_densities(state.masks))
    found = None if name == "dense" else jaxprune.masks_of(state)
    share = 1.0 if found is None else _share(task, found, samples)
    flops = (method.dense_passes + (3 - method.dense_passes) * share) / 3 * ((stop or task.steps) - skip) / task.steps
    return Trained(params, found, flops + (_dense_gradients(task, share) if name == "RigL" else 0.0))


def _share(task: Task, masks: Any, samples: list[Any]) -> float:
    """The mean share of the multiply-accumulates that involve a kept weight."""
    mean = np.mean(np.asarray(jax.device_get(samples)), axis=0)
    paths = tree.paths(masks)
    return float(sum(task.costs[path] * density for path, density in zip(paths, mean, strict=True))) / _total(task)


def _total(task: Task) -> int:
    return sum(task.costs.values())


def _dense_gradients(task: Task, share: float) -> float:
    """The FLOPs of RigL's dense gradients: one of the three passes is dense at each exchange."""
    times = _exchanging(task.steps)
    return ((times["end"] - times["begin"]) // times["every"] + 1) * (1 - share) / 3 / task.steps


def _lottery(task: Task, job: Job) -> list[rows.Row]:
    """Trains, prunes and rewinds in rounds; at each sparsity of the table it also trains the masks from new weights."""
    begin = time.perf_counter()
    early = round(_SNAPSHOT * task.steps / task.epochs)
    snapshot = _train(task, "dense", 0.0, job.seed, stop=early).params
    trained, flops, found = _train(task, "dense", 0.0, job.seed), 1.0, list[rows.Row]()
    for sparsity in _ROUNDS:
        masks = _GLOBAL(trained.params, sparsity)
        start = jaxprune.rewind(trained.params, snapshot, masks)
        trained = _train(task, "static random", sparsity, job.seed, start=start, masks=masks, skip=early)
        flops += trained.flops
        seconds = time.perf_counter() - begin
        if sparsity in _SPARSITIES:
            other = _train(task, "static random", sparsity, job.seed + 100, masks=masks)
            for name, model, more in zip(LOTTERY, (trained, other), (0.0, other.flops), strict=True):
                at = Job(name, sparsity, job.seed)
                found.append(_row(task, at, FUN, model._replace(flops=flops + more), seconds))
    return found


def _slim(task: Task, job: Job) -> list[rows.Row]:
    """Trains the dense model for two fifths of the steps, and the small one for the rest."""
    begin, early = time.perf_counter(), 2 * task.steps // 5
    dense = _train(task, "dense", 0.0, job.seed, stop=early)
    coupling = jaxprune.couple(FUN, dense.params, task.data.train_images[:1])
    masks = jaxprune.slim(dense.params, coupling=coupling, budget=structured.macs(coupling, 1 - job.sparsity))
    fun, params, _ = jaxprune.shrink(FUN, dense.params, masks, coupling)
    optimizer = _inner(task.optimizer, task.steps, early)
    step, state = classifier.train_step(fun, lambda _: optimizer), optimizer.init(params)
    batches = classifier.batches(task.data, task.epochs, _BATCH, job.seed)
    for images, labels in itertools.islice(batches, early, None):
        params, state, _ = step(params, state, images, labels, 0.0)
    image = jax.ShapeDtypeStruct((1, *task.data.train_images.shape[1:]), jnp.float32)
    share = jaxprune.macs(fun, params, image).dense / _total(task)
    flops = dense.flops + share * (1 - early / task.steps)
    return [_row(task, job, fun, Trained(params, masks, flops), time.perf_counter() - begin)]


def train(task: Task, job: Job) -> list[rows.Row]:
    """Trains one job and returns its rows."""
    if job.method in ("lottery", "slim"):
        return {"lottery": _lottery, "slim": _slim}[job.method](task, job)
    begin = time.perf_counter()
    trained = _train(task, *job)
    return [_row(task, job, FUN, trained, time.perf_counter() - begin)]


def _row(task: Task, job: Job, fun: Any, trained: Trained, seconds: float) -> rows.Row:
    full = accuracy.MODEL, task.data.train_images[:1], 0
    weights = jax.eval_shape(lambda: classifier.initialise(*full))
    return {
        **job._asdict(),
        "epochs": task.epochs,
        "optimizer": task.optimizer,
        "accuracy": round(classifier.accuracy(fun, trained.params, task.data.test_images, task.data.test_labels), 2),
        "achieved": round(_achieved(weights, trained), 6),
        "flops": round(trained.flops, 4),
        "seconds": round(seconds, 1),
        "protocol": _PROTOCOL,
    }


def _achieved(weights: Any, trained: Trained) -> float:
    """The fraction of weights removed; for a shrunk model, of all parameters."""
    small = jaxprune.count_params(trained.params) / jaxprune.count_params(weights)
    if trained.masks is None or small < 1:
        return 1 - small
    return float(jaxprune.sparsity(trained.params, trained.masks))


def table(found: list[rows.Row]) -> str:
    """Mean and spread over the seeds of the rows of one task, as Markdown."""
    seeds = sorted({row["seed"] for row in found})
    dense = [row for row in found if row["method"] == "dense"]
    cells = [["method", *(f"{100 * s:g} %" for s in _SPARSITIES)]]
    lines = [
        f"Accuracy in per cent after {found[0]['epochs']} epochs, mean ± standard deviation over the seeds {seeds}; in",
        "brackets the training FLOPs, in dense trainings, and the seconds.",
        f"Dense: {_cell(dense)}.",
        "",
    ]
    for method in [*list(METHODS)[1:], *LOTTERY, "slim"]:
        at = [[row for row in found if (row["method"], row["sparsity"]) == (method, s)] for s in _SPARSITIES]
        if any(at):
            cells.append([method, *map(_cell, at)])
    return "\n".join([*lines, *_text.markdown(cells)])


def _cell(found: list[rows.Row]) -> str:
    if not found:
        return "–"
    correct, flops, seconds = ([row[key] for row in found] for key in ("accuracy", "flops", "seconds"))
    return f"{np.mean(correct):.2f} ± {np.std(correct):.2f} ({np.mean(flops):.2f}; {np.mean(seconds):.0f} s)"


def main(argv: list[str]) -> None:
    """Trains what is missing, on every core at once, prints the table, and measures some stored rows again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=__doc__)
    parser.add_argument("--folder", default="/usr/share/datasets/fashion-mnist", help="of the four idx files")
    parser.add_argument("--seeds", type=int, nargs="*", default=_SEEDS)
    parser.add_argument("--epochs", type=int, default=_EPOCHS, help="the budget")
    parser.add_argument("--optimizer", choices=_RATES, default="adamw")
    parser.add_argument("--methods", nargs="*", choices=_NAMES, default=_NAMES)
    parser.add_argument("--workers", type=int, default=rows.cores(), help="processes, a core each")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--check", type=int, default=1, help="how many stored rows to measure again and compare")
    parser.add_argument("--tables", action="store_true", help="only print the table of the stored rows")
    options = parser.parse_args(argv)
    if options.worker is not None:
        _work(planned(options.seeds, options.methods)[options.worker :: options.workers], options)
        return
    stored = _kept(options)
    if not options.tables:
        print(history.device(), flush=True)
        rows.in_processes("training", argv, options.workers)
    mine = _kept(options)
    print(f"\n{table(mine)}")
    print(f"\nStored in {_CACHE.name}: {len(mine)} rows, {len(mine) - len(stored)} of them measured in this run.")
    if options.tables:
        return
    if len(mine) > len(stored):
        history.append("training", _figures(mine))
    asked = [r for r in stored if r["method"] in options.methods and r["seed"] in options.seeds]
    _check(rows.drawn([r for r in asked if r["method"] not in LOTTERY], options.check), options)


def _figures(mine: list[rows.Row]) -> dict[str, float]:
    """Mean accuracies over the seeds."""
    return {
        f"{m}, {100 * s:g} %": float(np.mean([r["accuracy"] for r in mine if (r["method"], r["sparsity"]) == (m, s)]))
        for m, s in dict.fromkeys((row["method"], row["sparsity"]) for row in mine)
    }


def _check(drawn: list[rows.Row], options: argparse.Namespace) -> None:
    """Measures stored rows again."""
    if not drawn:
        return
    task, agreed = task_of(fashion_mnist(options.folder), options.epochs, options.optimizer), list[bool]()
    for row in drawn:
        job = Job(row["method"], row["sparsity"], row["seed"])
        found = train(task, job)[0]
        agreed.append(rows.compare(f"{job}, accuracy", row["accuracy"], found["accuracy"], _TOLERANCE))
    rows.conclude(agreed)


def _kept(options: argparse.Namespace) -> list[rows.Row]:
    """The stored rows of this budget."""
    found = rows.read(_CACHE, _PROTOCOL)
    return [r for r in found if (r["epochs"], r["optimizer"]) == (options.epochs, options.optimizer)]


def _work(jobs: list[Job], options: argparse.Namespace) -> None:
    task = task_of(fashion_mnist(options.folder), options.epochs, options.optimizer)
    done = {(r["method"], r["sparsity"], r["seed"]) for r in _kept(options)}
    for job in jobs:
        # The rows of a lottery are written together, so its last one shows that all are there.
        last = job._replace(method=LOTTERY[-1]) if job.method == "lottery" else job
        if last not in done:
            found = train(task, job)
            rows.append(_CACHE, found)
            print(*found, sep="\n", flush=True)
