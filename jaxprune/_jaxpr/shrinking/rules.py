"""Evaluation rules of primitives whose parameters hold a shape, or that hold jaxprs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn

from jaxprune._jaxpr.contractions import grouping
from jaxprune._jaxpr.primitives import (
    CHOICES,
    COMPOSED,
    GENERATED,
    PLAIN_CALLS,
    choice_axis,
    inner_jaxpr,
    manual_axes,
    scan_operands,
    while_operands,
)
from jaxprune._jaxpr.shrinking import derivatives, indexing
from jaxprune._jaxpr.shrinking.evaluation import Evaluation, Kept, kept_of
from jaxprune._jaxpr.walker import bind, jaxpr_and_constants, shape_of


def made_whole(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """Makes a value at full size and takes what stays, so that `iota` and random bits are those of the full model."""
    outputs = bind(eqn, *operands)
    return [evaluation.take(o, evaluation.kept_axes(v)) for o, v in zip(outputs, eqn.outvars, strict=True)]


def broadcast(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """To the smaller shape."""
    return bind(eqn, *operands, shape=evaluation.shape(eqn.outvars[0]))


def reshape(evaluation: Evaluation, eqn: JaxprEqn, operand: Any) -> Sequence[Any]:
    """To the smaller shape."""
    return bind(eqn, operand, new_sizes=evaluation.shape(eqn.outvars[0]))


def split(evaluation: Evaluation, eqn: JaxprEqn, operand: Any) -> Sequence[Any]:
    """Into smaller parts."""
    axis = eqn.params["axis"]
    return bind(eqn, operand, sizes=tuple(evaluation.shape(out)[axis] for out in eqn.outvars))


def pad(evaluation: Evaluation, eqn: JaxprEqn, operand: Any, fill: Any) -> Sequence[Any]:
    """As many padded positions as stay."""
    return [padded(evaluation, eqn, operand, fill, evaluation.kept_axes(eqn.outvars[0]))]


def padded(evaluation: Evaluation, eqn: JaxprEqn, operand: Any, fill: Any, taken: Sequence[Kept | None]) -> Any:
    """What a `pad` makes, given which positions of each axis the result has."""
    config = list(eqn.params["padding_config"])
    picks: dict[int, np.ndarray] = {}
    for axis, kept in enumerate(taken):
        if kept is None:
            continue
        low, _, _ = config[axis]
        before = (kept.indices < low).sum(-1)
        inside = (kept.indices < low + shape_of(eqn.invars[0])[axis]).sum(-1)
        config[axis] = (int(before.max()), int((kept.count - inside).max()), 0)
        if before.min() < before.max() or inside.min() < inside.max():
            # Layers of a scan that are padded by other counts: each takes its own of what is padded for all.
            picks[axis] = (before.max() - before)[:, None] + np.arange(kept.count)
    (whole,) = bind(eqn, operand, fill, padding_config=tuple(config))
    for axis, indices in picks.items():
        whole = evaluation.take_axis(whole, indices, axis)
    return whole


def convolve(evaluation: Evaluation, eqn: JaxprEqn, image: Any, kernel: Any) -> Sequence[Any]:
    """With fewer groups if whole groups went, else with narrower ones."""
    groups = eqn.params["feature_group_count"]
    if groups > 1:
        numbers = eqn.params["dimension_numbers"]
        groups = image.shape[numbers.lhs_spec[1]] // kernel.shape[numbers.rhs_spec[1]]
    if grouping(eqn) == "plain":
        groups = 1
    return bind(eqn, image, kernel, feature_group_count=groups)


def divide(evaluation: Evaluation, eqn: JaxprEqn, top: Any, bottom: Any) -> Sequence[Any]:
    """Under `small`, a sum over a pruned axis that is divided by its width is divided by the smaller width."""
    if evaluation.small:
        summed, count = evaluation.value(eqn.invars[0]).summed, evaluation.value(eqn.invars[1]).const
        counts = [(len(labels), evaluation.kept(labels)) for labels in summed]
        full = math.prod(n for n, _ in counts)
        left = math.prod(n if kept is None else kept.count for n, kept in counts)
        if counts and full != left and count is not None and 0 <= full - count <= 1:
            less = full - count
            # Where sizes are symbols, these numbers only have the right ratio.
            symbolic = evaluation.labeling.sizes.any
            bottom = (bottom + less) * left / full - less if symbolic else jnp.full_like(bottom, left - less)
    return bind(eqn, top, bottom)


def top_k(evaluation: Evaluation, eqn: JaxprEqn, operand: Any) -> Sequence[Any]:
    """Under `small`, the largest of what is left, by their positions in the whole."""
    kept = evaluation.kept_axes(eqn.invars[0])[choice_axis(eqn)]
    values, positions = bind(eqn, operand)
    return [values, positions if kept is None else evaluation.original(positions, kept)]


def call(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`jit` and other plain calls: what is inside."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *map(kept_of, operands))
    return evaluation.child(eqn).run(*inner_jaxpr(eqn), operands)


def remat(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`jax.checkpoint` of what is inside, under the same policy."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *map(kept_of, operands))
    inside, (jaxpr, constants) = evaluation.child(eqn), inner_jaxpr(eqn)
    values, outputs = evaluation.values(eqn.invars), evaluation.values(eqn.outvars)

    def flat(*xs: Any) -> list[Any]:
        return inside.pack(inside.run(jaxpr, constants, inside.unpack(xs, values)), outputs, outputs)

    again = jax.checkpoint(flat, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return evaluation.unpack(again(*evaluation.pack(operands, values, values)), outputs)


def cond(evaluation: Evaluation, eqn: JaxprEqn, index: Any, *operands: Any) -> Sequence[Any]:
    """The same choice between smaller branches."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *map(kept_of, (index, *operands)))
    values, outputs = evaluation.values(eqn.invars[1:]), evaluation.values(eqn.outvars)

    def branch(number: int) -> Callable[..., list[Any]]:
        inside, branch_jaxpr = evaluation.child(eqn, number), eqn.params["branches"][number]
        jaxpr, constants = jaxpr_and_constants(branch_jaxpr)

        def flat(*xs: Any) -> list[Any]:
            results = inside.run(jaxpr, constants, inside.unpack(xs, values))
            return inside.pack(results, inside.values(jaxpr.outvars), outputs)

        return flat

    branches = [branch(i) for i in range(len(eqn.params["branches"]))]
    flat = evaluation.pack(operands, values, values)
    platforms = eqn.params.get("branches_platforms")
    if platforms is None:
        return evaluation.unpack(lax.switch(kept_of(index), branches, *flat), outputs)
    chosen = {name: branch for names, branch in zip(platforms, branches, strict=True) for name in names or ("default",)}
    return evaluation.unpack(lax.platform_dependent(*flat, **chosen), outputs)


