"""Evidence: a model before and after pruning, side by side."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _text
from jaxprune._arrays import checks, tree
from jaxprune._evaluation import _metrics
from jaxprune._evaluation._convergence import Convergence, averaged
from jaxprune._evaluation._macs import macs
from jaxprune.corruptions import Corruption
from jaxprune.typing import Masks, Params

Model = tuple[Callable[[Params, Any], Any], Params]
"""A function `fun(params, inputs)` that returns logits `(batch, classes)`, and its parameters."""

_BATCH = 1000
_TIMINGS = 11


class Evaluation(NamedTuple):
    """What was measured of one model.

    Attributes:
      accuracy: The share of samples classified right, in [0, 1].
      recall: Averaged over the classes, each counting the same.
      f1: The harmonic mean of precision and recall, averaged over the classes.
      parameters: Floating-point numbers kept.
      bytes: What they and their masks need.
      macs: Multiply-accumulates per sample that involve a kept weight.
      milliseconds: For one batch of at most 1,000 samples; `None` where it was not timed.
      corrupted: The accuracy under each corruption, by its name.
    """

    accuracy: float
    recall: float
    f1: float
    parameters: int
    bytes: int
    macs: float
    milliseconds: float | None
    corrupted: Mapping[str, float] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Report:
    """Before and after. Prints as a table.

    Attributes:
      before: Of the dense model.
      after: Of the pruned one.
      leaves: What each pruned leaf keeps.
      requested: The sparsity that was asked for, if `report` was told.
      convergence: The losses of both trainings, if `report` was given them.
    """

    before: Evaluation
    after: Evaluation
    leaves: Sequence[_metrics.LeafSummary]
    requested: float | None = None
    convergence: Convergence | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of weights removed from the pruned leaves."""
        size = sum(leaf.size for leaf in self.leaves)
        return 1 - sum(leaf.kept for leaf in self.leaves) / size if size else 0.0

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Measure, before, after, change."""
        before, after = self.before, self.after
        rows = [
            (name, f"{100 * b:.2f} %", f"{100 * a:.2f} %", f"{100 * (a - b):+.2f} points")
            for name, b, a in (
                ("accuracy", before.accuracy, after.accuracy),
                ("macro recall", before.recall, after.recall),
                ("macro F1", before.f1, after.f1),
                *((f"accuracy, {name}", share, after.corrupted[name]) for name, share in before.corrupted.items()),
            )
        ]
        for name, b, a in (
            ("parameters", before.parameters, after.parameters),
            ("bytes", before.bytes, after.bytes),
            ("MACs per sample", before.macs, after.macs),
        ):
            rows.append((name, f"{b:,.0f}", f"{a:,.0f}", _factor(b, a)))
        if before.milliseconds is not None and after.milliseconds is not None:
            b, a = before.milliseconds, after.milliseconds
            rows.append(("milliseconds per batch", f"{b:.2f}", f"{a:.2f}", _factor(b, a)))
        for level, b, a in [] if self.convergence is None else self.convergence.steps():
            rows.append((f"steps to loss {level:.3g}", _steps(b), _steps(a), _factor(b, a) if b and a else ""))
        asked = "" if self.requested is None else f"asked for {100 * self.requested:.2f} %"
        rows.append(("sparsity", "", f"{100 * self.sparsity:.2f} %", asked))
        return rows

    def __str__(self) -> str:
        return "\n".join(_text.aligned([("", "before", "after", "change"), *self.rows()], "lrrr"))

    def to_markdown(self) -> str:
        """Both tables: the measures, and what each leaf keeps."""
        leaves = [("leaf", "shape", "weights", "kept", "sparsity")]
        for leaf in self.leaves:
            shape = "×".join(str(size) for size in leaf.shape)
            leaves.append((leaf.path, shape, f"{leaf.size:,}", f"{leaf.kept:,}", f"{100 * leaf.sparsity:.2f} %"))
        measures = [("measure", "before", "after", "change"), *self.rows()]
        return "\n".join([*_text.markdown(measures), "", *_text.markdown(leaves)])

    def plot(self, path: str | Path) -> None:
        """Draws the quality before and after and the density of each leaf, and what else there is, into a file.

        Args:
          path: Where to; the ending decides the format.

        Raises:
          ImportError: Without matplotlib, which `pip install "jaxprune[demo]"` brings.
        """
        from matplotlib.figure import Figure

        draw = [_draw_quality, _draw_kept]
        draw += [_draw_corrupted] * bool(self.before.corrupted) + [_draw_losses] * (self.convergence is not None)
        rows = (len(draw) + 1) // 2
        figure = Figure(figsize=(9, 3 * rows + 0.2 * len(self.leaves)), layout="constrained")
        panels = figure.subplots(rows, 2, squeeze=False).flat
        for axes, function in zip(panels, draw, strict=False):
            function(axes, self)
        for axes in list(panels)[len(draw) :]:
            axes.set_visible(False)
        figure.savefig(path)


def report(
    before: Model,
    after: Model,
    inputs: Any,
    labels: Any,
    *,
    masks: Masks | None = None,
    requested: float | None = None,
    timed: bool = False,
    corruptions: Mapping[str, Corruption] | None = None,
    convergence: Convergence | None = None,
) -> Report:
    """Evaluates a classifier before and after pruning on the same samples.

    Args:
      before: `(fun, params)` of the dense model.
      after: `(fun, params)` of the pruned one: the same function with pruned parameters, or a smaller one.
      inputs: Samples `(n, ...)`, best such as the model was not trained on.
      labels: Integer classes `(n,)`.
      masks: Of the pruned parameters, where they are masked; without masks, leaves of another shape count as pruned.
      requested: The sparsity that was asked for, which the report shows next to the one achieved.
      timed: Measure the time for one batch. A masked model is not faster than a dense one; a shrunk one is.
      corruptions: Functions from inputs to worse inputs, by name, under which the accuracy is measured again, such as
        `corruptions.standard(jax.random.key(0))`.
      convergence: The losses of both trainings, to compare how many steps they take.

    Returns:
      The evidence.

    Raises:
      ValueError: Inputs and labels differ in number, or a corruption changes the shape.
      ImportError: Without scikit-learn, which `pip install "jaxprune[demo]"` brings.

    Examples:
      >>> fun = lambda params, x: x @ params["kernel"]
      >>> params = {"kernel": jnp.eye(3)}
      >>> masks = jaxprune.magnitude(params, 2 / 3)
      >>> print(jaxprune.report((fun, params), (fun, params), jnp.eye(3), jnp.arange(3), masks=masks).after.accuracy)
      1.0
    """
    for model in (before, after):
        if not checks.is_a(model, tuple, list) or len(model) != 2 or not callable(model[0]):
            raise TypeError(f"`report` takes each model as `(fun, params)`; got {type(model).__name__}.")
    if len(inputs) != len(labels):
        raise ValueError(f"`report` needs one label for each input; got {len(inputs)} inputs, {len(labels)} labels.")
    samples, answers = np.asarray(inputs), np.asarray(labels)
    corrupted = {name: _corrupted(name, corrupt, samples) for name, corrupt in (corruptions or {}).items()}
    milliseconds = _times(before, after, samples[:_BATCH]) if timed else (None, None)
    return Report(
        _evaluate(before, samples, answers, corrupted, None, milliseconds[0]),
        _evaluate(after, samples, answers, corrupted, masks, milliseconds[1]),
        _metrics.summary(after[1], masks) if masks is not None else _smaller(before[1], after[1]),
        requested,
        convergence,
    )


def _corrupted(name: str, corrupt: Corruption, inputs: np.ndarray) -> np.ndarray:
    corrupted = np.asarray(corrupt(inputs))
    if corrupted.shape != inputs.shape:
        raise ValueError(
            f"`corruptions['{name}']` must keep the shape of the inputs, {inputs.shape}; got {corrupted.shape}."
        )
    return corrupted


def _evaluate(
    model: Model,
    inputs: np.ndarray,
    labels: np.ndarray,
    corrupted: Mapping[str, np.ndarray],
    masks: Masks | None,
    milliseconds: float | None,
) -> Evaluation:
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    macro: dict[str, Any] = {"average": "macro", "zero_division": 0.0}
    fun, params = model
    leaves, rebuild = tree.partition(params)
    classify = jax.jit(lambda leaves, x: jnp.argmax(fun(rebuild(leaves), x), axis=-1))

    def predict(samples: np.ndarray) -> np.ndarray:
        parts = (samples[i : i + _BATCH] for i in range(0, len(samples), _BATCH))
        return np.concatenate([np.asarray(classify(leaves, part)) for part in parts])

    predicted = predict(inputs)
    counted = macs(fun, params, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype), masks=masks)
    removed = 0 if masks is None else sum(leaf.size - leaf.kept for leaf in _metrics.summary(params, masks))
    return Evaluation(
        float(accuracy_score(labels, predicted)),
        float(recall_score(labels, predicted, **macro)),
        float(f1_score(labels, predicted, **macro)),
        _metrics.count_params(params) - removed,
        _metrics.nbytes(params, masks),
        float(counted.effective),
        milliseconds,
        {name: float(accuracy_score(labels, predict(samples))) for name, samples in corrupted.items()},
    )


def _times(before: Model, after: Model, batch: np.ndarray) -> tuple[float, float]:
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


def _smaller(before: Params, after: Params) -> list[_metrics.LeafSummary]:
    """The leaves whose shape differs, as they do in a shrunk model."""
    sizes = dict(zip(tree.paths(after), jax.tree.leaves(after), strict=True))
    rows = list[_metrics.LeafSummary]()
    for path, leaf in tree.flatten(before)[0]:
        small = sizes.get(path)
        if tree.is_array(leaf) and small is not None and small.shape != leaf.shape:
            rows.append(_metrics.LeafSummary(path, leaf.shape, leaf.size, small.size, 1 - small.size / leaf.size))
    return rows


def _factor(before: float, after: float) -> str:
    return f"{before / after:.2f}x less" if after else "nothing left"


def _steps(number: int | None) -> str:
    return "never" if number is None else f"{number:,}"


def _draw_pairs(axes: Any, names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> None:
    """Draws bars of shares in per cent, in pairs of before and after."""
    for offset, label, shares in ((-0.2, "before", before), (0.2, "after", after)):
        bars = axes.bar(np.arange(len(names)) + offset, [100 * share for share in shares], 0.4, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize="small")
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize="small")
    axes.set_ylabel("per cent")
    axes.legend(loc="lower right")


def _draw_quality(axes: Any, found: Report) -> None:
    shares = [(values.accuracy, values.recall, values.f1) for values in (found.before, found.after)]
    _draw_pairs(axes, ["accuracy", "macro recall", "macro F1"], *shares)


def _draw_corrupted(axes: Any, found: Report) -> None:
    names = list(found.before.corrupted)
    _draw_pairs(axes, names, *([values.corrupted[name] for name in names] for values in (found.before, found.after)))
    axes.set_ylabel("accuracy, per cent")


def _draw_kept(axes: Any, found: Report) -> None:
    axes.barh(range(len(found.leaves)), [100 * (1 - leaf.sparsity) for leaf in found.leaves])
    axes.set_yticks(range(len(found.leaves)), [leaf.path for leaf in found.leaves])
    axes.invert_yaxis()
    axes.set_xlabel("kept, per cent")


def _draw_losses(axes: Any, found: Report) -> None:
    assert found.convergence is not None
    window = found.convergence.window
    for label, losses in (("before", found.convergence.before), ("after", found.convergence.after)):
        axes.plot(np.arange(window, len(losses) + 1), averaged(losses, window), label=label)
    for level, *_ in found.convergence.steps():
        axes.axhline(level, color="black", linewidth=0.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(loc="upper right")
