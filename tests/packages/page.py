"""The page of models that the library was tested with."""

import collections
import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any

_COMMAND = 'pip install -e ".[test,packages]" && pytest -m packages tests/packages --page docs/works-with.md'
_INTRODUCTION = """# Works with

<!-- Written by `{command}`; do not edit. -->

Models of other packages, in small configurations with random weights, as the tests build them. For each:

- half of every group of units goes by `slim`, and the model that `shrink` returns equals the masked one to 1e-5;
- `layout` gives every kernel's inputs, `calibrate` measures each, and `sparsegpt` prunes each 2:4 along them;
- `macs` counts every product.

"Removed" is the share of parameters that went. "Stays" is what `couple` keeps whole beside what it keeps in every
model: the axes of arguments and outputs, the taps of convolutions, the rows of a table that are looked up, axes of one,
and the axis that a scan steps along. The reasons are those that `print(coupling)` gives.

Made with {versions}, by

```console
{command}
```

| model | package | groups | removed | kernels | stays |
|---|---|---|---|---|---|
"""
_USUAL = (
    r"axis \d+ of( argument.*| the output.*| output.*)|.*an axis of one .*|taps of a convolution|'gather' indexes it|"
    r"a depthwise convolution has one input per output|'scan' steps along it|the function never reads it"
)


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The page, one line for each model."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "equinox"))
    lines = [_line(row) for row in sorted(rows, key=lambda row: (row["package"].lower(), row["title"]))]
    return _INTRODUCTION.format(command=_COMMAND, versions=versions) + "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    cells = (row["title"], row["package"], row["groups"], f"{row['removed']:.0%}", row["kernels"], _kept(row["kept"]))
    return f"| {' | '.join(map(str, cells))} |"


def _kept(reasons: dict[str, int]) -> str:
    """How many axes stay for each reason, apart from the usual ones."""
    counts = collections.Counter[str]()
    for stated, count in reasons.items():
        reason = re.sub(r", joined by .*| at \S+\.py.*", "", stated)  # a line of a package says nothing to the reader
        if not re.fullmatch(_USUAL, reason):
            counts[reason.replace("'", "`")] += count
    return "; ".join(f"{reason} ({count})" for reason, count in counts.items()) or "–"
