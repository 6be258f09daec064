"""Evidence: a model before and after pruning, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jaxprune import _documents, _text
from jaxprune._arrays import checks, tree
from jaxprune._evaluation import _metrics, _page, _plots
from jaxprune._evaluation._convergence import Convergence, averaged
from jaxprune._evaluation._layers import Layer, drawn
from jaxprune._evaluation._measured import (
    BATCH,
    Evaluation,
    Metric,
    Model,
    corrupted_inputs,
    evaluated,
    metrics_of,
    times,
)
from jaxprune._evaluation._overview import KIND
from jaxprune.corruptions import Corruption
from jaxprune.typing import Masks, Params

_SHARES = ("accuracy", "macro recall", "macro F1")


@runtime_checkable
class Timed(Protocol):
    """What a forecast says, such as `jaxprune.Forecast`."""

    @property
    def verdict(self) -> str:
        """In words."""
        ...

    def rows(self) -> list[tuple[str, ...]]:
        """One for each leaf: path, shape, share kept, best form, milliseconds dense and in that form, reason."""
        ...


@dataclasses.dataclass(frozen=True)
class Report:
    """Before and after. Prints as a table.

    Attributes:
      before: Of the dense model.
      after: Of the pruned one.
      leaves: What each pruned leaf keeps.
      requested: The sparsity that was asked for, if `report` was told.
      convergence: The losses of both trainings, if `report` was given them.
      masked: Whether it is the same function with zeros, and not a smaller one.
      layers: The weights of the largest pruned leaves.
      forecast: Whether masks like these make the model faster, if `report` was told.
    """

    before: Evaluation
    after: Evaluation
    leaves: Sequence[_metrics.LeafSummary]
    requested: float | None = None
    convergence: Convergence | None = None
    masked: bool = True
    layers: Sequence[Layer] = ()
    forecast: Timed | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of weights removed from the pruned leaves."""
        size = sum(leaf.size for leaf in self.leaves)
        return 1 - sum(leaf.kept for leaf in self.leaves) / size if size else 0.0

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Measure, before, after, change."""
        before, after = self.before, self.after
        rows = [(name, *_change(name, value, after.metrics[name])) for name, value in before.metrics.items()]
        for name, share in before.corrupted.items():
            rows.append((f"accuracy, {name}", *_change("accuracy", share, after.corrupted[name])))
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
        _plots.draw(self, Path(path))

    def verdict(self) -> list[str]:
        """What was asked, what was reached, what it cost, and whether it is faster on this device, in sentences."""
        before, after = self.before, self.after
        asked = "" if self.requested is None else f" {100 * self.requested:.2f} % was asked for."
        said = [f"{100 * self.sparsity:.2f} % of the weights of the pruned leaves are gone.{asked}"]
        for name, value in list(before.metrics.items())[:3]:
            said.append("{}: {} before, {} after ({}).".format(name, *_change(name, value, after.metrics[name])))
        smaller = _factor(before.bytes, after.bytes)
        said.append(f"{before.bytes:,} bytes became {after.bytes:,}, with the masks at one bit a weight: {smaller}.")
        if before.milliseconds is not None and after.milliseconds is not None:
            ratio = before.milliseconds / after.milliseconds
            times = f"a batch took {before.milliseconds:.2f} ms and takes {after.milliseconds:.2f}"
            said.append(f"On this device, {times}: {f'{ratio:.2f}x faster' if ratio > 1.05 else 'not faster'}.")
            if ratio <= 1.05 and self.masked and self.forecast is None:
                said.append("A masked model computes with its zeros; shrinking it, or `deploy`, makes use of them.")
        elif self.masked and self.forecast is None:
            said.append("It is not faster as it is, since a masked model computes with its zeros; it was not timed.")
        if self.forecast is not None:
            said.append(f"Faster on this device? {self.forecast.verdict}")
        return said

    def to_html(self, path: str | Path, title: str = "Before and after pruning") -> None:
        """Writes one self-contained page, for a screen of any size and for print.

        Beside it, a record of the same name that ends in `.json` lets `overview` compare this run with others.

        Args:
          path: Where to.
          title: Of the page, and of the run.
        """
        _page.write(Path(path), _page.document(title, self.verdict(), self._sections()))
        record = {
            "title": title,
            "sparsity": self.sparsity,
            "before": dict(self.before.metrics),
            "after": dict(self.after.metrics),
            "parameters": self.after.parameters,
            "bytes": self.after.bytes,
            "macs": self.after.macs,
        }
        _documents.write(Path(path).with_suffix(".json"), KIND, record)

    def _sections(self) -> list[tuple[str, str]]:
        measures = [[_page.Cell(text) for text in row] for row in self.rows()]
        sections = [("Before and after", _page.table(("measure", "before", "after", "change"), measures))]
        if self.convergence is not None:
            window = self.convergence.window
            losses = {"before": self.convergence.before, "after": self.convergence.after}
            lines = {name: _thinned(averaged(values, window), window) for name, values in losses.items()}
            sections.append(("Training", _page.chart(lines, "step", "loss", marks=False)))
        sections.append(("What each leaf keeps", _page.table(*self._leaves())))
        if self.forecast is not None:
            rows = [[_page.Cell(text) for text in row] for row in self.forecast.rows()]
            heading = ("leaf", "shape", "kept", "best", "dense ms", "ms", "why")
            sections.append(("Will it be faster?", _page.paragraph(self.forecast.verdict) + _page.table(heading, rows)))
        if self.layers:
            note = _page.paragraph("Each kernel as a matrix, its last axis across; dark parts are gone.")
            pictures = [_page.picture(layer.kept, layer.path) for layer in self.layers if layer.kept is not None]
            if pictures:
                sections.append(("Masks of the largest leaves", note + _page.grid(pictures)))
            charts = [_page.chart(_weights(layer), "weight", "share", layer.path, marks=False) for layer in self.layers]
            note = _page.paragraph("Zeros are left out.")
            sections.append(("Weights of the largest leaves", note + _page.grid(charts)))
        return sections

    def _leaves(self) -> tuple[Sequence[str], list[list[_page.Cell]]]:
        heading = ["leaf", "shape", "weights", "kept", "density", "MACs before", "MACs after"]
        rows = list[list[_page.Cell]]()
        for leaf in self.leaves:
            macs = [model.macs_by_leaf.get(leaf.path, 0.0) for model in (self.before, self.after)]
            density = 1 - leaf.sparsity
            rows.append(
                [
                    _page.Cell(leaf.path),
                    _page.Cell("×".join(map(str, leaf.shape)), leaf.size),
                    _page.Cell(f"{leaf.size:,}", leaf.size),
                    _page.Cell(f"{leaf.kept:,}", leaf.kept),
                    _page.Cell(f"{100 * density:.2f} %", density, density),
                    *(_page.Cell(f"{count:,.0f}", count) for count in macs),
                ]
            )
        return heading, rows


def report(
    before: Model,
    after: Model,
    inputs: Any,
    labels: Any = None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    masks: Masks | None = None,
    requested: float | None = None,
    timed: bool = False,
    corruptions: Mapping[str, Corruption] | None = None,
    convergence: Convergence | None = None,
    forecast: Timed | None = None,
) -> Report:
    """Evaluates a model before and after pruning on the same samples.

    Args:
      before: `(fun, params)` of the dense model.
      after: `(fun, params)` of the pruned one: the same function with pruned parameters, or a smaller one.
      inputs: Samples `(n, ...)`, best such as the model was not trained on.
      labels: Integer classes `(n,)` of a classifier, whose function returns logits `(batch, classes)`.
      metrics: For any other task: functions `metric(fun, params)` that return a number, by their names, in place of
        `labels`. They have the data in them.
      masks: Of the pruned parameters, where they are masked; without masks, leaves of another shape count as pruned.
      requested: The sparsity that was asked for, which the report shows next to the one achieved.
      timed: Measure the time for one batch. A masked model is not faster than a dense one; a shrunk one is.
      corruptions: Functions from inputs to worse inputs, by name, under which the accuracy is measured again, such as
        `corruptions.standard(jax.random.key(0))`.
      convergence: The losses of both trainings, to compare how many steps they take.
      forecast: From `jaxprune.forecast`: whether masks like these make the model faster.

    Returns:
      The evidence.

    Raises:
      ValueError: Inputs and labels differ in number, there are both labels and metrics or neither, a metric is NaN or
        infinite, or a corruption changes the shape.
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
    if (labels is None) == (metrics is None) or (corruptions and metrics is not None):
        raise ValueError(
            "`report` takes `labels` for a classifier, alone with `corruptions`, or `metrics` for any other task; got "
            f"{'neither' if metrics is None else 'both'}. Give, for example, `metrics={{'loss': loss}}`."
        )
    if labels is not None and len(inputs) != len(labels):
        raise ValueError(f"`report` needs one label for each input; got {len(inputs)} inputs, {len(labels)} labels.")
    samples = np.asarray(inputs)
    corrupted = {name: corrupted_inputs(name, corrupt, samples) for name, corrupt in (corruptions or {}).items()}
    milliseconds = times(before, after, samples[:BATCH]) if timed else (None, None)
    leaves = _metrics.summary(after[1], masks) if masks is not None else _smaller(before[1], after[1])
    measured = [
        metrics_of(model, samples, which, None if labels is None else np.asarray(labels), metrics, corrupted)
        for model, which in ((before, "before"), (after, "after"))
    ]
    first = evaluated(before, samples, *measured[0], None, milliseconds[0])
    second = evaluated(after, samples, *measured[1], masks, milliseconds[1])
    layers = drawn(before[1], after[1], masks, leaves)
    return Report(first, second, leaves, requested, convergence, masks is not None, layers, forecast)


