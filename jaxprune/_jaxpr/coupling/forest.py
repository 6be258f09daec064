"""Union-find over integer labels, on whole arrays at a time.

Every axis of every value in a program carries one label per position. Rules join labels that must live and die
together; joining two arrays of a thousand labels is a few NumPy passes, not a thousand Python calls.
"""

import dataclasses
from typing import TypeAlias

import numpy as np
from jaxtyping import Int32

from jaxprune._jaxpr.primitives import FROZEN

Labels: TypeAlias = Int32[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True)
class NoRule:
    """The reason of what a primitive without a rule touches."""

    primitive: str

    def __str__(self) -> str:
        reason = FROZEN.get(self.primitive)
        return f"'{self.primitive}' has no rule and touches it" + (f": {reason}" if reason else "")


Reason: TypeAlias = str | NoRule
"""Why positions must be kept; `str` of it is the sentence."""


class Forest:
    """Disjoint sets of labels, each with a tag and, if it must not be pruned, a reason.

    The root of a set is its smallest label, so parents never form a cycle. `tag` says what a set holds (0: no
    parameter); where two sets are joined, the larger tag stays.
    """

    def __init__(self) -> None:
        self.size = 1
        self.parent = np.arange(1024, dtype=np.int32)
        self.tag = np.zeros(1024, np.int32)
        self.reason = np.zeros(1024, np.int32)
        self.reasons: list[Reason] = [""]
        self._reason_label: dict[Reason, int] = {}

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
        label = self._reason_label.get(reason)
        if label is None:
            label = int(self.fresh(1)[0])
            self.reasons.append(reason)
            self.reason[label] = len(self.reasons) - 1
            self._reason_label[reason] = label
        return np.broadcast_to(np.int32(label), (count,))

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
            # Of what is kept on either side each keeps its own reason.
            apart = (a != b) & ((self.reason[a] == 0) | (self.reason[b] == 0))
            if not apart.any():
                return
            low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
            # A root that is in several pairs goes below the smallest of its partners; the next round joins the others.
            np.minimum.at(self.parent, high, low)
            # That partner may have got a parent of its own in this round, so the tag and the reason go to its root.
            self._merge(self.find(high), high)

    def _merge(self, low: Labels, high: Labels) -> None:
        tags = self.tag[high]
        if tags.any():
            np.maximum.at(self.tag, low, tags)
        frozen = self.reason[high] != 0
        if frozen.any():
            # A reason that the root has already stays. Of several new ones the first stays, since it is written last.
            roots, reasons = low[frozen][::-1], self.reason[high][frozen][::-1]
            free = self.reason[roots] == 0
            self.reason[roots[free]] = reasons[free]

    def freeze(self, labels: Labels, reason: Reason) -> None:
        """Joins what is not frozen yet with `reason`."""
        free = labels[~self.is_frozen(labels)]
        if len(free):
            self.union(free, self.frozen(len(free), reason))

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
