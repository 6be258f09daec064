"""Re-evaluates a labelled jaxpr on smaller arrays: a rule for each primitive with a shape among its parameters."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jaxtyping import Int

from jaxprune._jaxpr.coupling.forest import Labels
from jaxprune._jaxpr.coupling.values import Frame, Holds, Labeling, Value
from jaxprune._jaxpr.symbols import Shape, is_symbolic
from jaxprune._jaxpr.walker import Rule, bind, shape_of, walk


@dataclasses.dataclass(frozen=True)
class Kept:
    """Positions of an axis that stay.

    Attributes:
      rows: `(kept,)`, or `(layers, kept)` where each layer of a scan keeps its own.
      size: Width of the whole axis.
      symbolic: Whether the axis has a symbolic size, and `size` stands for it, as where heads merge with the batch.
    """

    rows: Int[np.ndarray, "..."]
    size: int
    symbolic: bool = False

    @property
    def count(self) -> int:
        """How many stay."""
        return self.rows.shape[-1]

    @property
    def indices(self) -> Int[np.ndarray, "..."]:
        """The positions, which have to be numbers."""
        if self.symbolic:
            raise ValueError(
                "Units that have become a part of an axis of symbolic size are needed one by one. Leave them out with "
                "`protect=`, or give arguments whose sizes are numbers."
            )
        return self.rows

    def of(self, width: Any) -> Any:
        """How many stay of the axis, given its size, which may be symbolic."""
        divisor = math.gcd(self.count, self.size)
        return width * (self.count // divisor) // (self.size // divisor)

    def others(self) -> Kept:
        """The positions that are removed, as if they were those that stay."""
        rows = [np.setdiff1d(np.arange(self.size), row) for row in np.atleast_2d(self.indices)]
        return Kept(rows[0] if self.indices.ndim == 1 else np.stack(rows), self.size)


Region: TypeAlias = tuple[int, ...]
"""Axes of a value at whose removed positions it is taken, in ascending order; at the others, what stays is taken."""


@dataclasses.dataclass(frozen=True)
class Parted:
    """A small array, with what the whole one holds at removed positions.

    Attributes:
      kept: The small array.
      part: What is held in a region, computed when it is first asked for. Along each of the region's axes it has one
        position if what is removed is equal there, else all removed positions.
    """

    kept: Any
    part: Callable[[Region], Any]


def kept_of(operand: Any) -> Any:
    """The small array of an operand."""
    return operand.kept if isinstance(operand, Parted) else operand


Part: TypeAlias = "Callable[[Evaluation, JaxprEqn, Sequence[Any], int, Region], Any]"
"""Called as `part(evaluation, eqn, operands, index, region)`; what the result of that index holds in the region."""


@dataclasses.dataclass
class Evaluation:
    """One re-evaluation.

    Attributes:
      labeling: The finished label pass of the same jaxpr, with its frames.
      removed: For each tag of the forest, whether its positions are removed: `(1,)`, or `(layers,)` for each layer.
      rules: Evaluation rules by primitive; primitives without one are bound with the parameters that they have.
      nested: Rules of primitives that hold jaxprs. Their operands and results may be `Parted`, those of `rules` not.
      parts: What a result holds in a region, given operands that may be `Parted`.
      ends: Primitives that take in what is removed: `parts` gives their whole result too, as that of no region.
      frame: Labels of the jaxpr being evaluated.
      layer: Which layer of the outermost scan is being evaluated.
      small: Divide sums over pruned axes by the count of what is left.
    """

    labeling: Labeling
    removed: Sequence[np.ndarray]
    rules: Mapping[str, Rule]
    nested: Mapping[str, Rule]
    parts: Mapping[str, Part]
    ends: Collection[str]
    frame: Frame
    small: bool = False
    layer: Any = None
    _kept: dict[int, tuple[Any, Kept | None]] = dataclasses.field(default_factory=dict)
    _shrinks: dict[int, bool] = dataclasses.field(default_factory=dict)

    def kept(self, labels: np.ndarray) -> Kept | None:
        """What stays of an axis, or `None` if all of it does."""
        known = self._kept.get(id(labels))
        if known is None:
            # The labels are kept with the answer: an id is only theirs while they are alive.
            known = self._kept[id(labels)] = labels, self._find_kept(labels)
        return known[1]

    def _find_kept(self, labels: np.ndarray) -> Kept | None:
        if labels.strides == (0,) and len(labels) > 1 and not self._find_kept(labels[:1]):
            return None
        present, inverse = np.unique(self.labeling.forest.tags(labels), return_inverse=True)
        vectors = [self.removed[tag] for tag in present.tolist()]
        if not any(vector.any() for vector in vectors):
            return None
        layers = max(len(vector) for vector in vectors)
        gone = np.stack([np.broadcast_to(vector, (layers,)) for vector in vectors])[inverse]
        rows = [np.flatnonzero(~layer) for layer in gone.T]
        counts = {len(row) for row in rows}
        if len(counts) > 1:
            raise ValueError(
                f"The plan keeps {min(counts)} to {max(counts)} of an axis of {len(labels)} in the layers of a scan, "
                "whose shapes have to agree. Make the plan with `shrink` from a coupling of the same function."
            )
        return Kept(rows[0] if layers == 1 else np.stack(rows), len(labels))

    def value(self, atom: Any) -> Value:
        """Labels of an operand or result in the current frame."""
        return self.labeling.literal(atom.val) if isinstance(atom, Literal) else self.frame.values[atom]

    def values(self, atoms: Sequence[Any]) -> list[Value]:
        """Labels of several operands or results."""
        return [self.value(atom) for atom in atoms]

    def note_symbolic(self, eqn: JaxprEqn) -> None:
        """Notes which axes of an equation are pruned in part and have symbolic sizes."""
        for atom in (*eqn.invars, *eqn.outvars):
            for labels, width in zip(self.value(atom).axes, shape_of(atom), strict=True):
                kept = self.kept(labels)
                if kept is not None and not kept.symbolic and is_symbolic([width]):
                    self._kept[id(labels)] = labels, dataclasses.replace(kept, symbolic=True)

    def view(self, eqn: JaxprEqn) -> JaxprEqn:
        """An equation with numbers in place of symbolic sizes, as it was labelled; what shrinks has numbers anyway."""
        return self.labeling.sizes.view(eqn)

    def kept_axes(self, atom: Any) -> list[Kept | None]:
        """What stays of each axis of an operand or result."""
        return [] if isinstance(atom, Literal) else [self.kept(labels) for labels in self.frame.values[atom].axes]

    def shape(self, atom: Any) -> Shape:
        """Shape of an operand or result once shrunk."""
        return tuple(
            width if kept is None else kept.of(width)
            for width, kept in zip(shape_of(atom), self.kept_axes(atom), strict=True)
        )

    def regions(self, value: Value) -> list[Region]:
        """Where a value holds something else than 0 that is removed and known."""
        if self.small:
            return []
        axes = [
            axis
            for axis, (labels, holds) in enumerate(zip(value.axes, value.holds, strict=True))
            if holds in (Holds.EQUAL, Holds.VARIED) and self.kept(labels) is not None
        ]
        return [region for n in range(len(axes)) for region in itertools.combinations(axes, n + 1)]

    def removed_from(self, labels: Labels) -> Kept:
        """What is removed of an axis that shrinks."""
        kept = self.kept(labels)
        assert kept is not None
        return kept.others()

    def count_removed(self, labels: Labels) -> int:
        """How many positions of an axis are removed."""
        kept = self.kept(labels)
        return 0 if kept is None else kept.size - kept.indices.shape[-1]

    def times(self, value: Value, region: Region) -> int:
        """How many removed positions each number of a part stands for."""
        equal = [value.axes[a] for a in region if value.holds[a] is not Holds.VARIED]
        return math.prod(map(self.count_removed, equal))

    def part_shape(self, small: Shape, value: Value, region: Region) -> Shape:
        """Shape of what a value holds in a region, given the shape of its small array."""
        return tuple(
            width if axis not in region else self.count_removed(labels) if holds is Holds.VARIED else 1
            for axis, (width, labels, holds) in enumerate(zip(small, value.axes, value.holds, strict=True))
        )

    def part(self, operand: Any, value: Value, region: Region) -> Any:
        """What an operand holds in a region; the small array itself if that is empty."""
        if not region:
            return kept_of(operand)
        if any(value.holds[axis] is Holds.ZERO for axis in region):
            kept = kept_of(operand)
            return jnp.zeros(self.part_shape(kept.shape, value, region), kept.dtype)
        if not isinstance(operand, Parted):
            raise ValueError(
                "The gradient takes in values that are not known where they are removed. Leave these units out with "
                "`protect=`."
            )
        return operand.part(region)

    def pack(
        self, operands: Sequence[Any], values: Sequence[Value], inside: Sequence[Value], steps: int = 0
    ) -> list[Any]:
        """Lays out operands, each followed by its parts, for a function that takes and gives plain arrays.

        Args:
          operands: Small arrays, or `Parted`.
          values: Their labels.
          inside: Their labels in the function, which may say less of them.
          steps: How many leading axes the operands have beyond those of `inside`: 1 for what a loop steps along.
        """
        flat = []
        for operand, value, wanted in zip(operands, values, inside, strict=True):
            kept = kept_of(operand)
            flat.append(kept)
            for region in self.regions(wanted):
                part = self.part(operand, value, tuple(axis + steps for axis in region))
                shape = self.part_shape(jnp.shape(kept)[steps:], wanted, region)
                flat.append(fitted(part, (*part.shape[:steps], *shape)))
        return flat

    def unpack(self, flat: Sequence[Any], inside: Sequence[Value], steps: int = 0) -> list[Any]:
        """The operands that `pack` laid out."""
        arrays, operands = iter(flat), []
        for value in inside:
            kept = next(arrays)
            parts = {tuple(axis + steps for axis in region): next(arrays) for region in self.regions(value)}
            operands.append(Parted(kept, parts.__getitem__) if parts else kept)
        return operands

    def shrinks(self, frame: Frame) -> bool:
        """Whether anything in a frame shrinks."""
        if id(frame) not in self._shrinks:
            self._shrinks[id(frame)] = any(
                self.kept(labels) is not None for value in frame.values.values() for labels in value.axes
            ) or any(self.shrinks(child) for child in frame.children.values())
        return self._shrinks[id(frame)]

    def children(self, eqn: JaxprEqn) -> list[Frame]:
        """Frames of the jaxprs that an equation holds."""
        return [frame for (owner, _), frame in self.frame.children.items() if owner == id(eqn)]

    def child(self, eqn: JaxprEqn, branch: int = 0) -> Evaluation:
        """The same evaluation inside a jaxpr that an equation holds."""
        return dataclasses.replace(self, frame=self.frame.children[id(eqn), branch])

    def within(self, frame: Frame, layer: Any = None) -> Evaluation:
        """The same evaluation in another frame."""
        return dataclasses.replace(self, frame=frame, layer=self.layer if layer is None else layer)

    def take(self, whole: Any, axes: Sequence[Kept | None]) -> Any:
        """What stays of an array made at full size."""
        for axis, kept in enumerate(axes):
            if kept is not None:
                whole = self.take_axis(whole, kept.indices, axis)
        return whole

    def original(self, positions: Any, kept: Kept) -> Any:
        """Positions among what is kept of an axis, as positions of the whole axis."""
        indices = jnp.asarray(kept.indices, positions.dtype)
        if indices.ndim == 2:
            indices = lax.dynamic_index_in_dim(indices, self.layer, keepdims=False)
        return jnp.take(indices, positions, mode="clip")

    def take_axis(self, whole: Any, indices: np.ndarray, axis: int) -> Any:
        """Takes positions along one axis: a slice where they are consecutive."""
        if indices.ndim == 2:
            if (indices == indices[:1]).all():
                indices = indices[0]
            else:
                chosen = lax.dynamic_index_in_dim(jnp.asarray(indices, jnp.int32), self.layer, keepdims=False)
                return jnp.take(whole, chosen, axis=axis, mode="clip")
        if len(indices) and (np.diff(indices) == 1).all():
            return lax.slice_in_dim(whole, int(indices[0]), int(indices[-1]) + 1, axis=axis)
        return jnp.take(whole, jnp.asarray(indices, jnp.int32), axis=axis, mode="clip")

    def run(self, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Evaluates a jaxpr in the current frame."""
        small = [self._constant(c, v) for v, c in zip(jaxpr.constvars, constants, strict=True)]
        return walk(jaxpr, arguments, visit, self, literal=lambda value: value, constants=small)

    def _constant(self, constant: Any, variable: Any) -> Any:
        value = self.frame.values[variable]

        def part(region: Region) -> Any:
            return self.take(constant, self.taken(value, region))

        kept = self.take(constant, self.kept_axes(variable)) if np.shape(constant) else constant
        return Parted(kept, part) if self.regions(value) else kept

    def taken(self, value: Value, region: Region) -> list[Kept | None]:
        """The positions of each axis that a region takes."""
        axes = []
        for axis, (labels, holds) in enumerate(zip(value.axes, value.holds, strict=True)):
            if axis not in region:
                axes.append(self.kept(labels))
            elif holds is Holds.VARIED:
                axes.append(self.removed_from(labels))
            else:
                removed = self.removed_from(labels)
                axes.append(dataclasses.replace(removed, rows=removed.rows[..., :1]))
        return axes


