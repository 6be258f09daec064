"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    """One line a row, with the cells of each column brought to one width and two spaces between columns.

    Args:
      rows: Of as many cells as there are columns.
      alignment: A letter for each column: `l` puts its cells to the left, `r` to the right.

    Examples:
      >>> for line in aligned([("leaf", "weights"), ("kernel", "20")], "lr"):
      ...     print(line)
      leaf    weights
      kernel       20
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = list[str]()
    for row in rows:
        cells = zip(row, widths, alignment, strict=True)
        lines.append("  ".join(c.ljust(width) if side == "l" else c.rjust(width) for c, width, side in cells).rstrip())
    return lines


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, whose first row is the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
