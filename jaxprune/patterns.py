"""The shape of what is removed together: single weights, alone or by output, N of every M, blocks, channels.

A pattern is a value with three members, `sparsity`, `pool` and `expand` (see `jaxprune.typing.Pattern`), and perhaps
`select` and `by_leaf`; write your own class with them to prune in another shape.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Shaped

from jaxprune._arrays import meshes, ordering, tree
from jaxprune.typing import Count, Mask, Params, Score


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight by itself."""

    sparsity: None = None

    def pool(self, scores: Score) -> Score:
        """The scores themselves."""
        return scores

    def expand(self, kept: Shaped[Any, "..."], shape: tuple[int, ...]) -> Shaped[Any, "..."]:
        """The decisions themselves."""
        del shape
        return kept


@dataclasses.dataclass(frozen=True)
class NM:
    """Keeps the best `n` of every `m` consecutive weights along an axis.

    Sparse hardware needs the groups along the axis that a matrix product sums over.

    Attributes:
      n: How many of each group stay.
      m: The size of a group; it divides the axis.
      axis: The summed axis. `None` is -2, right for Flax and Haiku, whose kernels are `(..., in, out)`; Equinox and
        torch have `(out, in)` and need -1. A pytree of integers with the structure of the parameters sets it by leaf;
        `layout(...).summed(params)` makes one.
      group: How many consecutive outputs share one choice of inputs, the best for the mean of their scores. One gather
        then serves them all, which `jaxprune.deploy` turns into speed on any device; 1 is what sparse hardware takes.

    Raises:
      ValueError: Not 0 <= n <= m, or m or group below 1.

    References:
      Mishra et al., 2021, "Accelerating Sparse Deep Neural Networks".
    """

    n: int
    m: int
    axis: Any = None
    group: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.n <= self.m or self.m < 1:
            raise ValueError(f"`NM(n, m)` keeps n of every m and needs 0 <= n <= m, m >= 1; got {self}.")
        if self.group < 1:
            raise ValueError(f"`NM(..., group=)` is the number of outputs that share a choice; got {self.group}.")

    def __str__(self) -> str:
        return f"NM({self.n}, {self.m})"

    @property
    def sparsity(self) -> float:
        """What the pattern removes, whatever the scores: 1 - n/m."""
        return 1 - self.n / self.m

    def pool(self, scores: Score) -> Score:
        """The scores themselves: a group is no unit here, each of its weights competes with the others."""
        return scores

    def expand(self, kept: Shaped[Any, "..."], shape: tuple[int, ...]) -> Shaped[Any, "..."]:
        """The decisions themselves."""
        del shape
        return kept

    def by_leaf(self, scores: Params) -> list[NM]:
        """The pattern of each leaf, with its own axis where `axis` is a tree."""
        return _with_axes(self, scores)

    def select(self, scores: Score, keep: Count) -> Mask:
        """The mask: the `n` highest scores of each group, ties to the lowest index, NaN last.

        Args:
          scores: Floating, with an axis that `m` divides.
          keep: Ignored, since the pattern fixes it.

        Raises:
          ValueError: It does not divide.
        """
        axis = -2 if self.axis is None else self.axis
        if not -scores.ndim <= axis < scores.ndim or scores.shape[axis] % self.m:
            raise ValueError(f"`NM({self.n}, {self.m})` needs axis {axis} divisible by {self.m}")
        axis = axis % scores.ndim
        if self.group > 1:
            return self._shared(scores, axis)
        values = meshes.grouped(ordering.keys(scores), axis, self.m)
        xp: Any = np if isinstance(values, np.ndarray) else jnp  # so that nothing is compiled for concrete scores
        index = np.arange(self.m, dtype=np.int32).reshape([self.m if a == axis + 1 else 1 for a in range(values.ndim)])

        def beaten_by(j: Any, rank: Any) -> Any:
            rival = xp.take(values, xp.array([j]), axis=axis + 1)
            return rank + ((rival > values) | ((rival == values) & (j < index))).astype(np.int32)

        rank = xp.zeros(values.shape, np.int32)
        if self.m <= _UNROLLED or xp is np:
            for j in range(self.m):
                rank = beaten_by(j, rank)
        else:
            rank = lax.fori_loop(0, self.m, beaten_by, rank)
        return meshes.like((rank < self.n).reshape(scores.shape), scores)

    def _shared(self, scores: Score, axis: int) -> Mask:
        """One choice for each group of outputs: those along the other of the last two axes."""
        outputs = scores.ndim - 2 if axis == scores.ndim - 1 else scores.ndim - 1
        if scores.shape[outputs] % self.group:
            raise ValueError(f"`NM(..., group={self.group})` needs axis {outputs} divisible by {self.group}")
        wide = scores.astype(tree.promote(scores.dtype, jnp.float32))
        means = jnp.mean(meshes.grouped(wide, outputs, self.group), axis=outputs + 1)
        chosen = dataclasses.replace(self, axis=axis, group=1).select(means, 0)
        return meshes.like(jnp.repeat(chosen, self.group, axis=outputs), scores)


