"""Re-evaluates a labelled jaxpr on smaller arrays: a rule for each primitive with a shape among its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jaxtyping import Int

from jaxprune._jaxpr.coupling.values import Frame, Labeling, Value
from jaxprune._jaxpr.walker import Rule, bind, shape_of, walk


@dataclasses.dataclass(frozen=True)
class Kept:
    """Positions of an axis that stay.

    Attributes:
      indices: `(kept,)`, or `(layers, kept)` where each layer of a scan keeps its own.
      size: Width of the whole axis.
    """

    indices: Int[np.ndarray, "..."]
    size: int

    @property
    def count(self) -> int:
        """How many stay."""
        return self.indices.shape[-1]


@dataclasses.dataclass
class Evaluation:
    """One re-evaluation.

    Attributes:
      labeling: The finished label pass of the same jaxpr, with its frames.
      removed: For each tag of the forest, whether its positions are removed: `(1,)`, or `(layers,)` for each layer.
      rules: Evaluation rules by primitive; primitives without one are bound with the parameters that they have.
      frame: Labels of the jaxpr being evaluated.
      layer: Which layer of the outermost scan is being evaluated.
      small: Divide sums over pruned axes by the count of what is left.
    """

    labeling: Labeling
    removed: Sequence[np.ndarray]
    rules: Mapping[str, Rule]
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
        return Kept(rows[0] if layers == 1 else np.stack(rows), len(labels))

    def value(self, atom: Any) -> Value:
        """Labels of an operand or result in the current frame."""
        return self.labeling.literal(atom.val) if isinstance(atom, Literal) else self.frame.values[atom]

    def kept_axes(self, atom: Any) -> list[Kept | None]:
        """What stays of each axis of an operand or result."""
        return [] if isinstance(atom, Literal) else [self.kept(labels) for labels in self.frame.values[atom].axes]

    def shape(self, atom: Any) -> tuple[int, ...]:
        """Shape of an operand or result once shrunk."""
        return tuple(
            width if kept is None else kept.count
            for width, kept in zip(shape_of(atom), self.kept_axes(atom), strict=True)
        )

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
        small = [
            self.take(constant, self.kept_axes(variable)) if np.shape(constant) else constant
            for variable, constant in zip(jaxpr.constvars, constants, strict=True)
        ]
        return walk(jaxpr, arguments, visit, self, literal=lambda value: value, constants=small)


def visit(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """Applies the rule of an equation and checks the shapes that the labels promise."""
    rule = evaluation.rules.get(eqn.primitive.name)
    outputs = bind(eqn, *operands) if rule is None else rule(evaluation, eqn, *operands)
    for variable, output in zip(eqn.outvars, outputs, strict=True):
        expected, got = evaluation.shape(variable), jnp.shape(output)
        if expected != got:
            raise ValueError(
                f"Shrinking '{eqn.primitive.name}' gave shape {got}; the coupling says {expected}. This is a "
                "defect of jaxprune: please report it. Meanwhile leave these layers out with `protect=`."
            )
    return outputs
