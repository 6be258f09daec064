"""How small does a model get within half a point of the dense one, on Fashion-MNIST, without anyone intervening?

`prune_retrain` searches twice: by single weights, and by whole units, where sparsity is counted in multiply-accumulates
and `shrink` removes the units in the end. In each round the dense model is the teacher. A twelfth of the training
images is held out to choose the round by; the test images are for the report alone. The chosen round does better on the
images that it was chosen by than on others, so it has to come within 0.3 points on these.
"""

import argparse
import functools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jaxprune
from benchmarks import accuracy, history
from jaxprune import budgets, structured, targets
from jaxprune._demo import classifier
from jaxprune._demo.data import Images, fashion_mnist

_BATCH = 128
_DENSE_EPOCHS = 10
_RATE = 0.05
_TEMPERATURE = 4.0
_BY_TEACHER = 0.9
_HELD_OUT = 5000
_TOLERANCE = 0.3  # points of accuracy

FUN = accuracy.FUN
TARGETS = {
    "weights": targets.Within(_TOLERANCE, factor=0.3),
    "units": targets.Within(_TOLERANCE, factor=0.75, resolution=0.1),
}


def held_out(data: Images) -> Images:
    """The training images alone; the held-out ones take the place of the test images."""
    images, labels = data.train_images, data.train_labels
    return data._replace(
        train_images=images[_HELD_OUT:], train_labels=labels[_HELD_OUT:],
        test_images=images[:_HELD_OUT], test_labels=labels[:_HELD_OUT],
    )  # fmt: skip


def train_dense(split: Images) -> Any:
    """Trains the dense model as `benchmarks.accuracy` does for its long table."""
    inner = accuracy.inner(_DENSE_EPOCHS, _DENSE_EPOCHS * (len(split.train_images) // _BATCH))
    step = classifier.train_step(FUN, lambda _: inner)
    params = classifier.initialise(accuracy.MODEL, split.train_images, 0)
    state = inner.init(params)
    for images, labels in classifier.batches(split, _DENSE_EPOCHS, _BATCH, seed=0):
        params, state, _ = step(params, state, images, labels, 0.0)
    return params


def trainer(split: Images, dense: Any, epochs: int) -> jaxprune.Trainer:
    """Each round learns from the dense model, with a learning rate that starts anew."""
    steps = epochs * (len(split.train_images) // _BATCH)
    rate = optax.warmup_cosine_decay_schedule(0.0, _RATE, steps // 20, steps)
    inner = optax.sgd(rate, momentum=0.9, nesterov=True)
    optimizer, infer, size = jaxprune.masked(inner, None), jax.jit(FUN), len(split.train_images)
    teacher_logits = np.concatenate([infer(dense, split.train_images[i : i + 1000]) for i in range(0, size, 1000)])

    def loss(params: Any, images: Any, labels: Any, teacher: Any) -> Any:
        logits = FUN(params, images)
        by_labels = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        softened = jax.nn.softmax(teacher / _TEMPERATURE)
        by_teacher = _TEMPERATURE**2 * optax.softmax_cross_entropy(logits / _TEMPERATURE, softened).mean()
        return (1 - _BY_TEACHER) * by_labels + _BY_TEACHER * by_teacher

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    def batches(index: int, epoch: int) -> Iterable[Any]:
        order = np.random.default_rng((index, epoch)).permutation(size)
        for start in range(0, size - _BATCH + 1, _BATCH):
            chosen = order[start : start + _BATCH]
            yield split.train_images[chosen], split.train_labels[chosen], teacher_logits[chosen]

    return jaxprune.Trainer(
        init=lambda params, masks: jaxprune.masked(inner, masks).init(params),
        step=step,
        batches=batches,
        evaluate=lambda params: classifier.accuracy(FUN, params, split.test_images, split.test_labels),
    )


def search(kind: str, dense: Any, split: Images, epochs: int, folder: Path | None) -> tuple[jaxprune.Rounds, Any]:
    """The smallest model by single weights or by whole units, and the coupling."""
    coupling = jaxprune.couple(FUN, dense, split.train_images[:1])

    def by_units(params: Any, share: float) -> Any:
        return jaxprune.slim(params, coupling=coupling, budget=structured.macs(coupling, 1 - share))

    started = time.perf_counter()

    def report(done: int, total: int, what: str) -> None:
        print(f"{what}, epoch {done} of {total} at {time.perf_counter() - started:.0f} s", flush=True)

    strategy = by_units if kind == "units" else functools.partial(jaxprune.magnitude, budget=budgets.global_)
    found = jaxprune.prune_retrain(
        dense,
        strategy,
        trainer(split, dense, epochs),
        TARGETS[kind],
        epochs=epochs,
        folder=folder,
        progress=report,
    )
    return found, coupling


def evidence(kind: str, dense: Any, found: jaxprune.Rounds, coupling: Any, data: Images) -> jaxprune.Report:
    """Before and after, on the test images; whole units are taken out."""
    after, masks = (FUN, found.params), found.masks
    if kind == "units":
        after, masks = jaxprune.shrink(FUN, found.params, masks, coupling)[:2], None
    return jaxprune.report((FUN, dense), after, data.test_images, data.test_labels, masks=masks)


def main(argv: list[str]) -> None:
    """Searches, prints the rounds and the reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks smallest", description=__doc__)
    parser.add_argument("--folder", default="/usr/share/datasets/fashion-mnist", help="of the four idx files")
    parser.add_argument("--kinds", nargs="*", choices=TARGETS, default=tuple(TARGETS))
    parser.add_argument("--epochs", type=int, default=10, help="of each round")
    parser.add_argument("--rounds", type=Path, help="keep each round in this folder, to go on where a run was stopped")
    options = parser.parse_args(argv)
    data, figures = fashion_mnist(options.folder), dict[str, float]()
    split, started = held_out(data), time.perf_counter()
    dense = train_dense(split)
    print(f"{history.device()}; the dense model took {time.perf_counter() - started:.0f} s", flush=True)
    for kind in options.kinds:
        started = time.perf_counter()
        kept = None if options.rounds is None else options.rounds / kind
        found, coupling = search(kind, dense, split, options.epochs, kept)
        report = evidence(kind, dense, found, coupling, data)
        seconds = time.perf_counter() - started
        print(f"\n{kind}, {len(found.history) - 1} rounds in {seconds:.0f} s\n{found}\n\n{report}\n", flush=True)
        figures |= {
            f"{kind}, removed": report.sparsity if kind == "weights" else 1 - report.after.macs / report.before.macs,
            f"{kind}, points lost": 100 * (report.before.accuracy - report.after.accuracy),
            f"{kind}, seconds": seconds,
        }
    history.append("smallest", figures)