@dataclasses.dataclass(frozen=True)
class Along:
    """Single weights, each compared only with those along the same line: every output keeps as many of its inputs.

    Where a leaf's count does not divide evenly, the first lines keep one weight more.

    Attributes:
      axis: The axis that lines run along. `None` is -2, the inputs of a Flax or Haiku kernel `(..., in, out)`. A pytree
        with the structure of the parameters sets it by leaf, to an integer or to a tuple of integers: the taps and
        channels of a convolution are one line.

    References:
      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models", which compares weights by
      output.
    """

    axis: Any = None
    sparsity: None = None

    def pool(self, scores: Score) -> Score:
        """The scores themselves."""
        return scores

    def expand(self, kept: Mask, shape: tuple[int, ...]) -> Mask:
        """The decisions themselves."""
        del shape
        return kept

    def by_leaf(self, scores: Params) -> list[Along]:
        """The pattern of each leaf, with its own axis where `axis` is a tree."""
        return _with_axes(self, scores)

    def select(self, scores: Score, keep: Count) -> Mask:
        """The mask: the highest scores of each line, `keep` in all, ties to the lowest index, NaN last.

        Args:
          scores: Floating.
          keep: May be traced.

        Raises:
          ValueError: There is no such axis.
        """
        axis = -2 if self.axis is None else self.axis
        axes = axis if isinstance(axis, tuple) else (axis,)
        if not all(-scores.ndim <= a < scores.ndim for a in axes):
            raise ValueError(f"`Along(axis={axis})` needs that axis")
        if not scores.size:
            return jnp.ones(scores.shape, bool)
        axes = tuple(a % scores.ndim for a in axes)
        lines = [1 if a in axes else n for a, n in enumerate(scores.shape)]
        each, more = keep // max(math.prod(lines), 1), keep % max(math.prod(lines), 1)
        index = lax.iota(jnp.int32, math.prod(lines)).reshape(lines)
        return meshes.like(ordering.highest(scores, each + (index < more).astype(jnp.int32), axes), scores)


_UNROLLED = 16  # up to here XLA fuses the comparisons into one pass


