"""Exact selection of frequencies: as many real degrees of freedom as asked, Hermitian pairs kept whole."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune._arrays import meshes
from jaxprune._masks import frequency
from jaxprune._selection import exact
from jaxprune.typing import Count, Mask


def select_frequencies(
    ranking: Float[Array, "..."],
    keep: Count,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    transform: frequency.Transform,
) -> Mask:
    """Keeps the highest-ranked coefficients whose degrees of freedom add up to `keep`.

    A pair holds two degrees of freedom. Where the last one asked for would split a pair, the best real coefficient
    still missing takes its place; if all of those are kept, the pair stays and the worst of them goes. So the number is
    always met, which the constant coefficient, always real, makes possible.

    Args:
      ranking: One number per stored coefficient, higher = more worth keeping; no NaN.
      keep: Degrees of freedom to keep, from 0 to the size of the kernel; may be traced.
      shape: The kernel's shape.
      axes: The transformed axes, negative and ascending.
      transform: The basis.

    Returns:
      Which coefficients stay, in the layout of `Spectral.keep`.
    """
    if transform == "dct":
        return exact.select(ranking, _alone(keep))
    slots = jnp.broadcast_to(jnp.asarray(frequency.slots(shape, axes, transform)), ranking.shape)
    lowest = jnp.full_like(ranking, -jnp.inf)
    entries = jnp.stack([jnp.where(slots >= 1, ranking, lowest), jnp.where(slots == 2, ranking, lowest)], axis=-1)
    chosen = exact.select(entries, _alone(keep))
    first, second = chosen[..., 0] & (slots >= 1), chosen[..., 1] & (slots == 2)
    return frequency.with_partners(_whole_pairs(first, second, ranking, slots == 1), shape, axes)


def _alone(keep: Count) -> Count:
    return keep if isinstance(keep, int) else jnp.asarray(keep)


def _whole_pairs(first: Mask, second: Mask, ranking: Float[Array, "..."], real: Mask) -> Mask:
    """Mends the one pair at most of which only the first half was chosen."""
    split = first & ~second & ~real
    spare, worst = real & ~first, real & first
    best_spare = _only(jnp.argmax(jnp.where(spare, ranking, jnp.full_like(ranking, -jnp.inf))), ranking.shape)
    least_kept = _only(jnp.argmin(jnp.where(worst, ranking, jnp.full_like(ranking, jnp.inf))), ranking.shape)
    mended = jnp.where(jnp.any(spare), (first & ~split) | (best_spare & spare), first & ~(least_kept & worst))
    return jnp.where(jnp.any(split), mended, first)


def _only(index: Array, shape: tuple[int, ...]) -> Mask:
    """True at one flat index."""
    return meshes.flat_index(shape) == index
