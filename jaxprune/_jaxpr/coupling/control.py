"""Label rules of primitives that hold jaxprs: loops, branches, calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.coupling.values import Labeling, Leaf, Value
from jaxprune._jaxpr.walker import held, opened, scan_counts


def call(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """`jit`, `remat`, `custom_jvp_call`, `custom_vjp_call`: what is inside."""
    return labeling.run(eqn, *opened(held(eqn)), operands)


def cond(labeling: Labeling, eqn: JaxprEqn, index: Value, *operands: Value) -> list[Value]:
    """All branches agree on every width."""
    branches = [labeling.run(eqn, *opened(branch), operands, i) for i, branch in enumerate(eqn.params["branches"])]
    return [_meet(labeling, *outputs) for outputs in zip(*branches, strict=True)]


def while_loop(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Joins what is carried in with what is carried out."""
    tests, bodies = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    constants, carry = operands[tests : tests + bodies], operands[tests + bodies :]
    body = opened(eqn.params["body_jaxpr"])
    carry, _ = _fixed(labeling, carry, lambda held: labeling.run(eqn, *body, (*constants, *held), 1))
    labeling.run(eqn, *opened(eqn.params["cond_jaxpr"]), (*operands[:tests], *carry), 0)
    return carry


def scan(labeling: Labeling, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Joins what is carried; leaves that are scanned over may keep other units in each layer."""
    fixed, carried = scan_counts(eqn.params)
    length = eqn.params["length"]
    constants, carry, scanned = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]
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
    body = opened(eqn.params["jaxpr"])
    carry, stacked = _fixed(labeling, carry, lambda held: labeling.run(eqn, *body, (*constants, *held, *slices)))
    labeling.times //= max(length, 1)
    if outermost:
        labeling.scan = 0
        for value in (*carry, *stacked):
            labeling.escaped += value.axes
    along = labeling.forest.frozen(length, "'scan' steps along it")
    return [*carry, *(v.but(axes=(along, *v.axes), zero=(False, *v.zero), const=None, leaf=None) for v in stacked)]


def _note_stacks(labeling: Labeling, scanned: Sequence[Value]) -> None:
    for value in scanned:
        if value.leaf is not None and value.leaf.axes[0] >= 0:
            labeling.stacked.setdefault(value.leaf.index, set()).add((labeling.scan, value.leaf.axes[0]))
        else:
            labeling.escaped += value.axes[1:]


def _slice(value: Value) -> Value:
    leaf = value.leaf and Leaf(value.leaf.index, value.leaf.axes[1:])
    return value.but(axes=value.axes[1:], zero=value.zero[1:], leaf=leaf, const=None)


def _fixed(
    labeling: Labeling, carry: Sequence[Value], body: Callable[[Sequence[Value]], list[Value]]
) -> tuple[list[Value], list[Value]]:
    """Runs a loop's body until what it carries claims no more than what comes back."""
    labeling.used |= dict.fromkeys(value.leaf.index for value in carry if value.leaf is not None)
    held = [value.but(const=None, leaf=None, summed=()) for value in carry]
    marks = len(labeling.terms), len(labeling.pending)
    while True:
        del labeling.terms[marks[0] :], labeling.pending[marks[1] :]
        outputs = body(held)
        met = [_meet(labeling, ours, theirs) for ours, theirs in zip(held, outputs, strict=False)]
        if all(ours.zero == theirs.zero for ours, theirs in zip(held, met, strict=True)):
            return held, outputs[len(held) :]
        held = met


def _meet(labeling: Labeling, *values: Value) -> Value:
    """One value that may be any of several."""
    first = values[0]
    for other in values[1:]:
        for a, b in zip(first.axes, other.axes, strict=True):
            labeling.forest.union(a, b)
    zero = tuple(all(holds) for holds in zip(*(value.zero for value in values), strict=True))
    return first.but(zero=zero, const=None, leaf=None, summed=())


CALLS = (
    "jit pjit closed_call core_call checkpoint remat remat2 custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr "
    "custom_lin xla_call"
).split()

RULES: dict[str, Callable[..., Sequence[Value]]] = {
    **dict.fromkeys(CALLS, call),
    "cond": cond,
    "while": while_loop,
    "scan": scan,
}
