"""Pruning from file to file, with memory for one array."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import _progress, _strategies, budgets, patterns
from jaxprune import scores as scoring
from jaxprune._arrays import tree
from jaxprune._evaluation import LeafSummary
from jaxprune._masks import masking
from jaxprune._masks.frequency import Spectral
from jaxprune._selection import introselect, requests
from jaxprune._selection.introselect import Cut, Keys, Pieces
from jaxprune.filters import is_kernel
from jaxprune.io import _layouts, _packed, _sinks
from jaxprune.io._safetensors import Leaf
from jaxprune.io._sources import Source
from jaxprune.rules import Rule, Rules
from jaxprune.typing import Pattern, SelectingPattern, Where


class _Job(NamedTuple):
    """What is done with one array.

    Attributes:
      path: Its path.
      rule: The rule that decides.
      pattern: With the axis of this array.
      end: How many of its groups stay, where its shape tells; or where the highest end.
      dtype: In which its scores compete.
    """

    path: str
    rule: Rule
    pattern: Pattern
    end: int | Cut | None
    dtype: np.dtype[Any]


class _Reader:
    """Reads the arrays of a source, and says how far that is."""

    def __init__(self, source: Source, total: int, report: _progress.Progress):
        self.leaves, self._source, self._total, self._report, self._done = source.leaves, source, total, report, 0

    def __call__(self, name: str) -> np.ndarray:
        """One array."""
        self._report(self._done, self._total, name)
        self._done = min(self._done + self.leaves[name].nbytes, self._total)
        return self._source.read(name)


def prune(
    source: str | Path,
    target: str | Path,
    how: Rules,
    *,
    where: Where = is_kernel,
    layout: _layouts.Layout = "auto",
    packed: bool = False,
    progress: _progress.Progress | bool = False,
) -> list[LeafSummary]:
    """Prunes a checkpoint of any size into another one, array by array.

    The masks are those that `how(load(source))` gives for the whole tree, bit by bit. Where the leaves of a rule
    compete, as under `budgets.global_`, the source is read twice more before.

    Args:
      source: See `load`.
      target: See `save`. A folder of safetensors keeps the other files of the source, such as its configuration.
      how: Rules, of the methods `magnitude`, `lamp` and `dft`.
      where: Which leaves the rules decide about.
      layout: What decides which axis of a kernel is its inputs, for patterns that need to know: "flax" `(in, out)`,
        "torch" `(out, in)`, or "auto", the name of the leaf.
      packed: Write what is pruned in the form of `pack`; the target is a safetensors file.
      progress: Whether to show a bar, or a function `(done, total, what)`, in bytes.

    Returns:
      What each leaf keeps.

    Raises:
      ValueError: The source is damaged, the target there already, or a leaf does not fit its rule; the message names
        them.
      TypeError: A rule picks a leaf that is not floating.
      OSError: The disk is too small.
    """
    opened = _packed.opened(Path(source))
    jobs = _jobs(opened, how, where, layout)
    total = sum(leaf.nbytes for leaf in opened.leaves.values())
    total += 2 * sum(opened.leaves[name].nbytes for name, job in jobs.items() if _competes(job))
    found = list[LeafSummary]()
    with _progress.reporting(progress) as report:
        read = _Reader(opened, total, report)
        jobs = _settled(jobs, read)
        with _packed.writing(Path(target), opened, layout) if packed else _sinks.writing(Path(target), opened) as write:
            for name, leaf in opened.leaves.items():
                array, mask = read(name), None
                if name in jobs:
                    kept, mask = _pruned(jobs[name], array)
                    removed = 1 - kept / leaf.size if leaf.size else 0.0
                    found.append(LeafSummary(jobs[name].path, leaf.shape, leaf.size, kept, removed))
                write(name, array, *([mask] if packed and mask is not None else []))
        report(total, total, "done")
    return found


def _jobs(source: Source, how: Rules, where: Where, layout: _layouts.Layout) -> dict[str, _Job]:
    """By name, in the order of the tree, which decides between equals."""
    shapes = source.tree({name: tree.shape_of(leaf) for name, leaf in source.leaves.items()})
    names = jax.tree.leaves(source.tree({name: name for name in source.leaves}))
    rows, treedef = tree.flatten(shapes)
    numbers = how.numbers(shapes, where)
    jobs = dict[str, _Job]()
    for number, rule in enumerate(how.rules):
        mine = [(name, *row) for name, row in zip(names, rows, strict=True) if numbers[row[0]] == number]
        if rule.method is None:
            continue
        _check(number, rule)
        pattern = rule.pattern or patterns.Unstructured()
        fixed = pattern.sparsity is not None or rule.method is _strategies.dft
        only = treedef.unflatten([leaf if numbers[path] == number else None for path, leaf in rows])
        ends = [None] * len(mine) if fixed else rule.counts(only) or [None] * len(mine)
        for (name, path, leaf), end in zip(mine, ends, strict=True):
            oriented = _layouts.oriented(pattern, path, leaf.shape, layout)
            pooled = requests.fitting(oriented.pool, path, leaf, abstract=True)
            own = np.dtype(np.float32) if rule.method is _strategies.lamp else source.leaves[name].dtype
            dtype = own if isinstance(oriented, patterns.Unstructured) else pooled.dtype
            jobs[name] = _Job(path, rule, oriented, end, np.dtype(dtype))
    return jobs


def _check(number: int, rule: Rule) -> None:
    """Raises a `ValueError` for a rule that needs more than the array that it prunes."""
    fixes = rule.pattern is not None and rule.pattern.sparsity is not None
    if rule.method not in (_strategies.magnitude, _strategies.lamp, _strategies.dft):
        raise ValueError(
            f"Rule {number + 1} prunes by `{rule.name}`; from file to file that can be `magnitude`, `lamp` or `dft`. "
            f"Load the parameters, prune them, and save them."
        )
    if rule.spread not in (budgets.uniform, budgets.erk, budgets.global_) or (
        rule.spread is not budgets.uniform and (fixes or rule.method is _strategies.dft)
    ):
        raise ValueError(
            f"Rule {number + 1} has a budget that from file to file it cannot have: uniform, global_ and erk serve "
            f"single weights, blocks and channels, uniform the rest. Load the parameters, prune them, and save them."
        )


def _competes(job: _Job) -> bool:
    """Whether an array's weights compete with those of other arrays."""
    return job.end is None and job.pattern.sparsity is None and job.rule.method is not _strategies.dft