def while_loop(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same loop over a smaller carry."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *map(kept_of, operands))
    values = evaluation.values(eqn.invars)
    *constants, first = while_operands(eqn, operands)
    *constant_values, first_values = while_operands(eqn, values)
    carry = evaluation.values(eqn.outvars)
    flat = [evaluation.pack(xs, vs, vs) for xs, vs in zip(constants, constant_values, strict=True)]

    def run(number: int, name: str, xs: Sequence[Any]) -> tuple[Evaluation, Jaxpr, list[Any]]:
        inside, (jaxpr, own) = evaluation.child(eqn, number), jaxpr_and_constants(eqn.params[name])
        given = [*inside.unpack(flat[number], constant_values[number]), *inside.unpack(xs, carry)]
        return inside, jaxpr, inside.run(jaxpr, own, given)

    def body(xs: list[Any]) -> list[Any]:
        inside, jaxpr, results = run(1, "body_jaxpr", xs)
        return inside.pack(results, inside.values(jaxpr.outvars), carry)

    last = lax.while_loop(
        lambda xs: kept_of(run(0, "cond_jaxpr", xs)[2][0]), body, evaluation.pack(first, first_values, carry)
    )
    return evaluation.unpack(last, carry)


def scan(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same loop over smaller slices; counts layers, for constants that each layer takes its own part of."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *map(kept_of, operands))
    constants, first, scanned = scan_operands(eqn, operands)
    of_constants, of_first, of_scanned = scan_operands(eqn, evaluation.values(eqn.invars))
    outermost, frame = evaluation.layer is None, evaluation.child(eqn).frame
    jaxpr, own = jaxpr_and_constants(eqn.params["jaxpr"])
    inside = evaluation.within(frame)
    fixed, carry, slices = scan_operands(eqn, inside.values(jaxpr.invars))
    results = inside.values(jaxpr.outvars)
    around = evaluation.pack(constants, of_constants, fixed)

    def body(carried: list[Any], step: tuple[Any, list[Any]]) -> tuple[list[Any], list[Any]]:
        layer, parts = step
        here = evaluation.within(frame, layer if outermost else None)
        pairs = ((around, fixed), (carried, carry), (parts, slices))
        outputs = here.run(jaxpr, own, [x for flat, values in pairs for x in here.unpack(flat, values)])
        n = len(carry)
        return here.pack(outputs[:n], results[:n], carry), here.pack(outputs[n:], results[n:], results[n:])

    steps = (jnp.arange(eqn.params["length"], dtype=jnp.int32), evaluation.pack(scanned, of_scanned, slices, steps=1))
    last, stacked = lax.scan(
        body,
        evaluation.pack(first, of_first, carry),
        steps,
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    return [*evaluation.unpack(last, carry), *evaluation.unpack(stacked, results[len(carry) :], steps=1)]


def shard_map(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same mesh, with smaller parts on each device."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *operands)
    inside, (jaxpr, constants), params = evaluation.child(eqn), inner_jaxpr(eqn), eqn.params
    again = jax.shard_map(
        lambda *xs: tuple(inside.run(jaxpr, constants, xs)),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=set(manual_axes(eqn)),
        check_vma=params["check_vma"],
    )
    return again(*operands)


def custom_jvp(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same function under the same rule for its derivative."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *map(kept_of, operands))
    return derivatives.forward(evaluation, eqn, *operands)


def custom_vjp(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same function under the same rule for its gradient."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *map(kept_of, operands))
    return derivatives.backward(evaluation, eqn, *operands)


def _shrinks(evaluation: Evaluation, eqn: JaxprEqn) -> bool:
    return any(evaluation.shrinks(frame) for frame in evaluation.children(eqn))


RULES: dict[str, Callable[..., Sequence[Any]]] = {
    **dict.fromkeys(GENERATED, made_whole),
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "split": split,
    "pad": pad,
    **indexing.RULES,
    "conv_general_dilated": convolve,
    "div": divide,
    **dict.fromkeys(CHOICES, top_k),
}
# Their operands and results carry what is held at removed positions.
NESTED: dict[str, Callable[..., Sequence[Any]]] = {
    **dict.fromkeys((*PLAIN_CALLS, *COMPOSED), call),
    "remat2": remat,
    "cond": cond,
    "while": while_loop,
    "scan": scan,
    "shard_map": shard_map,
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
}
