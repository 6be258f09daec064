"""What is measured of one model, or of two side by side."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import tree
from jaxprune._evaluation import _metrics
from jaxprune._evaluation._macs import macs
from jaxprune.corruptions import Corruption
from jaxprune.typing import Masks, Params

Model = tuple[Callable[[Params, Any], Any], Params]
"""A function `fun(params, inputs)` and its parameters."""

Metric = Callable[[Callable[[Params, Any], Any], Params], Any]
"""From a function and its parameters to a number."""

BATCH = 1000
"""Samples that are timed and classified at a time."""
_TIMINGS = 11


class Evaluation(NamedTuple):
    """What was measured of one model.

    Attributes:
      metrics: By name: of a classifier `accuracy`, the share of samples classified right, `macro recall`, averaged over
        the classes, and `macro F1`, the harmonic mean of precision and recall, likewise.
      parameters: Floating-point numbers kept.
      bytes: What they and their masks need.
      macs: Multiply-accumulates per sample that involve a kept weight.
      milliseconds: For one batch of at most 1,000 samples; `None` where it was not timed.
      corrupted: The accuracy under each corruption, by its name.
      macs_by_leaf: Those of each leaf, by its path.
    """

    metrics: Mapping[str, float]
    parameters: int
    bytes: int
    macs: float
    milliseconds: float | None
    corrupted: Mapping[str, float] = MappingProxyType({})
    macs_by_leaf: Mapping[str, float] = MappingProxyType({})

    @property
    def accuracy(self) -> float:
        """Of a classifier."""
        return self.metrics["accuracy"]

    @property
    def recall(self) -> float:
        """Of a classifier."""
        return self.metrics["macro recall"]

    @property
    def f1(self) -> float:
        """Of a classifier."""
        return self.metrics["macro F1"]


def corrupted_inputs(name: str, corrupt: Corruption, inputs: np.ndarray) -> np.ndarray:
    """The inputs made worse, in their own shape."""
    corrupted = np.asarray(corrupt(inputs))
    if corrupted.shape != inputs.shape:
        raise ValueError(
            f"`corruptions['{name}']` must keep the shape of the inputs, {inputs.shape}; got {corrupted.shape}."
        )
    return corrupted


def metrics_of(
    model: Model,
    inputs: np.ndarray,
    which: str,
    labels: np.ndarray | None,
    metrics: Mapping[str, Metric] | None,
    corrupted: Mapping[str, np.ndarray],
) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics, and the accuracy under corruptions."""
    fun, params = model
    if metrics is not None:
        found = {name: float(np.asarray(metric(fun, params))) for name, metric in metrics.items()}
        for name, value in found.items():
            if not math.isfinite(value):
                raise ValueError(f"`metrics['{name}']` gives {value} {which} pruning. Look at what the model puts out.")
        return found, {}
    assert labels is not None
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    macro: dict[str, Any] = {"average": "macro", "zero_division": 0.0}
    leaves, rebuild = tree.partition(params)
    classify = jax.jit(lambda leaves, x: jnp.argmax(fun(rebuild(leaves), x), axis=-1))

    def predict(samples: np.ndarray) -> np.ndarray:
        parts = (samples[i : i + BATCH] for i in range(0, len(samples), BATCH))
        return np.concatenate([np.asarray(classify(leaves, part)) for part in parts])

    predicted = predict(inputs)
    scores = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro recall": float(recall_score(labels, predicted, **macro)),
        "macro F1": float(f1_score(labels, predicted, **macro)),
    }
    return scores, {name: float(accuracy_score(labels, predict(samples))) for name, samples in corrupted.items()}


def evaluated(
    model: Model,
    inputs: np.ndarray,
    metrics: Mapping[str, float],
    corrupted: Mapping[str, float],
    masks: Masks | None,
    milliseconds: float | None,
) -> Evaluation:
    """What was measured, with sizes and multiply-accumulates."""
    fun, params = model
    counted = macs(fun, params, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype), masks=masks)
    summary = [] if masks is None else _metrics.summary(params, masks)
    density = {leaf.path: 1 - leaf.sparsity for leaf in summary}
    return Evaluation(
        metrics,
        _metrics.count_params(params) - sum(leaf.size - leaf.kept for leaf in summary),
        _metrics.nbytes(params, masks),
        float(counted.effective),
        milliseconds,
        corrupted,
        {path: number * density.get(path, 1.0) for path, number in counted.by_leaf.items()},
    )


def times(before: Model, after: Model, batch: np.ndarray) -> tuple[float, float]:
    """Median milliseconds of both, timed alternately, so that other load on the machine affects both alike."""
    calls = [_compiled(model) for model in (before, after)]
    times: list[list[float]] = [[], []]
    for _ in range(_TIMINGS + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call(batch))
            taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def _compiled(model: Model) -> Callable[[Any], Any]:
    fun, params = model
    leaves, rebuild = tree.partition(params)
    return functools.partial(jax.jit(lambda leaves, x: fun(rebuild(leaves), x)), leaves)
