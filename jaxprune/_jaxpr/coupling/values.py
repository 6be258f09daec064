"""What the label pass knows about a value, and the context that its rules share."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jaxtyping import Shaped

from jaxprune._jaxpr.coupling import integers
from jaxprune._jaxpr.coupling.forest import Forest, Labels
from jaxprune._jaxpr.symbols import Sizes
from jaxprune._jaxpr.walker import Rule, source_among, walk


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A value that is a parameter leaf, up to casts and the order of axes.

    Attributes:
      index: Position of the leaf in the flattened parameters.
      axes: The leaf's axis behind each axis of the value, -1 for none.
    """

    index: int
    axes: tuple[int, ...]


class Holds(enum.IntEnum):
    """What a value holds at the removed positions of an axis. Of two, the larger says less.

    Attributes:
      ZERO: 0.
      EQUAL: The same at all of them, computed from what is kept: masked weights start as 0, and elementwise functions
        do the same to each.
      VARIED: Something else at each, computed from constants too: a table of positions was added.
      UNKNOWN: What is not computed.
    """

    ZERO = 0
    EQUAL = 1
    VARIED = 2
    UNKNOWN = 3


@dataclasses.dataclass(frozen=True)
class Value:
    """Labels of one value.

    Attributes:
      axes: One label array per axis.
      holds: Per axis: what the value holds wherever a position of that axis is removed.
      const: The value itself, where it is a known scalar (or one broadcast).
      leaf: The parameter it is, if it is one.
      summed: Labels of the axes that a sum has removed, for a later division by their count.
      positions: Labels of the axis whose positions its numbers are: of what `iota` counts, or `top_k` chose from.
      known: The integers that it holds, if they depend on no argument.
    """

    axes: tuple[Labels, ...]
    holds: tuple[Holds, ...]
    const: float | None = None
    leaf: Leaf | None = None
    summed: tuple[Labels, ...] = ()
    positions: Labels | None = None
    known: Shaped[np.ndarray, "..."] | None = None

    def replace(self, **changes: Any) -> Value:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)


def labelled(axes: Sequence[Labels], holds: Sequence[Holds] | None = None) -> Value:
    """A value of which nothing is known but its labels, and what it holds where it is removed."""
    axes = tuple(axes)
    return Value(axes, (Holds.UNKNOWN,) * len(axes) if holds is None else tuple(holds))


def computed(operands: Sequence[Value], axis: int, width: int) -> Holds:
    """What a function of several operands holds along an axis of that width, if nothing says that it is 0."""
    return max([Holds.EQUAL, *(o.holds[axis] for o in operands if len(o.axes[axis]) == width)])


@dataclasses.dataclass
class Frame:
    """Labels of one walk through one jaxpr, kept for re-evaluation: a jaxpr that is called twice has two frames."""

    values: dict[Var, Value] = dataclasses.field(default_factory=dict)
    children: dict[tuple[int, int], Frame] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Split:
    """A place where one axis becomes two: a reshape of C into (H, D), or a convolution over groups.

    Attributes:
      primitive: "reshape" or "conv_general_dilated".
      inputs: Sizes of the axes on the operand's side.
      outputs: Sizes of the axes on the result's side.
      source: Where the user's program does it, "file:line (function)".
    """

    primitive: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class Pending:
    """Axes whose product is regrouped; which two of them correspond is decided when the whole program is known.

    Attributes:
      equations: The equation that regroups them, and those that hold it, from the innermost.
      inputs: Labels of the axes on the operand's side.
      outputs: Labels of the axes on the result's side.
    """

    equations: tuple[JaxprEqn, ...]
    inputs: tuple[Labels, ...]
    outputs: tuple[Labels, ...]

    @property
    def primitive(self) -> str:
        """The name of what regroups them."""
        return self.equations[0].primitive.name

    @property
    def source(self) -> str:
        """Where the user's program does it."""
        return source_among(self.equations)

    def split(self) -> Split:
        """What a callable `split` of the user's is given."""
        widths = [tuple(len(labels) for labels in side) for side in (self.inputs, self.outputs)]
        return Split(self.primitive, widths[0], widths[1], self.source)


@dataclasses.dataclass(frozen=True)
class Term:
    """Multiply-accumulates of one contraction: `times` the product of the widths of `axes`."""

    times: int
    axes: tuple[Labels, ...]
    leaf: int | None


@dataclasses.dataclass(frozen=True)
class Choice:
    """A place where the program takes the `count` largest along an axis, of which that many must be left."""

    count: int
    labels: Labels
    source: str