def _smaller(before: Params, after: Params) -> list[_metrics.LeafSummary]:
    """The leaves whose shape differs, as they do in a shrunk model."""
    sizes = dict(zip(tree.paths(after), jax.tree.leaves(after), strict=True))
    rows = list[_metrics.LeafSummary]()
    for path, leaf in tree.flatten(before)[0]:
        small = sizes.get(path)
        if tree.is_array(leaf) and small is not None and small.shape != leaf.shape:
            rows.append(_metrics.LeafSummary(path, leaf.shape, leaf.size, small.size, 1 - small.size / leaf.size))
    return rows


def _change(name: str, before: float, after: float) -> tuple[str, str, str]:
    """Before, after and the change, as texts: shares in per cent."""
    if name in _SHARES:
        return f"{100 * before:.2f} %", f"{100 * after:.2f} %", f"{100 * (after - before):+.2f} points"
    relative = f", {100 * (after / before - 1):+.1f} %" if before else ""
    return f"{before:.4g}", f"{after:.4g}", f"{after - before:+.4g}{relative}"


def _weights(layer: Layer) -> dict[str, list[tuple[float, float]]]:
    middles = (layer.edges[1:] + layer.edges[:-1]) / 2
    return {
        name: [(float(x), float(y)) for x, y in zip(middles, shares, strict=True)]
        for name, shares in (("before", layer.before), ("after", layer.after))
    }


def _thinned(values: np.ndarray, first: int) -> list[tuple[float, float]]:
    """Some hundreds of points."""
    every = max(len(values) // 300, 1)
    return [(first + i, float(values[i])) for i in range(0, len(values), every)]


def _factor(before: float, after: float) -> str:
    if not after:
        return "nothing left"
    return f"{before / after:.2f}x less" if after <= before else f"{after / before:.2f}x more"


def _steps(number: int | None) -> str:
    return "never" if number is None else f"{number:,}"
