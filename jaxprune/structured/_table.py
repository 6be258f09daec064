"""A coupling as a table that fits a terminal, with paths that differ in a number as one entry."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from jaxprune import _text
from jaxprune.structured._groups import Group

_WIDTH, _NAME = 80, 30


def lines_of(
    groups: Sequence[Group], slopes: Sequence[float], frozen: Mapping[tuple[str, int], str], ranks: Mapping[str, int]
) -> list[str]:
    """The lines of the table, none longer than a terminal is wide.

    Args:
      groups: Of the coupling.
      slopes: Multiply-accumulates per unit of each.
      frozen: Why axes are kept whole.
      ranks: How many axes each leaf has.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for group, slope in zip(groups, slopes, strict=True):
        width = f"{group.layers} x {group.width}" if group.stack is not None else str(group.width)
        slices = ", ".join(_merged([(m.path, f"[{m.axis}]") for m in group.members]))
        name = "residual stream" if _is_residual(group, ranks) else pattern(group.name)
        rows.setdefault((name, width, f"{slope:,.0f}", pattern(slices)), []).append(group.name + "\n" + slices)
    cells = [("group", "units", "MACs per unit", "slices")]
    for (name, width, slope, _), found in rows.items():
        names, slices = zip(*(entry.split("\n") for entry in found), strict=True)
        shown = _times(name, len(found)) if name == "residual stream" else shared(names)
        cells.append((shown, width, slope, _common(slices)))
    lines = _wrapped(cells)
    reasons: dict[str, list[tuple[str, str]]] = {}
    for (path, axis), reason in frozen.items():
        reasons.setdefault(reason, []).append((path, f"[{axis}]"))
    lines += ["", "kept whole:"] if frozen else []
    for reason, places in reasons.items():
        for place in _merged(places):
            lines += textwrap.wrap(
                f"{place}: {reason}", _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
            )
    return lines


def _is_residual(group: Group, ranks: Mapping[str, int]) -> bool:
    """Whether a layer puts out these units after another has taken them in: they run past that layer."""
    is_read = False
    for member in group.members:
        if is_read and not member.contracted and ranks[member.path] > 1:
            return True
        is_read |= member.contracted
    return False


def pattern(text: str) -> str:
    """A text with a star for each number; the numbers of axes stay, which stand in brackets."""
    return re.sub(r"(?<![\[\d])\d+", "*", text)


def shared(names: Sequence[str]) -> str:
    """Names of one pattern as one, with how many they are."""
    return _times(_common(names), len(names))


def _merged(places: Sequence[tuple[str, str]]) -> list[str]:
    """Each path with what follows it; those that differ in numbers alone are one, with how many they are."""
    alike: dict[str, list[str]] = {}
    for path, after in places:
        alike.setdefault(re.sub(r"\d+", "*", path) + after, []).append(path + after)
    return [shared(same) for same in alike.values()]


def _times(name: str, count: int) -> str:
    return f"{name} x{count}" if count > 1 else name


def _common(texts: Sequence[str]) -> str:
    """What texts of one pattern have in common, with a star for each number in which they differ."""
    columns = zip(*(re.split(r"(\d+)", text) for text in texts), strict=True)
    return "".join(column[0] if len(set(column)) == 1 else "*" for column in columns)


def _wrapped(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """The rows aligned, with names and slices over as many lines as they need."""
    name = min(_NAME, max(len(row[0]) for row in rows))
    rest = _WIDTH - name - sum(max(len(row[i]) for row in rows) for i in (1, 2)) - 6
    cells = list[tuple[str, str, str, str]]()
    for first, units, slope, slices in rows:
        names, parts = _broken(first, name), _broken(slices, rest)
        for i in range(max(len(names), len(parts))):
            left, right = (column[i] if i < len(column) else "" for column in (names, parts))
            cells.append((left, units if i == 0 else "", slope if i == 0 else "", right))
    return _text.aligned(cells, "lrrl")


def _broken(text: str, width: int) -> list[str]:
    """Lines of at most a width; a path that is longer begins on a line of its own."""
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line[i : i + width] for line in lines for i in range(0, len(line), width)]