@dataclasses.dataclass(frozen=True)
class Block:
    """Rectangles of the last two axes.

    The scores of a block are averaged, so that the smaller blocks at a ragged edge compare with the others.

    Attributes:
      shape: Rows and columns of a block. It need not divide the kernel's: edges may be ragged.
      balanced: Keep as many blocks in every block of columns, to within one, so that none takes longer than the others
        when `jaxprune.deploy` multiplies with them. Blocks then compete with those above and below them only, and a
        budget that compares leaves by their scores gives all of them the same sparsity. For kernels `(..., in, out)`.

    Raises:
      ValueError: Not two positive sizes.

    References:
      Narang et al., 2017, "Block-Sparse Recurrent Neural Networks".
    """

    shape: tuple[int, int]
    balanced: bool = False
    sparsity: None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"`Block(shape)` needs two positive sizes, e.g. Block((16, 16)); got {self.shape}.")

    def pool(self, scores: Score) -> Score:
        """The mean score of each block, float32 or wider: `(..., ceil(in / rows), ceil(out / columns))`.

        Balanced: minus its rank in its column, as a share of the column, so that the best of all columns come first.
        """
        if scores.ndim < 2:
            raise ValueError(f"`Block({self.shape})` covers the last two axes of a kernel")
        wide = scores.astype(tree.promote(scores.dtype, jnp.float32))
        (rows, columns), (height, width) = self.shape, scores.shape[-2:]
        tiles = meshes.grouped(_padded(wide, scores.ndim - 1, columns), scores.ndim - 1, columns)
        tiles = meshes.grouped(_padded(tiles, scores.ndim - 2, rows), scores.ndim - 2, rows)
        down = jnp.minimum(rows, height - rows * jnp.arange(tiles.shape[-4]))
        across = jnp.minimum(columns, width - columns * jnp.arange(tiles.shape[-2]))
        area = (down[:, None] * across[None, :]).astype(wide.dtype)
        means = jnp.sum(tiles, axis=(-3, -1)) / jnp.broadcast_to(area, (*tiles.shape[:-4], *area.shape))
        return _ranked(means) if self.balanced else means

    def expand(self, kept: Shaped[Any, "..."], shape: tuple[int, ...]) -> Shaped[Any, "..."]:
        """Repeats each decision over its block and cuts the ragged edge: exactly `shape`."""
        rows, columns = self.shape
        full = jnp.repeat(jnp.repeat(kept, rows, axis=-2), columns, axis=-1)
        return full[..., : shape[-2], : shape[-1]]


def _ranked(scores: Score) -> Score:
    """Minus the share of each column's scores that come before each: ties to the lowest index, NaN last."""
    descending = jnp.argsort(~ordering.keys(meshes.gather(scores, -2)), axis=-2, stable=True)
    ranks = jnp.argsort(descending, axis=-2)
    return -(ranks.astype(scores.dtype) / scores.shape[-2])


def _padded(array: Any, axis: int, multiple: int) -> Any:
    """The array with zeros at the end of an axis, up to a multiple."""
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    return jnp.pad(meshes.gather(array, axis), [(0, missing if i == axis else 0) for i in range(array.ndim)])


@dataclasses.dataclass(frozen=True)
class Channel:
    """Whole slices along an axis: neurons, channels, filters.

    Attributes:
      axis: The axis whose positions are the channels. -1 is the output of a Flax or Haiku kernel; use 0 for Equinox.
    """

    axis: int = -1
    sparsity: None = None

    def pool(self, scores: Score) -> Score:
        """The mean score of each channel, float32 or wider: a vector."""
        axis = self._axis(scores.shape)
        wide = scores.astype(tree.promote(scores.dtype, jnp.float32))
        return jnp.mean(wide, axis=tuple(i for i in range(scores.ndim) if i != axis))

    def expand(self, kept: Shaped[Any, "..."], shape: tuple[int, ...]) -> Shaped[Any, "..."]:
        """A mask with size 1 along every other axis, which broadcasts."""
        axis = self._axis(shape)
        return kept.reshape(tuple(shape[axis] if i == axis else 1 for i in range(len(shape))))

    def _axis(self, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"`Channel(axis={self.axis})` needs that axis")
        return self.axis % len(shape)


_AxisPattern = TypeVar("_AxisPattern", NM, Along)


def _with_axes(pattern: _AxisPattern, scores: Params) -> list[_AxisPattern]:
    if isinstance(pattern.axis, int | None):
        return [pattern] * len(jax.tree.leaves(scores))
    rows, _ = tree.flatten(scores, pattern.axis, names=(f"axis tree of `{type(pattern).__name__}`",))
    return [dataclasses.replace(pattern, axis=axis) for _, _, axis in rows]
