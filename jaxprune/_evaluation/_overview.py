"""The reports of many runs on one page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprune import _documents
from jaxprune._evaluation import _page

KIND = "jaxprune report"


def overview(folder: str | Path) -> Path:
    """Compares the runs whose reports are in a folder or below it: `Report.to_html` leaves a record of each.

    Args:
      folder: Which gets the page, `index.html`.

    Returns:
      Where the page is: a table of all runs, and each metric over the sparsity.

    Raises:
      ValueError: There are no reports, or one is damaged; the message names it.
    """
    found = {path: record for path in sorted(Path(folder).rglob("*.json")) if (record := _record(path)) is not None}
    if not found:
        raise ValueError(f"'{folder}' has no reports. Write some into it by `Report.to_html`.")
    names = list(dict.fromkeys(name for record in found.values() for name in record["after"]))
    rows = list[list[_page.Cell]]()
    for path, record in found.items():
        link = Path(os.path.relpath(path.with_suffix(".html"), folder)).as_posix()
        cells = [_page.Cell(record["title"], link=link), _percent(record["sparsity"])]
        for name in names:
            pair = [record[when].get(name) for when in ("before", "after")]
            cells += [_page.Cell("" if value is None else f"{value:.4g}", value) for value in pair]
        cells += [_page.Cell(f"{record[key]:,.0f}", record[key]) for key in ("parameters", "bytes", "macs")]
        rows.append(cells)
    heading = ["run", "sparsity", *(f"{name}, {when}" for name in names for when in ("before", "after"))]
    sections = [("All runs", _page.table([*heading, "parameters", "bytes", "MACs"], rows))]
    for name in names:
        lines = {"after pruning": _points(found, name, "after"), "before": _points(found, name, "before")}
        sections.append((name, _page.chart(lines, "sparsity", name, joined=False)))
    low, high = (choose(map(_sparsity, found.values())) for choose in (min, max))
    verdict = [f"{len(found)} runs, from {low:.2%} to {high:.2%} sparsity."]
    target = Path(folder) / "index.html"
    _page.write(target, _page.document("Runs compared", verdict, sections))
    return target


def _record(path: Path) -> dict[str, Any] | None:
    """What was written of a run; `None` for a file of another kind."""
    try:
        record = _documents.read(path, KIND, "`Report.to_html`")
    except ValueError:
        return None
    _documents.check(path, record, "`Report.to_html`")
    return record


def _sparsity(record: Mapping[str, Any]) -> float:
    return record["sparsity"]


def _percent(share: float) -> _page.Cell:
    return _page.Cell(f"{100 * share:.2f} %", share, share)


def _points(found: Mapping[Path, Mapping[str, Any]], name: str, when: str) -> list[tuple[float, float]]:
    rows = [(record["sparsity"], record[when][name]) for record in found.values() if name in record[when]]
    return sorted(rows)
