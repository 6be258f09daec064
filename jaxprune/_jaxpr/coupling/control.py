"""Label rules of primitives that hold jaxprs: loops, branches, calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.coupling.forest import Labels
from jaxprune._jaxpr.coupling.values import Holds, Labeling, Leaf, Value
from jaxprune._jaxpr.primitives import CALLS, COMPOSED, inner_jaxpr, scan_operands, while_operands
from jaxprune._jaxpr.walker import jaxpr_and_constants


def call(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """`jit`, `remat2`, `custom_jvp_call`, `custom_vjp_call`: what is inside."""
    return labeling.run(eqn, *inner_jaxpr(eqn), operands)


def cond(labeling: Labeling, eqn: JaxprEqn, index: Value, *operands: Value) -> list[Value]:
    """All branches agree on every width."""
    branches = [
        labeling.run(eqn, *jaxpr_and_constants(branch), operands, i) for i, branch in enumerate(eqn.params["branches"])
    ]
    return [_either(labeling, *outputs) for outputs in zip(*branches, strict=True)]


def while_loop(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Joins what is carried in with what is carried out."""
    test_constants, constants, carry = while_operands(eqn, operands)
    body = jaxpr_and_constants(eqn.params["body_jaxpr"])
    carry, _ = _fixed_point(labeling, carry, lambda carry: labeling.run(eqn, *body, (*constants, *carry), 1))
    labeling.run(eqn, *jaxpr_and_constants(eqn.params["cond_jaxpr"]), (*test_constants, *carry), 0)
    return carry


def scan(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Joins what is carried; leaves that are scanned over may keep other units in each layer."""
    constants, carry, scanned = scan_operands(eqn, operands)
    length = labeling.sizes.of(eqn.params["length"])
    outermost = labeling.scan == 0
    if outermost:
        labeling.scans += 1
        labeling.scan = labeling.scans
        _note_stacks(labeling, scanned)
        for value in (*constants, *carry):
            labeling.escaped += value.axes
    for value in scanned:
        labeling.forest.freeze(value.axes[0], "'scan' steps along it")
    slices = [_slice(value) for value in scanned]
    labeling.times *= length
    body = jaxpr_and_constants(eqn.params["jaxpr"])
    carry, stacked = _fixed_point(
        labeling, carry, lambda carry: labeling.run(eqn, *body, (*constants, *carry, *slices))
    )
    labeling.times //= max(length, 1)
    if outermost:
        labeling.scan = 0
        for value in (*carry, *stacked):
            labeling.escaped += value.axes
    along = labeling.forest.frozen(length, "'scan' steps along it")
    return [*carry, *(_stacked(v, along) for v in stacked)]


def _stacked(value: Value, along: Labels) -> Value:
    """What each step of a loop gives, of all steps."""
    holds = (Holds.UNKNOWN, *value.holds)
    return value.replace(axes=(along, *value.axes), holds=holds, const=None, leaf=None, known=None)


def _note_stacks(labeling: Labeling, scanned: Sequence[Value]) -> None:
    for value in scanned:
        if value.leaf is not None and value.leaf.axes[0] >= 0:
            labeling.stacked.setdefault(value.leaf.index, set()).add((labeling.scan, value.leaf.axes[0]))
        else:
            labeling.escaped += value.axes[1:]


def _slice(value: Value) -> Value:
    leaf = value.leaf and Leaf(value.leaf.index, value.leaf.axes[1:])
    return value.replace(axes=value.axes[1:], holds=value.holds[1:], leaf=leaf, const=None, known=None)


def _fixed_point(
    labeling: Labeling, carry: Sequence[Value], body: Callable[[Sequence[Value]], list[Value]]
) -> tuple[list[Value], list[Value]]:
    """Labels a loop's body until what is said of the carry before a step also holds after it.

    Returns the carry and the body's other outputs.
    """
    labeling.used |= dict.fromkeys(value.leaf.index for value in carry if value.leaf is not None)
    before = [value.replace(const=None, leaf=None, summed=(), positions=None, known=None) for value in carry]
    noted = (labeling.terms, labeling.pending, labeling.choices)
    counts = [len(notes) for notes in noted]
    while True:
        # What the last round noted is noted again.
        for notes, count in zip(noted, counts, strict=True):
            del notes[count:]
        outputs = body(before)
        after = [_either(labeling, *pair) for pair in zip(before, outputs, strict=False)]
        if not any(_says_less(labeling, b, a) for a, b in zip(before, after, strict=True)):
            return before, outputs[len(before) :]
        before = after


def _says_less(labeling: Labeling, value: Value, other: Value) -> bool:
    """Whether less is known of what a value holds at positions that may be removed."""
    return any(
        mine != theirs and not labeling.forest.all_frozen(labels)
        for labels, mine, theirs in zip(value.axes, value.holds, other.holds, strict=True)
    )


def _either(labeling: Labeling, *values: Value) -> Value:
    """One value that may be any of several."""
    first = values[0]
    for other in values[1:]:
        for a, b in zip(first.axes, other.axes, strict=True):
            labeling.forest.union(a, b)
    holds = tuple(map(max, *(value.holds for value in values))) if len(values) > 1 else first.holds
    return first.replace(holds=holds, const=None, leaf=None, summed=(), positions=None, known=None)


RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys((*CALLS, *COMPOSED), call),
    "cond": cond,
    "while": while_loop,
    "scan": scan,
}
