"""JaxPruner for `benchmarks.peers`, in the same process and on the same JAX."""

import argparse
import functools
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import jaxpruner
import numpy as np
import optax

import jaxprune
from benchmarks import memory, step, timing
from benchmarks.selection import scores

_SPARSITY = 0.9
_NEVER = 10**6
_STEPS = {"fixed": _NEVER, "refreshed": 1}  # every how many steps the masks are chosen anew


def version() -> str:
    """Its version; raises what it raises if it does not run here."""
    _updater().instant_sparsify({"kernel": jnp.ones((4, 4))})
    return metadata.version("jaxpruner")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Masks, then steps."""
    figures: dict[str, float] = {}
    print(f"\n{'choosing a tenth of':34}{'jaxprune':>10}{'JaxPruner':>11}{'times':>8}  kept")
    for size in options.sizes:
        for kind in ("normal", "few values"):
            figures |= _masks(kind, size, options.repeats)
    return figures | _steps(2 * options.repeats, options.clock)


def _updater(every: int = _NEVER, **options: Any) -> Any:
    """Magnitude pruning at one sparsity, refreshed every so many steps from the first one on."""
    return jaxpruner.MagnitudePruning(
        scheduler=jaxpruner.PeriodicSchedule(update_freq=every, update_start_step=0, update_end_step=_NEVER - 1),
        sparsity_distribution_fn=functools.partial(jaxpruner.sparsity_distributions.uniform, sparsity=_SPARSITY),
        **options,
    )


def _masks(kind: str, size: int, repeats: int) -> dict[str, float]:
    """The masks of one kernel: their time in passes of `sum(|x|)`, how many weights they keep, where they differ."""
    params = {"kernel": jnp.asarray(scores(kind, size).reshape(-1, 1000))}
    ours = jax.jit(functools.partial(jaxprune.magnitude, sparsity=_SPARSITY))
    theirs = jax.jit(lambda params: _updater().instant_sparsify(params)[1])
    read = jax.jit(lambda params: jnp.sum(jnp.abs(params["kernel"])))
    kept, other = (np.asarray(prune(params)["kernel"], bool) for prune in (ours, theirs))
    calls = {"read": read, "jaxprune": ours, "JaxPruner": theirs}
    times = timing.interleaved({name: functools.partial(call, params) for name, call in calls.items()}, repeats)
    passes = {name: timing.ratio(times, name, "read") for name in ("jaxprune", "JaxPruner")}
    times_longer = timing.ratio(times, "JaxPruner", "jaxprune")
    both = f"{kept.sum():,}" if kept.sum() == other.sum() else f"{kept.sum():,} and {other.sum():,}"
    differ = int((kept != other).sum())
    row = f"{size:,}, {kind}, passes"
    print(
        f"{row:34}{passes['jaxprune']:10.1f}{passes['JaxPruner']:11.1f}{times_longer:8.1f}  {both}; the masks "
        f"{f'differ at {differ:,} places' if differ else 'are the same'}",
        flush=True,
    )
    figures = {f"{row}, {name}": value for name, value in passes.items()}
    return figures | {f"{size:,}, {kind}, JaxPruner / jaxprune": times_longer, f"{size:,}, {kind}, differ": differ}


def _steps(repeats: int, clock: str) -> dict[str, float]:
    """Steps of `benchmarks.step`: time and working memory to those of plain Adam, and the size of the state."""
    adam = optax.adam(1e-3)
    trainings = {"plain": step.Training(adam)}
    for name, every in _STEPS.items():
        gradual = functools.partial(jaxprune.gradual, adam, jaxprune.magnitude, lambda _: _SPARSITY, end=_NEVER)
        trainings[f"{name}, jaxprune"] = step.Training(gradual(every=every))
        for label, options in (("JaxPruner", {}), ("JaxPruner, sparse gradients", {"is_sparse_gradients": True})):
            updater = _updater(every, **options)
            trainings[f"{name}, {label}"] = step.Training(updater.wrap_optax(adam), updater.post_gradient_update)
    times = timing.interleaved(trainings, repeats, clock=step.CLOCKS[clock])
    size = memory.nbytes(step.initialise())
    print(f"\n{f'step of the MLP with Adam, {clock} time':42}{'time to plain':>14}{'working memory':>16}{'state':>8}")
    figures: dict[str, float] = {}
    for name, training in trainings.items():
        found = {
            "time to plain": timing.ratio(times, name, "plain"),
            "working memory": memory.working(training.lower().compile()) / size,
            "state": memory.nbytes(training.state) / size,
        }
        figures |= {f"step, {name}, {key}": value for key, value in found.items()}
        print(f"{name:42}{found['time to plain']:14.2f}{found['working memory']:16.2f}{found['state']:8.2f}")
    return figures
