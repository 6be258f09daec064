"""Second moments that Adafactor keeps as the means of rows and columns, for a smaller parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import tree

_THRESHOLD = 128
"""What optax takes for `min_dim_size_to_factor` unless told otherwise."""


class Moments(NamedTuple):
    """Of one parameter, as optax keeps them: `row` and `col`, or `full`; what is not there is `(1,)`."""

    row: Any
    col: Any
    full: Any


Take: TypeAlias = Callable[[Any, tuple[int, ...]], Any]
"""`take(array, without)`, the kept part of an array that has the parameter's axes but those in `without`."""


def is_factored(node: Any) -> bool:
    """Whether a node of an optimizer's state holds such moments, by its fields."""
    return isinstance(node, tuple) and {"v_row", "v_col", "v"} <= set(getattr(node, "_fields", ()))


def least_factored(shapes: Mapping[str, tuple[int, ...]], moments: Mapping[str, Any]) -> int:
    """From which second-largest size on leaves are factored, as far as a state tells; else optax's own threshold.

    Args:
      shapes: Of the parameters, by path.
      moments: `v_row` of each.
    """
    sizes = {path: sorted(shape)[-2] for path, shape in shapes.items() if len(shape) > 1}
    is_row = {path: tree.is_array(moments.get(path)) and moments[path].shape == _row(shapes[path]) for path in sizes}
    above = max([size for path, size in sizes.items() if not is_row[path]], default=0)
    below = min([size for path, size in sizes.items() if is_row[path]], default=_THRESHOLD)
    return min(max(_THRESHOLD, above + 1), below) if below >= _THRESHOLD else max(above + 1, 2)


def smaller(moments: Moments, shape: tuple[int, ...], small: tuple[int, ...], least: int, take: Take) -> Moments:
    """The moments of what a parameter keeps.

    Rows and columns are means over the largest axis and the second largest. Where these are others in the smaller
    parameter, the two change places; where they are no longer factored, or over another axis, they are formed anew from
    the product of both, by which Adafactor scales its updates.

    Args:
      moments: At full size.
      shape: Of the parameter.
      small: Of what it keeps.
      least: From which second-largest size on leaves are factored.
      take: Takes the kept part.
    """
    if len(shape) < 2 or moments.row.shape != _row(shape):
        return Moments(moments.row, moments.col, take(moments.full, ()))
    second, first = _largest(shape)
    new_second, new_first = _largest(small)
    is_still = small[new_second] >= least
    if is_still and {first, second} == {new_first, new_second}:
        row, col = take(moments.row, (first,)), take(moments.col, (second,))
        return Moments(row, col, moments.full) if first == new_first else Moments(col, row, moments.full)
    mean = jnp.mean(moments.row, axis=second - (second > first), keepdims=True)
    share = moments.row / jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)  # 0 where all rows are
    row, col = take(share, (first,)), take(moments.col, (second,))
    full = jnp.expand_dims(row, first) * jnp.expand_dims(col, second)
    if not is_still:
        return Moments(jnp.zeros(1, full.dtype), jnp.zeros(1, full.dtype), full)
    return Moments(jnp.mean(full, axis=new_first), jnp.mean(full, axis=new_second), moments.full)


def _largest(shape: tuple[int, ...]) -> tuple[int, int]:
    """The second-largest axis and the largest, as optax picks them among equals."""
    order = np.argsort(shape)
    return int(order[-2]), int(order[-1])


def _row(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = _largest(shape)[1]
    return shape[:first] + shape[first + 1 :]
