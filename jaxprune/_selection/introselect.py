"""Exact selection of concrete scores in host memory, piece by piece: nothing is compiled.

A sample tells between which two keys the highest should end. One pass counts what lies above them and collects what
lies between, and NumPy's introselect finds the end among these few. Where it lies elsewhere, or too much lies between,
the next two keys are chosen in the range that is left. So what is selected never depends on the sample, and scores that
do not fit into memory may come from a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxprune._arrays import ordering

Keys: TypeAlias = np.ndarray
Pieces: TypeAlias = Callable[[int], Iterable[Keys]]
"""Gives every so-many-th key, flat and in pieces, in the same order each time: of the first piece from its first."""

PIECE = 2**17
"""Scores at a time, which a processor's cache holds."""
_SAMPLE = 2**15
_DEVIATIONS = 4.0
_MOST = 2**22  # keys collected at a time: they fit into memory whatever the size of the model


class Cut(NamedTuple):
    """Where the highest end.

    Attributes:
      key: All above it stay.
      ties: How many of those equal to it stay, the first ones.
      equal: How many are equal to it.
    """

    key: int
    ties: int
    equal: int

    def kept(self, keys: Keys) -> tuple[np.ndarray, Cut]:
        """Which of the next keys stay, and the cut for those after them."""
        stay = keys > self.key
        if not self.ties:
            return stay, self
        ties = np.flatnonzero(keys == self.key)[: self.ties]
        stay[ties] = True
        return stay, self._replace(ties=self.ties - ties.size)


def highest(
    scores: Sequence[np.ndarray],
    keep: Sequence[int],
    *,
    groups: Sequence[int],
    weights: Sequence[int],
    absolute: bool,
) -> list[np.ndarray]:
    """The masks of the highest scores: what `counting.highest` gives, bit by bit.

    Args:
      scores: One NumPy array a leaf.
      keep: How many stay of each group, by weight.
      groups: For each leaf the group whose scores it competes with, ascending from 0.
      weights: For each leaf how much one of its scores counts.
      absolute: Whether scores rank by absolute value.
    """
    masks = list[np.ndarray]()
    for group, number in enumerate(keep):
        members = [leaf for leaf, its_group in enumerate(groups) if its_group == group]
        dtype = common([scores[leaf].dtype for leaf in members])
        flat = [(scores[leaf].reshape(-1), weights[leaf]) for leaf in members]

        def pieces(step: int, flat: Any = flat, dtype: Any = dtype) -> Iterator[Keys]:
            for values, weight in flat:
                for part in split(values):
                    # A score of weight two stands there twice, and stays if both may.
                    yield (
                        np.repeat(keys(part, dtype, absolute), weight)[::step]
                        if weight > 1
                        else keys(part[::step], dtype, absolute)
                    )

        end = cut(pieces, sum(values.size * weight for values, weight in flat), number)
        for leaf, (values, weight) in zip(members, flat, strict=True):
            mask = np.empty(values.size, bool)
            for start, part in zip(range(0, values.size, PIECE), split(values), strict=True):
                stay, end = end.kept(np.repeat(keys(part, dtype, absolute), weight))
                mask[start : start + PIECE] = stay.reshape(-1, weight).all(axis=1)
            masks.append(mask.reshape(scores[leaf].shape))
    return masks


def split(values: np.ndarray) -> Iterator[np.ndarray]:
    """A flat array in pieces."""
    return (values[start : start + PIECE] for start in range(0, values.size, PIECE))


def common(dtypes: Sequence[Any]) -> np.dtype[Any]:
    """A dtype that tells all values of these apart: their own, or else float32, or float64 if one has eight bytes."""
    if len(set(dtypes)) == 1:
        return np.dtype(dtypes[0])
    return np.dtype(np.float64 if any(dtype.itemsize == 8 for dtype in dtypes) else np.float32)


def keys(values: np.ndarray, dtype: np.dtype[Any], absolute: bool) -> Keys:
    """The keys of scores, by way of a dtype that all scores which compete have in common."""
    return ordering.keys(values.astype(dtype, copy=False), absolute)


def of_array(values: np.ndarray, dtype: np.dtype[Any], absolute: bool) -> Pieces:
    """The keys of a flat array in memory."""
    return lambda step: (keys(part[::step], dtype, absolute) for part in split(values))


def cut(pieces: Pieces, size: int, keep: int) -> Cut:
    """Finds where the `keep` highest of `size` keys end.

    Args:
      pieces: Gone through twice, as a rule.
      size: How many keys there are.
      keep: From 0 to `size`.
    """
    limits = np.iinfo(np.int64)
    # `inside` of the keys are at least low and below high, as is the one sought; `above` are higher.
    low, high, inside, above = int(limits.min), int(limits.max), size, 0
    while keep > 0 and low + 1 < high:
        first, end = _bracket(pieces, low, high, inside, (keep - above) / inside)
        reach_first, reach_end, between = _counted(pieces, first, end)
        if reach_end >= keep:
            low, inside = end, reach_end - above
        elif reach_first < keep:
            high, inside, above = first, inside - (reach_first - above), reach_first
        else:
            low, high, inside, above = first, end, reach_first - reach_end, reach_end
            if between is not None:
                key = np.partition(between, inside - (keep - above))[inside - (keep - above)]
                more, equal = (int(np.count_nonzero(found)) for found in (between > key, between == key))
                return Cut(int(key), keep - above - more, equal)
    return Cut(low, keep - above, inside) if keep else Cut(high, 0, 0)


def _counted(pieces: Pieces, first: int, end: int) -> tuple[int, int, Keys | None]:
    """How many keys reach the first and the end, and those between, unless they are too many."""
    reach_first = number = 0
    between = list[Keys]()
    for part in pieces(1):
        reach = part >= first
        is_between = reach & (part < end)
        reach_first += int(np.count_nonzero(reach))
        number += int(np.count_nonzero(is_between))
        between = [*between, part[is_between]] if number <= _MOST else []
    return reach_first, reach_first - number, np.concatenate(between) if 0 < number <= _MOST else None


def _bracket(pieces: Pieces, low: int, high: int, inside: int, share: float) -> tuple[int, int]:
    """Between which keys of a range the highest should end, if this share of what lies there belongs to them."""
    if inside <= min(2 * _SAMPLE, _MOST):
        return low, high
    step = inside // _SAMPLE | 1  # odd, so that it does not go along the columns of a kernel
    sample = np.sort(np.concatenate([part[(part >= low) & (part < high)] for part in pieces(step)]))
    place = (1 - share) * sample.size
    margin = _DEVIATIONS * math.sqrt(share * (1 - share) * sample.size) + 1
    first, end = math.floor(place - margin), math.ceil(place + margin)
    found = int(sample[first]) if first >= 0 else low, int(sample[end]) + 1 if end < sample.size else high
    # Where the sample says nothing, the range is halved.
    return found if found != (low, high) else (low, low + (high - low) // 2)
