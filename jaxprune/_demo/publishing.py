"""What the demo prints and writes: a table, pictures and a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxprune import _text
from jaxprune._demo import pictures
from jaxprune._demo.data import Images
from jaxprune._evaluation._measured import Evaluation
from jaxprune._evaluation._overview import overview
from jaxprune._evaluation._report import Report

_HEADINGS = ("strategy", "sparsity", "accuracy", "change", "recall", "F1", "weights", "KiB")


class Result(NamedTuple):
    """One pruned model.

    Attributes:
      strategy: Its name.
      asked: The sparsity asked for.
      report: Before and after, on the held-out images.
      picture: Of the hidden layer: its mask, or for a frequency mask the pruned kernel itself, which has no zeros.
      note: Another finding, in words.
    """

    strategy: str
    asked: float
    report: Report
    picture: np.ndarray
    note: str = ""


def publish(console: Console, data: Images, results: Sequence[Result], groups: Mapping[str, str], output: Path) -> None:
    """Prints the table and writes the files.

    Args:
      console: To print on.
      data: Names the title.
      results: In the order of the table.
      groups: Strategies that share a line of the picture, and its name.
      output: The folder, made where it is missing.
    """
    console.print(table(data, results))
    for note, names in _notes(results).items():
        console.print(f"{', '.join(names)}: {note}.")
    output.mkdir(parents=True, exist_ok=True)
    curves: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        point = result.report.sparsity, result.report.after.accuracy
        curves.setdefault(groups.get(result.strategy, result.strategy), []).append(point)
    pictures.draw_accuracy(curves, results[0].report.before.accuracy, output / "accuracy.png")
    last = {result.strategy: result for result in results}
    layers = {f"{name}, {100 * result.asked:g} %": result.picture for name, result in last.items()}
    pictures.draw_masks(
        layers, "what is kept of hidden/kernel (a frequency mask leaves no zeros)", output / "masks.png"
    )
    (output / "report.md").write_text(_report(data, results))
    (output / "runs").mkdir(exist_ok=True)
    for result in results:
        title = f"{result.strategy} at {100 * result.asked:g} %"
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        result.report.to_html(output / "runs" / f"{name}.html", title)
    overview(output)
    names = ", ".join(str(output / name) for name in ("index.html", "report.md", "accuracy.png", "masks.png"))
    console.print(f"\nWrote {names}.")


def table(data: Images, results: Sequence[Result]) -> Table:
    """The results as a table that fits 80 columns."""
    made = Table(title=_title(data), box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column(_HEADINGS[0], no_wrap=True)
    for heading in _HEADINGS[1:]:
        made.add_column(heading, justify="right", no_wrap=True)
    dense, *pruned = _rows(results)
    made.add_row(*dense, end_section=True)
    for row in pruned:
        made.add_row(*row)
    return made


def _title(data: Images) -> str:
    return f"{data.name}, {len(data.test_labels)} held-out images, in per cent"


def _rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    dense = results[0].report.before
    rows = [("dense", "", *_measures(dense, dense))]
    for result in results:
        found = result.report
        rows.append((result.strategy, f"{100 * found.sparsity:.2f}", *_measures(dense, found.after)))
    return rows


def _measures(dense: Evaluation, found: Evaluation) -> tuple[str, ...]:
    change = "" if found is dense else f"{100 * (found.accuracy - dense.accuracy):+.2f}"
    accuracy, recall, f1 = (f"{100 * share:.2f}" for share in (found.accuracy, found.recall, found.f1))
    return accuracy, change, recall, f1, f"{found.parameters:,}", f"{found.bytes / 1024:.1f}"


def _notes(results: Sequence[Result]) -> dict[str, dict[str, None]]:
    """The strategies that each note is of."""
    noted: dict[str, dict[str, None]] = {}
    for result in results:
        if result.note:
            noted.setdefault(result.note, {})[result.strategy] = None
    return noted


def _report(data: Images, results: Sequence[Result]) -> str:
    """A summary first; what each strategy did to each leaf is folded away below it."""
    lines = [f"# Pruning a classifier of {data.name}", "", f"{_title(data)}:", ""]
    lines += _text.markdown([_HEADINGS, *_rows(results)])
    lines += ["", *(f"- {', '.join(names)}: {note}." for note, names in _notes(results).items())]
    lines += ["", "![Accuracy](accuracy.png)", "", "![Masks](masks.png)", "", "## In detail"]
    for result in results:
        title = f"{result.strategy} at {100 * result.asked:g} %"
        lines += ["", f"<details><summary>{title}</summary>", "", result.report.to_markdown(), "", "</details>"]
    return "\n".join(lines) + "\n"
