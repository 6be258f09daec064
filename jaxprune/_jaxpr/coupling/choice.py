"""Which axes of a reshape or a grouped convolution correspond, where its shapes leave a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune._jaxpr.coupling.forest import Labels
from jaxprune._jaxpr.coupling.values import Choose, Evidence, Labeling, Pending


def by_split(split: Any) -> Choose:
    """Chooses as the user's `split` says, unless labels already joined leave only one way.

    Args:
      split: "outer", "inner" or a callable from a `Split` to one of them.
    """
    if not callable(split) and split not in ("outer", "inner"):
        raise ValueError(f'`split` is "outer", "inner" or a callable that returns one of them; got {split!r}.')

    def choose(
        labeling: Labeling, pending: Pending, left: list[int], right: list[int], evidence: Evidence
    ) -> tuple[int, int] | None:
        sides = (pending.inputs, pending.outputs)
        left, right = (_apart(labeling, side, free) for side, free in zip(sides, (left, right), strict=True))
        prunable = [
            [i for i in free if labeling.forest.tags(side[i]).any()]
            for side, free in zip(sides, (left, right), strict=True)
        ]
        if not any(prunable):
            return None

        def outermost() -> bool:
            if pending.primitive != "reshape" and not callable(split):
                return False
            answer = split(pending.split()) if callable(split) else split
            if answer not in ("outer", "inner"):
                raise ValueError(f'`split` must return "outer" or "inner"; it returned {answer!r}.')
            return answer == "outer"

        def among(candidates: list[int]) -> int:
            return candidates[0] if len(candidates) == 1 or outermost() else candidates[-1]

        wishes = evidence == "result" or (evidence == "operand" and bool(prunable[0]))
        for flip in (False, True):
            (one, many), (one_free, many_free) = (sides[::-1], (right, left)) if flip else (sides, (left, right))
            if len(one) == 1 and len(one_free) == 1:
                fitting = fits(labeling.forest.sets(one[0]), many, many_free)
                prunable_many = prunable[0 if flip else 1]
                if len(fitting) == 1:
                    chosen = fitting[0]
                elif not wishes:
                    return None
                elif flip and prunable_many:
                    # A merge takes the axis that holds parameters, and not one that only the program makes.
                    chosen = among(prunable_many)
                else:
                    chosen = among(many_free)
                return (chosen, 0) if flip else (0, chosen)
        return (among(prunable[0] or left), among(prunable[1] or right)) if wishes else None

    return choose


def _apart(labeling: Labeling, side: Sequence[Labels], free: list[int]) -> list[int]:
    """The axes whose positions are not all tied to each other, if there are any: only those have units to choose."""
    apart = [i for i in free if len(np.unique(labeling.forest.sets(side[i]))) > 1]
    return apart or free


def fits(flat: np.ndarray, side: Sequence[Labels], candidates: list[int]) -> list[int]:
    """Axes of a side that alone decide which set each position of the merged axis `flat` belongs to."""
    shape = [len(labels) for labels in side]
    if sum(n > 1 for n in shape) < 2:
        return list(candidates)
    grid = flat.reshape(shape)
    found = []
    for axis in candidates:
        rows = np.moveaxis(grid, axis, 0).reshape(shape[axis], -1)
        if shape[axis] > 1 and (rows == rows[:, :1]).all() and len(np.unique(rows[:, 0])) > 1:
            found.append(axis)
    return found


def by_removal(kept_tag: int = 1) -> Choose:
    """Chooses the axis along which what a plan removes is removed as a whole.

    Args:
      kept_tag: Tags above it mark removed positions; equal tags are removed together.
    """

    def choose(
        labeling: Labeling, pending: Pending, left: list[int], right: list[int], evidence: Evidence
    ) -> tuple[int, int] | None:
        del evidence
        sides = (pending.inputs, pending.outputs)
        marked = [
            [i for i in free if (labeling.forest.tags(side[i]) > kept_tag).any()]
            for side, free in zip(sides, (left, right), strict=True)
        ]
        for this, other in ((0, 1), (1, 0)):
            if not marked[this]:
                continue
            source = marked[this][0]
            flat = _flat_tags(labeling, sides[this], source, kept_tag)
            free = right if this == 0 else left
            fitting = fits(flat, sides[other], free)
            if len(fitting) != 1:
                raise ValueError(
                    f"The plan removes positions that '{pending.primitive}' from "
                    f"{[len(x) for x in pending.inputs]} to {[len(x) for x in pending.outputs]} cannot keep apart "
                    f"({pending.source}). Make it with `shrink` from a coupling of the same function."
                )
            return (source, fitting[0]) if this == 0 else (fitting[0], source)
        return None

    return choose


def _flat_tags(labeling: Labeling, side: Sequence[Labels], chosen: int, kept_tag: int) -> np.ndarray:
    shape = [1] * len(side)
    shape[chosen] = len(side[chosen])
    tags = np.maximum(labeling.forest.tags(side[chosen]), kept_tag).reshape(shape)
    return np.broadcast_to(tags, [len(labels) for labels in side]).reshape(-1)