def visit(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """Applies the rule of an equation and checks the shapes that the labels promise."""
    name = eqn.primitive.name
    if evaluation.labeling.sizes.any:
        evaluation.note_symbolic(eqn)
    if name in evaluation.nested:
        outputs = evaluation.nested[name](evaluation, eqn, *operands)
    else:
        outputs = [
            _with_parts(evaluation, eqn, operands, i, kept) for i, kept in enumerate(_kept(evaluation, eqn, operands))
        ]
    for variable, output in zip(eqn.outvars, outputs, strict=True):
        expected, got = evaluation.shape(variable), jnp.shape(kept_of(output))
        if expected != got:
            raise ValueError(
                f"Shrinking '{eqn.primitive.name}' gave shape {got}; the coupling says {expected}. This is a "
                "defect of jaxprune: please report it. Meanwhile leave these layers out with `protect=`."
            )
    return outputs


def _kept(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    name = eqn.primitive.name
    if name in evaluation.ends:
        return [evaluation.parts[name](evaluation, eqn, operands, i, ()) for i in range(len(eqn.outvars))]
    rule, small = evaluation.rules.get(name), [kept_of(operand) for operand in operands]
    return bind(eqn, *small) if rule is None else rule(evaluation, eqn, *small)


def _with_parts(evaluation: Evaluation, eqn: JaxprEqn, operands: Sequence[Any], index: int, kept: Any) -> Any:
    value = evaluation.value(eqn.outvars[index])
    if not evaluation.regions(value):
        return kept

    @functools.cache
    def part(region: Region) -> Any:
        array = evaluation.parts[eqn.primitive.name](evaluation, eqn, operands, index, region)
        return fitted(array, evaluation.part_shape(kept.shape, value, region))

    return Parted(kept, part)


def fitted(array: Any, shape: Shape) -> Any:
    """An array that is equal along some axes, with one position or all of them there."""
    for axis, width in enumerate(shape):
        if width == 1 < array.shape[axis]:
            array = lax.slice_in_dim(array, 0, 1, axis=axis)
    return array if array.shape == shape else jnp.broadcast_to(array, shape)
