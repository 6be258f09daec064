"""Exact selection of frequencies: as many real degrees of freedom as asked, Hermitian pairs kept whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune._arrays import host, meshes, ordering
from jaxprune._arrays.wide import Wide
from jaxprune._masks import frequency
from jaxprune._selection import exact
from jaxprune.typing import Count, Mask, Score


class Ranking(NamedTuple):
    """The coefficients of a kernel in the order in which they should stay.

    Attributes:
      values: One number per stored coefficient, higher = more worth keeping; no NaN.
      shape: The kernel's shape.
      axes: The transformed axes, negative and ascending.
      transform: The basis.
    """

    values: Float[Array, "..."]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    transform: frequency.Transform


def select_frequencies(rankings: Sequence[Ranking], keep: Sequence[Count]) -> list[Mask]:
    """Keeps the highest-ranked coefficients of each kernel whose degrees of freedom add up to what is to stay.

    A pair holds two degrees of freedom. Where the last one asked for would split a pair, the best real coefficient
    still missing takes its place; if all of those are kept, the pair stays and the worst of them goes. So the number is
    always met, which the constant coefficient, always real, makes possible.

    Args:
      rankings: One for each kernel.
      keep: For each kernel the degrees of freedom to keep, from 0 to its size; may be traced.

    Returns:
      Which coefficients stay, in the layout of `Spectral.keep`.
    """
    # Written down once: computed for each use they take three times the memory on a GPU.
    rankings = [ranking._replace(values=lax.optimization_barrier(ranking.values)) for ranking in rankings]
    scores, groups, weights = list[Any](), list[int](), list[int]()
    for kernel, ranking in enumerate(rankings):
        pieces = [ranking.values] if ranking.transform == "dct" else [_pairs(ranking), _real(ranking)]
        scores += pieces
        groups += [kernel] * len(pieces)
        weights += [2, 1][-len(pieces) :]
    if all(map(host.is_here, scores)):
        scores = [np.asarray(score) for score in scores]
    wanted = [
        exact.checked_count(f"kernel {kernel}", count, math.prod(ranking.shape))
        for kernel, (ranking, count) in enumerate(zip(rankings, keep, strict=True))
    ]
    masks = map(jnp.asarray, exact.highest_by_weight(scores, wanted, tuple(groups), tuple(weights)))
    chosen = zip(scores, masks, strict=True)
    return [
        next(chosen)[1] if ranking.transform == "dct" else _completed(next(chosen), next(chosen), ranking, count)
        for ranking, count in zip(rankings, wanted, strict=True)
    ]


def _pairs(ranking: Ranking) -> Score:
    """The value of one coefficient of each Hermitian pair; NaN, which goes first, elsewhere."""
    slots = frequency.slots(ranking.shape, ranking.axes, ranking.transform)
    return jnp.where(slots == 2, ranking.values, jnp.full_like(ranking.values, jnp.nan))


def _real(ranking: Ranking) -> Score:
    """The values of the real coefficients: those of frequency 0 or n/2 along every transformed axis."""
    values = meshes.gather(ranking.values, *ranking.axes)
    ends, strides = list(values.shape), [1] * values.ndim
    for axis in ranking.axes:
        half, odd = divmod(ranking.shape[axis], 2)
        ends[axis], strides[axis] = (1, 1) if odd else (half + 1, half)
    return lax.slice(values, (0,) * values.ndim, ends, strides)


def _completed(
    pairs: tuple[Score, Mask], real: tuple[Score, Mask], ranking: Ranking, keep: int | Int[Array, ""] | Wide
) -> Mask:
    """Mends the one degree of freedom at most by which the chosen pairs and real coefficients fall short."""
    (pair_values, pair_kept), (real_values, real_kept) = pairs, real
    falls_short = ((keep.low if isinstance(keep, Wide) else keep) - jnp.sum(real_kept, dtype=jnp.int32)) % 2 == 1
    from_pair = falls_short & jnp.all(real_kept)
    pair_kept = pair_kept | (from_pair & _best(pair_values, pair_kept))
    # Minus the values, the best that may go is the worst.
    worst = _best(-jnp.asarray(real_values), ~real_kept)
    real_kept = (real_kept | (falls_short & _best(real_values, real_kept))) & ~(from_pair & worst)
    return frequency.with_partners(pair_kept | _in_place(real_kept, ranking), ranking.shape, ranking.axes)


def _best(values: Score, taken: Mask) -> Mask:
    """True at the highest value that is not taken, the first of equal ones; nowhere if all are."""
    keys = ordering.keys(jnp.asarray(values))
    left = jnp.where(taken, jnp.full_like(keys, jnp.iinfo(keys.dtype).min), keys)
    return (meshes.flat_index(left.shape) == jnp.argmax(left)) & ~taken


def _in_place(real: Mask, ranking: Ranking) -> Mask:
    """From the real coefficients alone to all that are stored."""
    padding = [(0, 0, 0)] * real.ndim
    for axis in ranking.axes:
        half, odd = divmod(ranking.shape[axis], 2)
        stored = ranking.values.shape[axis]
        padding[axis] = (0, stored - 1, 0) if odd else (0, stored - half - 1, half - 1)
    return meshes.like(lax.pad(real, np.False_, padding), ranking.values)
