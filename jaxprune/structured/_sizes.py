"""The sizes that a plan leaves, as the numbers that go into the configuration of a smaller model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxprune import _text
from jaxprune.structured import _table


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything was, and is: pairs `(full, small)`. Prints as a table.

    In the table, names that differ in numbers alone and have the same sizes share a line. Where layers of one kind take
    several lines, no single number of a configuration describes them; `slim(..., alike=True)` avoids that.

    Attributes:
      units: By the name of each group of the coupling: how many units, such as heads; in a stack, of each layer.
      shapes: By the path of each leaf: its shape.
    """

    units: Mapping[str, tuple[int, int]]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __str__(self) -> str:
        shapes = {path: pair for path, pair in self.shapes.items() if pair[0] != pair[1]}
        lines = _lines("units of", self.units) + ([""] if self.units and shapes else []) + _lines("leaf", shapes)
        whole = len(self.shapes) - len(shapes)
        rest = f"{whole} other {'leaf keeps its shape' if whole == 1 else 'leaves keep their shapes'}"
        return "\n".join([*lines, *([rest] if whole else [])])


def _lines(heading: str, pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    names: dict[tuple[str, str, str], list[str]] = {}
    for name, (full, small) in pairs.items():
        names.setdefault((_table.pattern(name), _shown(full), _shown(small)), []).append(name)
    rows = [(_table.shared(same), full, small) for (_, full, small), same in names.items()]
    return _text.aligned([(heading, "full", "small"), *rows], "lrr") if rows else []


def _shown(size: int | tuple[int, ...]) -> str:
    return str(size) if isinstance(size, int) else "×".join(map(str, size))
