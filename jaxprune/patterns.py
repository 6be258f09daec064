"""The shape of what is removed together: single weights, alone or by output, N of every M, blocks, channels.

A pattern is a value with three members, `sparsity`, `pool` and `expand` (see `jaxprune.typing.Pattern`), and perhaps
`select` and `by_leaf`; write your own class with them to prune in another shape.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Shaped

from jaxprune._arrays import checks, meshes, ordering, tree
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
        `layout(...).summed(params)` makes one. A leaf whose name says that -2 is wrong for it gets a warning: a
        `weight` of Equinox or torch, or the `(in, heads, width)` query, key or value of an attention of Flax.
      group: How many consecutive outputs share one choice of inputs, the best for the mean of their scores. One gather
        then serves them all, which `jaxprune.deploy` turns into speed on any device; 1 is what sparse hardware takes.

    Raises:
      ValueError: Not 0 <= n <= m, or m or group below 1.
      TypeError: They are not whole numbers.

    References:
      Mishra et al., 2021, "Accelerating Sparse Deep Neural Networks".
    """

    n: int
    m: int
    axis: Any = None
    group: int = 1

    def __post_init__(self) -> None:
        for name in ("n", "m", "group"):
            checks.whole(getattr(self, name), name, least=None)
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
        if self.axis is None:
            _warn_of_inputs(f"`{self}`", scores)
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
        if isinstance(scores, np.ndarray):
            return ordering.best_of_each(ordering.keys(scores), axis, self.n, self.m)
        if not scores.size:
            return jnp.ones(scores.shape, bool)
        if self.m > _UNROLLED:
            groups = meshes.grouped(scores, axis, self.m)
            keep = jnp.full([1 if a == axis + 1 else size for a, size in enumerate(groups.shape)], self.n, jnp.int32)
            mask = ordering.highest(groups, keep, (axis + 1,)).reshape(scores.shape)
        elif meshes.is_sharded(scores):
            # Neighbours along the axis may lie on other devices; those in a group do not.
            groups = meshes.grouped(scores, axis, self.m)
            mask = ordering.best_of_each_traced(groups, axis + 1, self.n, self.m).reshape(scores.shape)
        else:
            mask = ordering.best_of_each_traced(scores, axis, self.n, self.m)
        return meshes.like(mask, scores)

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
        channels of a convolution are one line. A leaf for which -2 is wrong gets a warning, as under `NM`.

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
        if self.axis is None:
            _warn_of_inputs("`Along()`", scores)
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


_UNROLLED = 16  # up to here the comparisons with all others of a group are worth compiling


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
      TypeError: Not a tuple of whole numbers.

    References:
      Narang et al., 2017, "Block-Sparse Recurrent Neural Networks".
    """

    shape: tuple[int, int]
    balanced: bool = False
    sparsity: None = None

    def __post_init__(self) -> None:
        if not checks.is_a(self.shape, tuple, list):
            raise TypeError(f"`Block(shape)` takes both sizes as a tuple, e.g. Block((16, 16)); got {self.shape!r}.")
        sizes = [checks.whole(size, "shape", least=None) for size in self.shape]
        if len(sizes) != 2 or min(sizes) < 1:
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
      axis: The axis whose positions are the channels. `None` is -1, the output of a Flax or Haiku kernel; use 0 for
        Equinox and torch, whose kernels, called `weight`, get a warning where no axis is given.

    Raises:
      TypeError: The axis is not a whole number.
    """

    axis: int | None = None
    sparsity: None = None

    def __post_init__(self) -> None:
        if self.axis is not None:
            checks.whole(self.axis, "axis", least=None)

    def by_leaf(self, scores: Params) -> list[Channel]:
        """The pattern of each leaf: this one."""
        rows, _ = tree.flatten(scores)
        if self.axis is None:
            torch = [path for path, _ in rows if _is_torch(path)]
            _warn("`Channel()`", torch, "the outputs", "axis -1", "`axis=0`")
        return [self] * len(rows)

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
        axis = -1 if self.axis is None else self.axis
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"`Channel(axis={axis})` needs that axis")
        return axis % len(shape)


_LEFT_OUT = object()
_AxisPattern = TypeVar("_AxisPattern", NM, Along)


def _with_axes(pattern: _AxisPattern, scores: Params) -> list[_AxisPattern]:
    if isinstance(pattern.axis, int | np.integer | None):
        return [pattern] * len(jax.tree.leaves(scores))
    name = type(pattern).__name__
    # What is not picked needs no axis, and may have one.
    filled = jax.tree.map(lambda score: _LEFT_OUT if score is None else score, scores, is_leaf=_is_none)
    try:
        found, _ = tree.flatten(filled, pattern.axis)
    except ValueError:
        found, _ = tree.flatten(scores, pattern.axis, names=(f"axis tree of `{name}`",))
    rows = [(path, axis) for path, score, axis in found if score is not _LEFT_OUT]
    without = [path for path, axis in rows if axis is None]
    if without:
        raise ValueError(f"The axis tree of `{name}` has no axis for {tree.some(without)}. Leave it out with `where=`.")
    return [dataclasses.replace(pattern, axis=axis) for _, axis in rows]


def _is_none(node: Any) -> bool:
    return node is None


def _is_torch(path: str) -> bool:
    """Whether a leaf is called as kernels are in Equinox and torch, which have the outputs first."""
    return re.fullmatch(r"(.*_)?weight(_.*)?", path.rpartition("/")[2]) is not None


def _warn_of_inputs(pattern: str, scores: Params) -> None:
    """Warns of leaves whose names say that axis -2 is not their inputs; of others nothing is known."""
    rows, _ = tree.flatten(scores)
    shapes = {path: tuple(leaf.shape) for path, leaf in rows if tree.is_array(leaf)}
    _warn(pattern, [path for path in shapes if _is_torch(path)], "the inputs", "axis -2", "`axis=-1`")
    attention = [path for path in shapes if _is_attention(path, shapes)]
    _warn(pattern, attention, "the inputs", "axis -2", "`axis=layout(fun, params, *args).summed(params)`")


def _is_attention(path: str, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a leaf is the query, key or value of an attention of Flax, `(..., in, heads, width)`.

    A dense layer of that name in a scanned stack is `(layers, in, out)`, and what goes out of it does not go into `out`
    as `(..., heads, width, out)`.
    """
    found = re.fullmatch(r"(|.*/)(query|key|value)/kernel", path)
    if found is None or len(shapes[path]) < 3:
        return False
    out = shapes.get(f"{found[1]}out/kernel")
    return len(shapes[path]) == 3 if out is None else len(out) == len(shapes[path]) and out[-3:-1] == shapes[path][-2:]


def _warn(pattern: str, paths: list[str], what: str, axis: str, fix: str) -> None:
    if paths:
        names = tree.listed([f"'{path}'" for path in paths], limit=3)
        checks.warn(f"{pattern} takes {axis} for {what}, which by its name it is not in {names}. Give {fix}.")
