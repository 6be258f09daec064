"""What is in a checkpoint, and what two of them have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxprune import _progress, _text
from jaxprune._arrays import tree
from jaxprune._evaluation import _page
from jaxprune._selection import introselect
from jaxprune.io import _layouts, _packed

_GROUPS = (4, 8, 16)


class Inspected(NamedTuple):
    """What one array is like.

    Attributes:
      path: Its path.
      shape: Its shape.
      dtype: Its dtype.
      zeros: The share of its numbers that are 0.
      nm: `(n, m)` where at most n of every m along its inputs are not 0, for the smallest m of 4, 8 and 16, and fewer
        than half of m; or half. `None` where there is no such pattern.
      norm: The root of the sum of squares, `None` of what is not floating.
      energy: The share of the sum of squares in the largest half: how little the other half would be missed. Of normal
        weights it is 0.93, of even ones 0.5; `None` as above.
      bad: How many numbers are NaN or infinite.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    zeros: float
    nm: tuple[int, int] | None
    norm: float | None
    energy: float | None
    bad: int

    def cells(self) -> tuple[str, ...]:
        """As texts, in the order of `HEADING`."""
        return (
            self.path,
            "×".join(map(str, self.shape)),
            self.dtype,
            f"{100 * self.zeros:.2f} %",
            "" if self.nm is None else "{}:{}".format(*self.nm),
            "" if self.norm is None else f"{self.norm:.4g}",
            "" if self.energy is None else f"{100 * self.energy:.1f} %",
            f"{self.bad:,}" if self.bad else "",
        )


HEADING = ("leaf", "shape", "dtype", "zeros", "N:M", "norm", "energy", "not finite")


class Inspection(NamedTuple):
    """What is in a checkpoint. Prints as a table.

    Attributes:
      leaves: Its arrays, in the order of the file.
      bytes: Of all of them.
    """

    leaves: Sequence[Inspected]
    bytes: int

    def __str__(self) -> str:
        rows = [leaf.cells() for leaf in self.leaves]
        numbers = sum(math.prod(leaf.shape) for leaf in self.leaves)
        lines = _text.aligned([HEADING, *rows], "lllrrrrr")
        return "\n".join([*lines, f"{len(rows)} arrays, {numbers:,} numbers, {self.bytes:,} bytes"])

    def to_html(self, path: str | Path, title: str = "A checkpoint") -> None:
        """Writes the table as one self-contained page that sorts by any column.

        Args:
          path: Where to.
          title: Of the page.
        """
        numbers = [
            (None, math.prod(leaf.shape), None, leaf.zeros, None, leaf.norm, leaf.energy, leaf.bad)
            for leaf in self.leaves
        ]
        rows = [
            [_page.Cell(*pair) for pair in zip(leaf.cells(), values, strict=True)]
            for leaf, values in zip(self.leaves, numbers, strict=True)
        ]
        size = sum(math.prod(leaf.shape) for leaf in self.leaves)
        verdict = [f"{len(rows)} arrays, {size:,} numbers, {self.bytes:,} bytes."]
        _page.write(Path(path), _page.document(title, verdict, [("Arrays", _page.table(HEADING, rows))]))


class Compared(NamedTuple):
    """What became of one array.

    Attributes:
      path: Its path.
      before: The share of zeros in the first, `None` where it is only in the second.
      after: In the second, likewise.
      error: The norm of the difference over the norm of the first; `None` where shapes differ or one is missing.
      overlap: Of the numbers that are not 0 in either, the share that are not 0 in both; `None` likewise.
      note: What else differs, in words.
      same: Whether shape, dtype and all numbers are the same.
    """

    path: str
    before: float | None
    after: float | None
    error: float | None
    overlap: float | None
    note: str
    same: bool = False

    def cells(self) -> tuple[str, ...]:
        """As texts."""
        shares = ["" if share is None else f"{100 * share:.2f} %" for share in (self.before, self.after)]
        error = "" if self.error is None else f"{self.error:.3g}"
        overlap = "" if self.overlap is None else f"{100 * self.overlap:.2f} %"
        return (self.path, *shares, error, overlap, self.note)


class Comparison(NamedTuple):
    """What differs between two checkpoints. Prints as a table.

    Attributes:
      leaves: One an array of either.
    """

    leaves: Sequence[Compared]

    @property
    def same(self) -> bool:
        """Whether both hold the same numbers."""
        return all(leaf.same for leaf in self.leaves)

    def __str__(self) -> str:
        changed = [leaf.cells() for leaf in self.leaves if not leaf.same]
        heading = ("leaf", "zeros before", "after", "relative error", "overlap of masks", "")
        lines = _text.aligned([heading, *changed], "lrrrrl") if changed else []
        return "\n".join([*lines, f"{len(self.leaves) - len(changed)} of {len(self.leaves)} arrays are the same."])


