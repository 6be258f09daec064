"""One self-contained page of HTML: tables that sort, charts, pictures; no network, and no script but for sorting."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 340, 64, 44, 16
_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_DASHES = ("", "7 4", "2 3", "9 3 2 3")

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5b6470; --line: #d4d8de; --paper: #fff; --tint: #eef3fd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa4b2; --line: #3a4350; --paper: #14181d; --tint: #1d2734; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.verdict { background: var(--tint); border-radius: .5rem; padding: .75rem 1rem; }
.verdict p { margin: .25rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td:first-child { overflow-wrap: anywhere; white-space: normal; min-width: 9rem; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #2563eb; }
th[aria-sort] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.bar { display: inline-block; height: .7em; background: #2563eb; border-radius: 2px; margin-right: .4rem; }
figure { margin: .5rem 0; }
figcaption, .note { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
img { width: 100%; height: 15rem; image-rendering: pixelated; border: 1px solid var(--line); }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1rem; color: var(--soft); font-size: .9rem; }
.key svg { width: 2rem; height: .8rem; vertical-align: middle; margin-right: .3rem; }
@media print {
  body { max-width: none; font-size: 11pt; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; }
}
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, table = head.closest("table"), column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => isNaN(value(a)) || isNaN(value(b)) ? value(a).localeCompare(value(b)) : value(a) - value(b);
  const rows = [...table.tBodies[0].rows].sort((a, b) => down ? order(b, a) : order(a, b));
  table.tBodies[0].append(...rows);
};
"""


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      text: What it shows.
      value: What it is sorted by; by its text where there is none.
      share: Of a bar in front of the text, from 0 to 1.
      link: Where it leads.
    """

    text: str
    value: float | None = None
    share: float | None = None
    link: str | None = None


def document(title: str, verdict: Sequence[str], sections: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
      title: Of the page.
      verdict: Sentences that come first.
      sections: Headings, and what is below them, in HTML.
    """
    body = "".join(f"<section><h2>{_text(heading)}</h2>\n{content}</section>\n" for heading, content in sections)
    first = "".join(f"<p>{_text(sentence)}</p>" for sentence in verdict)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f'<body><h1>{_text(title)}</h1>\n<div class="verdict">{first}</div>\n{body}'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def table(heading: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that is sorted by a click on its heading."""
    head = "".join(f'<th scope="col"><button type="button">{_text(name)}</button></th>' for name in heading)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def paragraph(text: str) -> str:
    """A note below or above something."""
    return f'<p class="note">{_text(text)}</p>\n'


def grid(figures: Sequence[str]) -> str:
    """Figures side by side, as many as there is room for."""
    return f'<div class="grid">{"".join(figures)}</div>\n'


def picture(kept: np.ndarray, caption: str) -> str:
    """A picture of shares from 0 to 1, dark where nothing is kept."""
    levels = np.round(255 * kept).astype(np.uint8)
    data = base64.b64encode(_png(levels)).decode()
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>\n"
    )


def chart(
    lines: Mapping[str, Points], across: str, up: str, caption: str = "", *, marks: bool = True, joined: bool = True
) -> str:
    """Lines over a plane.

    Args:
      lines: Points by the name of their line.
      across: What the horizontal axis is.
      up: What the vertical axis is.
      caption: Below it.
      marks: Whether to mark the points.
      joined: Whether to join them.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        return paragraph("Nothing to draw.")
    (left, right), (low, high) = (_range([point[axis] for point in points]) for axis in (0, 1))
    width, height = _WIDTH - _LEFT - 16, _HEIGHT - _BOTTOM - _TOP

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return _LEFT + width * (x - left) / (right - left), _TOP + height * (high - y) / (high - low)

    parts = list[str]()
    for value in _ticks(low, high):
        _, y = place((left, value))
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in _ticks(left, right):
        x, _ = place((value, low))
        parts.append(f'<text x="{x:.1f}" y="{_TOP + height + 18}" text-anchor="middle">{value:.4g}</text>')
    for number, (name, line) in enumerate(lines.items()):
        placed = [place(point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        if joined:
            parts.append(f'<polyline points="{path}" fill="none" {_look(number)}/>')
        if marks:
            colour = _COLOURS[number % len(_COLOURS)]
            for (x, y), (a, b) in zip(placed, line, strict=True):
                title = f"<title>{_text(name)}: {a:.4g}, {b:.4g}</title>"
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{title}</circle>')
    middle = _LEFT + width / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{_text(across)}</text>')
    parts.append(f'<text x="{_LEFT}" y="11">{_text(up)}</text>')
    label = _text(caption or f"{up} over {across}")
    drawn = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    key = "".join(f"<span>{_sample(number)}{_text(name)}</span>" for number, name in enumerate(lines))
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f'<figure>{drawn}<div class="key">{key}</div>{below}</figure>\n'


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    bar = "" if cell.share is None else f'<span class="bar" style="width:{4 * cell.share:.2f}rem"></span>'
    text = _text(cell.text) if cell.link is None else f'<a href="{_text(cell.link)}">{_text(cell.text)}</a>'
    return f"<td{value}>{bar}{text}</td>"


def _text(text: str) -> str:
    return html.escape(text)


def _look(number: int) -> str:
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2" stroke-dasharray="{dash}"'


def _sample(number: int) -> str:
    return f'<svg viewBox="0 0 32 12" aria-hidden="true"><line x1="0" x2="32" y1="6" y2="6" {_look(number)}/></svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest, with a margin."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers in a range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _png(levels: np.ndarray) -> bytes:
    """A picture in grey, uint8 `(rows, columns)`; the format: https://www.w3.org/TR/png-3."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns = levels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in levels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def write(path: Path, text: str) -> None:
    """Writes a page, whole or not at all, over one that was there."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