def _settled(jobs: dict[str, _Job], read: _Reader) -> dict[str, _Job]:
    """With the cut in place of the count for arrays that compete."""
    settled = dict(jobs)
    for rule in {id(job.rule): job.rule for job in jobs.values() if _competes(job)}.values():
        members = {name: job for name, job in jobs.items() if job.rule is rule}
        dtype = introselect.common([job.dtype for job in members.values()])
        members = {name: job._replace(dtype=dtype) for name, job in members.items()}

        def pieces(step: int, members: dict[str, _Job] = members) -> Iterator[Keys]:
            for name, job in members.items():
                yield from _keys(job, read(name))(step)

        size = sum(_groups(job, read.leaves[name]) for name, job in members.items())
        wanted = rule.settled(None)
        keep: Any = budgets.keep_count(size, 0.5 if wanted is None else wanted)
        end = introselect.cut(pieces, size, keep)
        left = end.ties
        for name, job in members.items():
            ties = end.ties
            if ties < end.equal:
                ties = min(left, sum(int(np.count_nonzero(keys == end.key)) for keys in _keys(job, read(name))(1)))
                left -= ties
            settled[name] = job._replace(end=end._replace(ties=ties))
    return settled


def _groups(job: _Job, leaf: Leaf) -> int:
    return requests.fitting(job.pattern.pool, job.path, tree.shape_of(leaf), abstract=True).size


def _keys(job: _Job, array: np.ndarray) -> Pieces:
    """The keys of an array's scores, which are computed once."""
    scores, absolute = array, True
    if job.rule.method is _strategies.lamp:
        scores, absolute = np.asarray(scoring.lamp({job.path: array}, where=_any)[job.path]), False
    if not isinstance(job.pattern, patterns.Unstructured):
        sizes = np.abs(scores) if absolute else scores
        scores, absolute = np.asarray(requests.fitting(job.pattern.pool, job.path, sizes)), False
    return introselect.of_array(scores.reshape(-1), job.dtype, absolute)


def _pruned(job: _Job, array: np.ndarray) -> tuple[int, Spectral | None]:
    """Sets to 0 in place what is pruned; how many weights stay, and the mask of frequencies."""
    if job.rule.method is _strategies.dft and array.size:
        masks = job.rule.masks({job.path: array}, None, _any)
        array[...] = np.asarray(masking.apply({job.path: array}, masks)[job.path])
        return int(masks[job.path].count(array.shape)), masks[job.path]
    return _masked_out(job, array), None


def _masked_out(job: _Job, array: np.ndarray) -> int:
    """The same by masks of weights."""
    if not array.size:
        return 0
    if isinstance(job.pattern, SelectingPattern):
        return sum(_masked(part, _chosen(job, part)) for part in _rows(job.pattern, array))
    count, pieces = job.end, _keys(job, array)
    if not isinstance(count, Cut):
        assert count is not None
        count = introselect.cut(pieces, _groups(job, Leaf("", array.shape, array.dtype)), count)
    if isinstance(job.pattern, patterns.Unstructured):
        kept = 0
        for part, keys in zip(introselect.split(array.reshape(-1)), pieces(1), strict=True):
            stay, count = count.kept(keys)
            kept += _masked(part, stay)
        return kept
    flags = list[np.ndarray]()
    for keys in pieces(1):
        stay, count = count.kept(keys)
        flags.append(stay)
    pooled = jax.eval_shape(job.pattern.pool, tree.shape_of(array))
    mask = job.pattern.expand(np.concatenate(flags).reshape(pooled.shape), array.shape)
    return _masked(array, np.broadcast_to(np.asarray(mask), array.shape))


def _chosen(job: _Job, part: np.ndarray) -> np.ndarray:
    """The mask by a pattern that chooses by itself."""
    assert isinstance(job.pattern, SelectingPattern)
    keep: Any = 0 if job.end is None else job.end
    select = functools.partial(job.pattern.select, keep=keep)
    return np.asarray(requests.fitting(select, job.path, np.abs(part)))


def _rows(pattern: Pattern, array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in parts that a pattern may be applied to one by one: whole groups of N:M, else all of it."""
    if not isinstance(pattern, patterns.NM) or pattern.group > 1 or array.ndim < 2 or not array.size:
        yield array
        return
    rows = max(introselect.PIECE * len(array) // array.size // pattern.m, 1) * pattern.m
    if len(array) % pattern.m and pattern.axis in (0, -array.ndim):
        rows = len(array)  # which it does not divide: the pattern says so
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _masked(array: np.ndarray, stay: np.ndarray) -> int:
    """Sets to 0 what does not stay, also where it is NaN; how many numbers stay."""
    bits = array.view(f"u{array.dtype.itemsize}")
    np.multiply(bits, stay, out=bits, casting="unsafe")
    return int(np.count_nonzero(stay))


def _any(path: str, leaf: Any) -> bool:
    del path, leaf
    return True