Evidence: TypeAlias = Literal["labels", "operand", "result"]
"""What decides a regrouping: labels that leave one way, else the wish of the user, first where the operand holds
parameters and then also where the result alone does, as where a constant is brought into shape."""

Choose: TypeAlias = Callable[["Labeling", Pending, list[int], list[int], Evidence], tuple[int, int] | None]


@dataclasses.dataclass
class Labeling:
    """The state of a label pass.

    Attributes:
      forest: Which labels are joined.
      visit: Labels the outputs of an equation.
      choose: Decides a pending regrouping, given the axes of either side that are not frozen, and on what evidence: the
        indices of the operand's and the result's axis that correspond, or `None` to leave it undecided.
      sizes: Numbers that stand for symbolic sizes.
      exact: Whether what a sum or a maximum takes in at removed positions must be known.
      frame: Where to keep the values of the jaxpr being walked, if they are to be kept.
      times: Product of the lengths of the enclosing scans.
      scan: Which outermost scan is being walked, 0 for none.
      pending: Regroupings to be decided by `regroup.decide_pending`.
      terms: Multiply-accumulates of the contractions met so far.
      choices: Where the largest along an axis are taken that may be pruned.
      contracted: (leaf, axis) pairs that a contraction sums over.
      used: Leaves in the order in which the program reads them.
      stacked: For each leaf, the outermost scans that step along it, and along which axis.
      escaped: Labels of values outside the bodies of outermost scans.
      inside: Labels of axes inside of these, by their identity. All layers have one shape.
      divisions: Labels of axes whose removed positions are divided by 0, with the primitive and where it is.
      enclosing: The equations that hold the jaxpr being walked, from the innermost.
    """

    forest: Forest
    visit: Rule
    choose: Choose
    sizes: Sizes
    exact: bool = True
    frame: Frame | None = None
    times: int = 1
    scan: int = 0
    scans: int = 0
    pending: list[Pending] = dataclasses.field(default_factory=list)
    terms: list[Term] = dataclasses.field(default_factory=list)
    choices: list[Choice] = dataclasses.field(default_factory=list)
    contracted: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    used: dict[int, None] = dataclasses.field(default_factory=dict)
    stacked: dict[int, set[tuple[int, int]]] = dataclasses.field(default_factory=dict)
    escaped: list[Labels] = dataclasses.field(default_factory=list)
    inside: dict[int, Labels] = dataclasses.field(default_factory=dict)
    divisions: list[tuple[Labels, str]] = dataclasses.field(default_factory=list)
    enclosing: tuple[JaxprEqn, ...] = ()

    def fresh(self, shape: Sequence[int], holds: Holds = Holds.UNKNOWN) -> Value:
        """A value whose axes are free."""
        return labelled([self.forest.fresh(n) for n in shape], [holds] * len(shape))

    def literal(self, value: Any) -> Value:
        """The value of a literal or a constant."""
        found = self.fresh(np.shape(value), Holds.VARIED)
        return found.replace(const=scalar(value), known=integers.known(value))

    def require(self, eqn: JaxprEqn, labels: Labels, holds: Holds) -> None:
        """Freezes an axis that an equation ends, if what is removed of it would count and is not known."""
        if holds is Holds.UNKNOWN and self.exact:
            name, source = eqn.primitive.name, self.source(eqn)
            self.forest.freeze(
                labels, f"'{name}' at {source} takes in values that are not known where they are removed"
            )

    def run(
        self, eqn: JaxprEqn, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Value], branch: int = 0
    ) -> list[Value]:
        """Walks a jaxpr that `eqn` holds, in a frame of its own."""
        outer = self.frame
        if outer is not None:
            self.frame = outer.children[id(eqn), branch] = Frame()
        within = self.forest.equations
        self.enclosing = (eqn, *self.enclosing)
        outputs = self.walk(jaxpr, constants, arguments)
        self.enclosing = self.enclosing[1:]
        self.forest.equations = within
        self.frame = outer
        return outputs

    def source(self, eqn: JaxprEqn) -> str:
        """Where the user's program made an equation; what a library made is where the library was called."""
        return source_among((eqn, *self.enclosing))

    def walk(self, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Walks a jaxpr in the current frame."""
        keep = None if self.frame is None else self.frame.values
        values = [self.literal(constant) for constant in constants]
        return walk(jaxpr, arguments, self.visit, self, literal=self.literal, constants=values, keep=keep)


def scalar(value: Any) -> float | None:
    """A concrete scalar number as a float, anything else as `None`."""
    if np.shape(value) != () or isinstance(value, str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
    except Exception as error:  # a constant may be a tracer, which has no value
        if "Tracer" in type(error).__name__ or "Concretization" in type(error).__name__:
            return None
        raise
