"""How much accuracy does each strategy keep on Fashion-MNIST?

Two tables. The long one trains ten epochs from scratch, dense and with gradual magnitude pruning under three budgets.
The wide one trains every strategy three epochs from scratch. Each row is stored in `accuracy.jsonl` next to this file,
so that a run goes on where the last one stopped; rows of another protocol are ignored. Of the rows that are stored
already, some are drawn, measured again and compared; `--fresh` measures all of them again.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from benchmarks import history, rows
from jaxprune import _text, budgets, patterns
from jaxprune._demo import classifier
from jaxprune._demo.data import Images, fashion_mnist

_CACHE = Path(__file__).parent / "accuracy.jsonl"
_TOLERANCE = 1.0  # points between the accuracies of one run on different devices
_PROTOCOL = {3: 1, 10: 4}  # by epochs: raise it when anything below changes a result of that table
_BATCH = 128
_RATE = {3: 2e-3, 10: 0.1}  # by epochs; chosen on other seeds
_SEEDS = (0, 1, 2)
_PHASES = {
    3: (0.05, 0.4, 117),
    10: (0.05, 0.6, 20),
}  # by epochs: begin and end as shares of the steps, steps between refreshes

MODEL = classifier.Classifier(channels=(16, 32), hidden=120, first_stride=2)
FUN = classifier.apply(MODEL)
KERNELS = jaxprune.filters.is_kernel
INNER = KERNELS & ~jaxprune.filters.named("head")  # the outputs of the head are the classes


class Run(NamedTuple):
    """One training run: a strategy by name, its sparsity (0 is dense), a seed and a number of epochs."""

    strategy: str
    sparsity: float
    seed: int
    epochs: int


GRADUAL: dict[str, Any] = {
    "magnitude, uniform": jaxprune.magnitude,
    "magnitude, erk": functools.partial(jaxprune.magnitude, budget=budgets.erk),
    "magnitude, global": functools.partial(jaxprune.magnitude, budget=budgets.global_),
    "lamp": jaxprune.lamp,
    "taylor, global": jaxprune.WithGradients(functools.partial(jaxprune.taylor, budget=budgets.global_)),
    "random": jaxprune.WithKey(jaxprune.random, jax.random.key(0)),
    "block 4x4": functools.partial(jaxprune.magnitude, pattern=patterns.Block((4, 4))),
    "slim": functools.partial(jaxprune.slim, where=INNER),
    "dft, energy": jaxprune.dft,
    "dft, low": functools.partial(jaxprune.dft, keep="low"),
    "dft, high": functools.partial(jaxprune.dft, keep="high"),
}


def _snip(params: Any, images: Any, labels: Any, sparsity: Any) -> Any:
    return jaxprune.snip(params, jax.grad(classifier.loss_of(FUN))(params, images, labels), sparsity)


def _grasp(params: Any, images: Any, labels: Any, sparsity: Any) -> Any:
    cooled = classifier.loss_of(lambda p, x: FUN(p, x) / 200.0)
    return jaxprune.grasp(lambda p: cooled(p, images, labels), params, sparsity)


def _synflow(params: Any, images: Any, labels: Any, sparsity: Any) -> Any:
    del labels
    return jaxprune.synflow(FUN, params, images[:1], sparsity)


AT_START: dict[str, Callable[..., Any]] = {"snip": _snip, "grasp": _grasp, "synflow": _synflow}
LONG = ("magnitude, uniform", "magnitude, erk", "magnitude, global")


def planned(seeds: Iterable[int]) -> list[Run]:
    """Every run of both tables, seed by seed."""
    long = [Run("dense", 0.0, 0, 10), *(Run(s, p, 0, 10) for p, s in itertools.product((0.9, 0.95, 0.98), LONG))]
    names = [*GRADUAL, *AT_START]
    wide = [Run("dense", 0.0, 0, 3), *(Run(s, p, 0, 3) for p, s in itertools.product((0.8, 0.9, 0.95, 0.98), names))]
    return [run._replace(seed=seed) for seed in seeds for run in (*long, *wide)]


def rate(steps: int, peak: float = _RATE[3]) -> Any:
    """The learning rate of a run."""
    return optax.cosine_decay_schedule(peak, steps)


def inner(epochs: int, steps: int) -> optax.GradientTransformation:
    """The optimizer of the dense model of a table, which the pruning ones wrap."""
    if epochs == 3:
        return optax.adamw(rate(steps), weight_decay=1e-4)
    return optax.sgd(rate(steps, _RATE[epochs]), momentum=0.9, nesterov=True)


@functools.lru_cache
def _step(strategy: str, steps: int, per_epoch: int) -> tuple[Any, Any]:
    """The jitted step and the optimizer as a function of the final sparsity."""
    epochs = steps // per_epoch
    plain = inner(epochs, steps)
    first, last, every = _PHASES[epochs]
    begin, end = int(first * steps), int(last * steps)

    def optimizer(sparsity: Any) -> optax.GradientTransformation:
        if strategy == "dense":
            return plain
        if strategy in AT_START:
            return jaxprune.masked(plain, None)
        schedule = optax.polynomial_schedule(0.0, sparsity, power=3, transition_steps=end - begin)
        return jaxprune.gradual(plain, GRADUAL[strategy], schedule, begin=begin, end=end, every=every)

    return classifier.train_step(FUN, optimizer), plain if strategy in AT_START else optimizer


@functools.lru_cache
def _chooser(strategy: str) -> Any:
    return jax.jit(AT_START[strategy])


def train(run: Run, data: Images) -> rows.Row:
    """Trains one run and returns its row."""
    start = time.perf_counter()
    per_epoch = len(data.train_images) // _BATCH
    step, optimizer = _step(run.strategy, run.epochs * per_epoch, per_epoch)
    sparsity = jnp.float32(run.sparsity)
    params = classifier.initialise(MODEL, data.train_images, run.seed)
    if run.strategy in AT_START:
        images, labels = data.train_images[:1024], data.train_labels[:1024]
        masks = _chooser(run.strategy)(params, images, labels, sparsity)
        params = jaxprune.apply(params, masks)
        state = jaxprune.masked(optimizer, masks).init(params)
    else:
        state = optimizer(sparsity).init(params)
    for images, labels in classifier.batches(data, run.epochs, _BATCH, run.seed):
        params, state, _ = step(params, state, images, labels, sparsity)
    achieved = 0.0 if run.strategy == "dense" else float(jaxprune.sparsity(params, jaxprune.masks_of(state)))
    return {
        **run._asdict(),
        "accuracy": round(classifier.accuracy(FUN, params, data.test_images, data.test_labels), 2),
        "achieved": round(achieved, 6),
        "seconds": round(time.perf_counter() - start, 1),
        "protocol": _PROTOCOL[run.epochs],
    }


def cached(path: Path | None = None) -> dict[Run, rows.Row]:
    """The rows of this protocol."""
    found = [(epochs, row) for epochs, protocol in _PROTOCOL.items() for row in rows.read(path or _CACHE, protocol)]
    return {Run(*(row[f] for f in Run._fields)): row for epochs, row in found if row["epochs"] == epochs}


def table(known: dict[Run, rows.Row], epochs: int) -> str:
    """Mean and spread over the seeds, as Markdown."""
    runs = [run for run in known if run.epochs == epochs]
    sparsities = sorted({run.sparsity for run in runs if run.sparsity})
    dense = [known[run]["accuracy"] for run in runs if run.strategy == "dense"]
    lines = [
        f"Accuracy in per cent after {epochs} epochs, mean ± standard deviation over {len(dense)} seeds.",
        f"Dense: {np.mean(dense):.2f} ± {np.std(dense):.2f}.",
        "",
    ]
    cells = [["strategy", *(f"{100 * s:g} %" for s in sparsities)]]
    for strategy in dict.fromkeys(run.strategy for run in runs if run.sparsity):
        cells.append([strategy])
        for sparsity in sparsities:
            values = [known[r]["accuracy"] for r in runs if (r.strategy, r.sparsity) == (strategy, sparsity)]
            cells[-1].append(f"{np.mean(values):.2f} ± {np.std(values):.2f}" if values else "–")
    return "\n".join([*lines, *_text.markdown(cells)])


def main(argv: list[str]) -> None:
    """Trains what is missing, on every core at once, prints both tables, and measures some stored rows again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy", description=__doc__)
    parser.add_argument("--folder", default="/usr/share/datasets/fashion-mnist", help="of the four idx files")
    parser.add_argument("--seeds", type=int, nargs="*", default=_SEEDS)
    parser.add_argument("--epochs", type=int, choices=(3, 10), nargs="*", default=(3, 10), help="of which table")
    parser.add_argument("--workers", type=int, default=rows.cores(), help="processes, a core each")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fresh", action="store_true", help="measure all again; the stored rows stay until it is done")
    parser.add_argument("--check", type=int, default=1, help="how many stored rows to measure again and compare")
    parser.add_argument("--tables", action="store_true", help="only print the tables of the stored rows")
    options = parser.parse_args(argv)
    into = _CACHE.with_suffix(".fresh.jsonl") if options.fresh else _CACHE
    wanted = [run for run in planned(options.seeds) if run.epochs in options.epochs]
    stored = cached(into)
    missing = [run for run in wanted if run not in stored]
    if options.worker is not None:
        _work([run for run in wanted[options.worker :: options.workers] if run in missing], options.folder, into)
        return
    if missing and not options.tables:
        print(f"{history.device()}; {len(missing)} runs to go in {options.workers} processes", flush=True)
        rows.in_processes("accuracy", argv, options.workers)
    if options.fresh and not options.tables:
        rows.replace(_CACHE, into, (*Run._fields, "protocol"))
    known = cached()
    for epochs in sorted({run.epochs for run in known}, reverse=True):
        print(f"\n{table(known, epochs)}")
    measured = 0 if options.tables else len(missing)
    print(f"\nStored in {_CACHE.name}: {len(known)} rows, {measured} of them measured in this run.")
    print(f"Training took {sum(row['seconds'] for row in known.values()) / 60:.0f} minutes of one core in all.")
    if measured:
        history.append("accuracy", _figures(known))
    if not options.tables:
        _check(rows.drawn([stored[run] for run in wanted if run in stored], options.check), options.folder)


def _check(drawn: list[rows.Row], folder: str) -> None:
    """Measures stored rows again."""
    if not drawn:
        return
    data, agreed = fashion_mnist(folder), list[bool]()
    for row in drawn:
        run = Run(*(row[name] for name in Run._fields))
        found = train(run, data)
        agreed.append(rows.compare(f"{run}, accuracy", row["accuracy"], found["accuracy"], _TOLERANCE))
    rows.conclude(agreed)


def _work(runs: list[Run], folder: str, into: Path) -> None:
    data = fashion_mnist(folder)
    for run in runs:
        row = train(run, data)
        rows.append(into, [row])
        print(row, flush=True)


def _figures(known: dict[Run, rows.Row]) -> dict[str, float]:
    """Mean accuracies of the long table."""
    groups: dict[str, list[float]] = {}
    for run, row in known.items():
        if run.epochs == 10:
            groups.setdefault(f"{run.strategy}, {100 * run.sparsity:g} %", []).append(row["accuracy"])
    return {name: float(np.mean(values)) for name, values in groups.items()}