def inspect(
    path: str | Path, *, layout: _layouts.Layout = "auto", progress: _progress.Progress | bool = False
) -> Inspection:
    """Looks at every array of a checkpoint, one at a time.

    Args:
      path: See `load`, also for the errors.
      layout: Which axis of a kernel is its inputs: see `prune`.
      progress: Whether to show a bar, or a function `(done, total, what)`, in bytes.
    """
    source = _packed.opened(Path(path))
    total, done = sum(leaf.nbytes for leaf in source.leaves.values()), 0
    rows = list[Inspected]()
    with _progress.reporting(progress) as report:
        for name, leaf in source.leaves.items():
            report(done, total, name)
            rows.append(_inspected(name.replace(source.separator, "/"), source.read(name), layout))
            done += leaf.nbytes
        report(total, total, "done")
    return Inspection(rows, total)


def compare(first: str | Path, second: str | Path, *, progress: _progress.Progress | bool = False) -> Comparison:
    """Compares two checkpoints, array by array.

    Args:
      first: See `load`, also for the errors.
      second: Likewise, of any kind.
      progress: Whether to show a bar, or a function `(done, total, what)`, in bytes.
    """
    opened = [_packed.opened(Path(path)) for path in (first, second)]
    sources = [(source, {name.replace(source.separator, "/"): name for name in source.leaves}) for source in opened]
    total, done = sum(leaf.nbytes for leaf in opened[0].leaves.values()), 0
    rows = list[Compared]()
    with _progress.reporting(progress) as report:
        for path in dict.fromkeys([*sources[0][1], *sources[1][1]]):
            report(done, total, path)
            one, two = (source.read(names[path]) if path in names else None for source, names in sources)
            rows.append(_compared(path, one, two))
            done += 0 if one is None else one.nbytes
        report(total, total, "done")
    return Comparison(rows)


def _inspected(path: str, array: np.ndarray, layout: _layouts.Layout) -> Inspected:
    size = max(array.size, 1)
    zeros = int(np.count_nonzero(array.reshape(-1) == 0)) / size
    plain = (path, array.shape, str(array.dtype), zeros)
    if not tree.is_floating(array):
        return Inspected(*plain, None, None, None, 0)
    flat, dtype = array.reshape(-1), introselect.common([array.dtype])
    end = introselect.cut(introselect.of_array(flat, dtype, absolute=True), flat.size, (flat.size + 1) // 2)
    norm = largest = 0.0
    bad = 0
    for part in introselect.split(flat):
        wide = part.astype(np.float64)
        is_finite = np.isfinite(wide)
        squares = np.square(wide, where=is_finite, out=np.zeros_like(wide))
        stay, end = end.kept(introselect.keys(part, dtype, True))
        norm, largest = norm + float(squares.sum()), largest + float(squares[stay].sum())
        bad += wide.size - int(np.count_nonzero(is_finite))
    return Inspected(*plain, _nm(path, array, layout), math.sqrt(norm), largest / norm if norm else None, bad)


def _nm(path: str, array: np.ndarray, layout: _layouts.Layout) -> tuple[int, int] | None:
    axes = _layouts.axes_of(path, array.shape, layout) if array.ndim > 1 else None
    if axes is None:
        return None
    for m in _GROUPS:
        if array.size and array.shape[axes.inputs] % m == 0:
            n = int(_packed.grouped(array != 0, axes.inputs, m).sum(axis=1, dtype=np.uint8).max())
            if 0 < n <= m // 2:
                return n, m
    return None


def _compared(path: str, before: np.ndarray | None, after: np.ndarray | None) -> Compared:
    zeros, later = None if before is None else _zeros(before), None if after is None else _zeros(after)
    if before is None or after is None:
        return Compared(path, zeros, later, None, None, "only in the second" if before is None else "only in the first")
    if before.shape != after.shape:
        return Compared(path, zeros, later, None, None, f"{before.shape} became {after.shape}")
    note = "" if before.dtype == after.dtype else f"{before.dtype} became {after.dtype}"
    wide = np.complex128 if "c" in (before.dtype.kind, after.dtype.kind) else np.float64
    change, norm, same = 0.0, 0.0, not note
    both = either = 0
    for one, two in zip(*(introselect.split(array.reshape(-1)) for array in (before, after)), strict=True):
        first, second = one.astype(wide), two.astype(wide)
        # As they are where they can be compared so, since neighbouring integers may be one float64.
        equal = one == two if before.dtype == after.dtype else first == second
        equal |= np.isnan(first) & np.isnan(second)
        same = same and bool(equal.all())
        change += float(np.square(np.abs(np.where(equal, 0, first - second))).sum())
        norm += float(np.square(np.abs(first)).sum())
        both += int(np.count_nonzero((first != 0) & (second != 0)))
        either += int(np.count_nonzero((first != 0) | (second != 0)))
    error = 0.0 if change == 0 else math.sqrt(change / norm) if norm else math.inf
    return Compared(path, zeros, later, error, both / either if either else 1.0, note, same)


def _zeros(array: np.ndarray) -> float:
    return int(np.count_nonzero(array.reshape(-1) == 0)) / max(array.size, 1)
