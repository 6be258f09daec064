"""Union-find over integer labels, on whole arrays at a time.

Every axis of every value in a program carries one label per position. Rules join labels that must live and die
together; joining two arrays of a thousand labels is a few NumPy passes, not a thousand Python calls.
"""

import dataclasses
from typing import TypeAlias

import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Int32

from jaxprune._jaxpr.primitives import FROZEN
from jaxprune._jaxpr.walker import source_among

Labels: TypeAlias = Int32[np.ndarray, "_"]

_ROOM = 1024  # labels before more memory is taken


@dataclasses.dataclass(frozen=True)
class NoRule:
    """The reason of what a primitive without a rule touches."""

    primitive: str

    def __str__(self) -> str:
        reason = FROZEN.get(self.primitive)
        return f"'{self.primitive}' has no rule and touches it" + (f": {reason}" if reason else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """The reason of what was joined with positions that must be kept.

    Attributes:
      reason: Theirs.
      equations: The one that joined them, and those that hold it, from the innermost.
    """

    reason: str | NoRule
    equations: tuple[JaxprEqn, ...]

    def __str__(self) -> str:
        return f"{self.reason}, joined by '{self.equations[0].primitive.name}' at {source_among(self.equations)}"


Reason: TypeAlias = str | NoRule | Joined
"""Why positions must be kept; `str` of it is the sentence."""


def root_reason(reason: Reason) -> str | NoRule:
    """The reason of the positions that were frozen first."""
    return reason.reason if isinstance(reason, Joined) else reason


class Forest:
    """Disjoint sets of labels, each with a tag and, if it must not be pruned, a reason.

    The root of a set is its smallest label, so parents never form a cycle. `tag` says what a set holds (0: no
    parameter); where two sets are joined, the larger tag stays. A set that is joined with a frozen one is not merged
    with it but frozen too, so that each keeps its own reason.

    Attributes:
      equations: What joins labels at the moment: an equation, and those that hold it, from the innermost.
    """

    def __init__(self) -> None:
        self.size = 1
        self.parent = np.arange(_ROOM, dtype=np.int32)
        self.tag = np.zeros(_ROOM, np.int32)
        self.reason = np.zeros(_ROOM, np.int32)
        self.reasons: list[Reason] = [""]
        self.equations: tuple[JaxprEqn, ...] = ()
        self._reason_index: dict[Reason | tuple[str | NoRule, int], int] = {}
        self._reason_label: dict[int, int] = {}

    def fresh(self, count: int, tag: int = 0) -> Labels:
        """New labels, each its own set."""
        start, self.size = self.size, self.size + count
        if self.size > len(self.parent):
            capacity = max(2 * len(self.parent), self.size)
            grown = np.arange(capacity, dtype=np.int32)
            grown[:start] = self.parent[:start]
            self.parent = grown
            self.tag = np.concatenate([self.tag, np.zeros(capacity - len(self.tag), np.int32)])
            self.reason = np.concatenate([self.reason, np.zeros(capacity - len(self.reason), np.int32)])
        if tag:
            self.tag[start : self.size] = tag
        return np.arange(start, self.size, dtype=np.int32)

    def frozen(self, count: int, reason: Reason) -> Labels:
        """One label for all positions, never to be pruned. Takes no memory per position."""
        index = self._index(reason, reason)
        label = self._reason_label.get(index)
        if label is None:
            label = self._reason_label[index] = int(self.fresh(1)[0])
            self.reason[label] = index
        return np.broadcast_to(np.int32(label), (count,))

    def _index(self, key: Reason | tuple[str | NoRule, int], reason: Reason) -> int:
        """The place of a reason among all of them."""
        index = self._reason_index.setdefault(key, len(self.reasons))
        if index == len(self.reasons):
            self.reasons.append(reason)
        return index

    def find(self, labels: Labels) -> Labels:
        """The root of each label; shortens the paths it walks."""
        if labels.strides == (0,) and len(labels) > 1:
            return np.broadcast_to(self.find(labels[:1])[0], labels.shape)
        root = self.parent[labels]
        while True:
            above = self.parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self.parent[labels] = root
        return root

    def union(self, first: Labels, second: Labels) -> None:
        """Joins the labels of two arrays, position by position."""
        if first is second:
            return
        if first.strides == (0,) and second.strides == (0,):
            first, second = first[:1], second[:1]
        while True:
            a, b = self.find(first), self.find(second)
            fixed, other = self.reason[a], self.reason[b]
            met = (fixed == 0) != (other == 0)
            if met.any():
                self._freeze_with(np.where(fixed == 0, a, b)[met], np.where(fixed == 0, other, fixed)[met])
                continue
            apart = (a != b) & (fixed == 0)
            if not apart.any():
                return
            low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
            # A root that is in several pairs goes below the smallest of its partners; the next round joins the others.
            np.minimum.at(self.parent, high, low)
            tags = self.tag[high]
            if tags.any():
                # That partner may have got a parent of its own in this round, so the tag goes to its root.
                np.maximum.at(self.tag, self.find(high), tags)

    def _freeze_with(self, roots: Labels, reasons: Labels) -> None:
        """Freezes sets that meet frozen ones, of which the reasons are given."""
        if self.equations:
            present, inverse = np.unique(reasons, return_inverse=True)
            reasons = np.array([self._joined(index) for index in present.tolist()], np.int32)[inverse]
        # Of several reasons the first stays, since it is written last.
        self.reason[roots[::-1]] = reasons[::-1]

    def _joined(self, index: int) -> int:
        """The place of the reason of what the equation at hand joins with positions that are frozen for another."""
        reason = root_reason(self.reasons[index])
        # An equation that a reason holds is alive, so its identity is its own.
        return self._index((reason, id(self.equations[0])), Joined(reason, self.equations))

    def freeze(self, labels: Labels, reason: Reason) -> None:
        """Freezes what is not frozen yet, for a reason."""
        roots = self.find(labels)
        roots = roots[self.reason[roots] == 0]
        if len(roots):
            self.reason[roots] = self._index(reason, reason)

    def sets(self, labels: Labels) -> Labels:
        """A number for the set of each label, 0 for all that must be kept."""
        roots = self.find(labels)
        return np.where(self.reason[roots] == 0, roots, 0)

    def is_frozen(self, labels: Labels) -> np.ndarray:
        """Per position: must it be kept?"""
        return self.reason[self.find(labels)] != 0

    def all_frozen(self, labels: Labels) -> bool:
        """Must every position be kept?"""
        return bool(self.is_frozen(labels).all())

    def tags(self, labels: Labels) -> np.ndarray:
        """The tag of each position's set."""
        return self.tag[self.find(labels)]

    def why(self, label: int) -> Reason:
        """The reason that froze this label first, or the empty string."""
        return self.reasons[int(self.reason[self.find(np.array([label], np.int32))[0]])]
