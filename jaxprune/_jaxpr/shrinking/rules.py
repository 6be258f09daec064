"""Evaluation rules of primitives whose parameters hold a shape, or that hold jaxprs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.contractions import grouping
from jaxprune._jaxpr.primitives import COMPOSED, inner_jaxpr, scan_operands, while_operands
from jaxprune._jaxpr.shrinking import derivatives, indexing
from jaxprune._jaxpr.shrinking.evaluation import Evaluation
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
    config = list(eqn.params["padding_config"])
    for axis, kept in enumerate(evaluation.kept_axes(eqn.outvars[0])):
        if kept is None:
            continue
        low, _, _ = config[axis]
        before = (kept.indices < low).sum(-1)
        inside = (kept.indices < low + shape_of(eqn.invars[0])[axis]).sum(-1)
        if not (before.min() == before.max() and inside.min() == inside.max()):
            raise ValueError("'pad' adds other counts in each layer of a scan. Leave these units out with `protect=`.")
        config[axis] = (int(before.max()), int(kept.count - inside.max()), 0)
    return bind(eqn, operand, fill, padding_config=tuple(config))


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
        full = np.prod([n for n, _ in counts])
        left = np.prod([n if kept is None else kept.count for n, kept in counts])
        if counts and full != left and count is not None and 0 <= full - count <= 1:
            bottom = jnp.full_like(bottom, left - (full - count))
    return bind(eqn, top, bottom)


def call(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`jit` and other plain calls: what is inside."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *operands)
    return evaluation.child(eqn).run(*inner_jaxpr(eqn), operands)


def remat(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`jax.checkpoint` of what is inside, under the same policy."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *operands)
    inside, (jaxpr, constants) = evaluation.child(eqn), inner_jaxpr(eqn)
    again = jax.checkpoint(
        lambda *xs: inside.run(jaxpr, constants, xs),
        prevent_cse=eqn.params["prevent_cse"],
        policy=eqn.params["policy"],
    )
    return again(*operands)


def cond(evaluation: Evaluation, eqn: JaxprEqn, index: Any, *operands: Any) -> Sequence[Any]:
    """The same choice between smaller branches."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, index, *operands)

    def branch(number: int) -> Callable[..., list[Any]]:
        inside, branch_jaxpr = evaluation.child(eqn, number), eqn.params["branches"][number]
        jaxpr, constants = jaxpr_and_constants(branch_jaxpr)
        return lambda *xs: inside.run(jaxpr, constants, xs)

    return lax.switch(index, [branch(i) for i in range(len(eqn.params["branches"]))], *operands)


def while_loop(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same loop over a smaller carry."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *operands)
    test_constants, body_constants, first = while_operands(eqn, operands)
    test, body = jaxpr_and_constants(eqn.params["cond_jaxpr"]), jaxpr_and_constants(eqn.params["body_jaxpr"])
    in_test, in_body = evaluation.child(eqn, 0), evaluation.child(eqn, 1)
    return lax.while_loop(
        lambda carry: in_test.run(*test, [*test_constants, *carry])[0],
        lambda carry: in_body.run(*body, [*body_constants, *carry]),
        list(first),
    )


def scan(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same loop over smaller slices; counts layers, for constants that each layer takes its own part of."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *operands)
    constants, first, scanned = scan_operands(eqn, operands)
    outermost, frame = evaluation.layer is None, evaluation.child(eqn).frame
    jaxpr = jaxpr_and_constants(eqn.params["jaxpr"])

    def body(carry: list[Any], step: tuple[Any, list[Any]]) -> tuple[list[Any], list[Any]]:
        layer, slices = step
        inside = evaluation.within(frame, layer if outermost else None)
        outputs = inside.run(*jaxpr, [*constants, *carry, *slices])
        return outputs[: len(first)], outputs[len(first) :]

    length = eqn.params["length"]
    steps = (jnp.arange(length, dtype=jnp.int32), list(scanned))
    carry, stacked = lax.scan(
        body, list(first), steps, length=length, reverse=eqn.params["reverse"], unroll=eqn.params["unroll"]
    )
    return [*carry, *stacked]


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
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    return again(*operands)


def custom_jvp(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same function under the same rule for its derivative."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *operands)
    return derivatives.forward(evaluation, eqn, *operands)


def custom_vjp(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """The same function under the same rule for its gradient."""
    if not _shrinks(evaluation, eqn):
        return bind(eqn, *operands)
    return derivatives.backward(evaluation, eqn, *operands)


def _shrinks(evaluation: Evaluation, eqn: JaxprEqn) -> bool:
    return any(evaluation.shrinks(frame) for frame in evaluation.children(eqn))


RULES: dict[str, Callable[..., Sequence[Any]]] = {
    **dict.fromkeys(("iota", "random_bits", "rng_bit_generator", "rng_uniform", "random_split", "empty"), made_whole),
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "split": split,
    "pad": pad,
    **indexing.RULES,
    "conv_general_dilated": convolve,
    "div": divide,
    **dict.fromkeys(("jit", "closed_call", *COMPOSED), call),
    "remat2": remat,
    "cond": cond,
    "while": while_loop,
    "scan": scan,
    "shard_map": shard_map,
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
}
