"""Functions with their own derivative rules, evaluated small under the same rules.

Inlining `relu` would change its gradient at 0. The rule of the full function is traced at full size through the public
`jax.jvp` and `jax.vjp`, then labelled and re-evaluated like everything else, and only when a derivative is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxprune._jaxpr.coupling import regroup
from jaxprune._jaxpr.coupling.values import Frame, Holds, Value
from jaxprune._jaxpr.primitives import inner_jaxpr
from jaxprune._jaxpr.shrinking.evaluation import Evaluation
from jaxprune._jaxpr.walker import bind, jaxpr_and_constants, shape_of


def forward(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`custom_jvp_call` on smaller operands."""
    differentiable = _differentiable(eqn)
    values = [value.replace(leaf=None) for value in evaluation.values(eqn.invars)]
    directions = [values[i] for i in differentiable]
    outputs = evaluation.values(eqn.outvars)

    def function(layer: Any, *xs: Any) -> list[Any]:
        child = evaluation.child(eqn)
        inside = child.within(child.frame, layer)
        return inside.pack(inside.run(*inner_jaxpr(eqn), inside.unpack(xs, values)), outputs, outputs)

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        layer, *primals_ = primals
        # The tangent of what is not differentiable has no labels of its own.
        places, start = [], 0
        for i, value in enumerate(values):
            count = 1 + len(evaluation.regions(value))
            places += range(start, start + count) if i in differentiable else ()
            start += count
        small_tangents = [tangents[1 + place] for place in places]

        def full(xs: list[Any], directions: list[Any]) -> Any:
            return jax.jvp(_only(eqn, xs, differentiable), [xs[i] for i in differentiable], directions)

        shapes = [_abstract(atom) for atom in eqn.invars]
        again = Replay(
            evaluation,
            full,
            (shapes, [shapes[i] for i in differentiable]),
            [*values, *directions],
            [*outputs, *outputs],
        )
        given = [*evaluation.unpack(primals_, values), *evaluation.unpack(small_tangents, directions)]
        half, got = len(eqn.outvars), again(layer, given)
        return (
            evaluation.pack(got[:half], again.outputs[:half], outputs),
            evaluation.pack(got[half:], again.outputs[half:], outputs),
        )

    small = jax.custom_jvp(function)
    small.defjvp(rule)
    return evaluation.unpack(small(_layer(evaluation), *evaluation.pack(operands, values, values)), outputs)


def backward(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`custom_vjp_call` on smaller operands."""
    differentiable = _differentiable(eqn)
    values = [value.replace(leaf=None) for value in evaluation.values(eqn.invars)]
    outputs = evaluation.values(eqn.outvars)
    count = len(eqn.outvars)
    shapes = [_abstract(atom) for atom in eqn.invars]
    structure: list[Any] = []
    ahead: list[Replay] = []

    def function(layer: Any, *xs: Any) -> list[Any]:
        child = evaluation.child(eqn)
        inside = child.within(child.frame, layer)
        return inside.pack(inside.run(*inner_jaxpr(eqn), inside.unpack(xs, values)), outputs, outputs)

    def full_forward(xs: list[Any]) -> Any:
        results, vjp_fun = jax.vjp(_only(eqn, xs, differentiable), *[xs[i] for i in differentiable])
        residuals, treedef = jax.tree.flatten(vjp_fun)
        structure[:] = [treedef]
        return list(results), residuals

    def full_backward(residuals: list[Any], cotangents: list[Any]) -> Any:
        return jax.tree.unflatten(structure[0], residuals)(cotangents)

    def forward_pass(layer: Any, *xs: Any) -> tuple[list[Any], tuple[Any, list[Any]]]:
        ahead[:] = [Replay(evaluation, full_forward, (shapes,), values, outputs)]
        got, known = ahead[0](layer, evaluation.unpack(xs, values)), ahead[0].outputs
        residuals = evaluation.pack(got[count:], known[count:], known[count:])
        return evaluation.pack(got[:count], known[:count], outputs), (layer, residuals)

    def backward_pass(saved: tuple[Any, list[Any]], cotangents: list[Any]) -> tuple[Any, ...]:
        layer, residuals = saved
        replay = ahead[0]
        known = replay.outputs[count:]
        wanted = [values[i] for i in differentiable]
        again = Replay(
            evaluation,
            full_backward,
            (replay.shapes[count:], replay.shapes[:count]),
            [*known, *map(_cotangent, outputs)],
            wanted,
        )
        # A number of a part stands for all removed positions, and so does its cotangent, which is shared among them.
        shared = [
            x if times == 1 else x / times
            for x, times in zip(cotangents, _stands_for(evaluation, outputs), strict=True)
        ]
        gradients = again(layer, [*evaluation.unpack(residuals, known), *evaluation.unpack(shared, outputs)])
        flat = evaluation.pack(gradients, again.outputs, wanted)
        collected = iter(
            [x if times == 1 else x * times for x, times in zip(flat, _stands_for(evaluation, wanted), strict=True)]
        )
        filled: list[Any] = [None]
        for i, value in enumerate(values):
            for _ in range(1 + len(evaluation.regions(value))):
                filled.append(next(collected) if i in differentiable else None)
        return tuple(filled)

    small = jax.custom_vjp(function)
    small.defvjp(forward_pass, backward_pass)
    return evaluation.unpack(small(_layer(evaluation), *evaluation.pack(operands, values, values)), outputs)


def _stands_for(evaluation: Evaluation, values: Sequence[Value]) -> list[int]:
    """For how many positions each number of each packed array stands."""
    return [evaluation.times(value, region) for value in values for region in ((), *evaluation.regions(value))]


def _cotangent(value: Value) -> Value:
    """Labels of a result's cotangent. No kept number depends on what a result holds where that is not known."""
    holds = tuple(Holds.ZERO if held is Holds.UNKNOWN else held for held in value.holds)
    return value.replace(holds=holds, const=None)


class Replay:
    """A function traced at full size, labelled from the labels of its operands, ready to run small.

    Its first outputs are as wide as `like`, also where they are zeros that nothing ties to an operand.

    Attributes:
      outputs: Labels of its outputs.
      shapes: Their full shapes.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        full: Callable[..., Any],
        shapes: tuple[Any, ...],
        values: Sequence[Value],
        like: Sequence[Value],
    ) -> None:
        labeling = evaluation.labeling
        self._jaxpr, self._constants = jaxpr_and_constants(jax.make_jaxpr(full)(*shapes))
        self._frame, outer = Frame(), labeling.frame
        labeling.frame = self._frame
        self.outputs = [value.replace(leaf=None) for value in labeling.walk(self._jaxpr, self._constants, list(values))]
        labeling.frame = outer
        for output, wanted in zip(self.outputs, like, strict=False):
            for ours, theirs in zip(output.axes, wanted.axes, strict=True):
                if not labeling.forest.is_frozen(ours).any():
                    labeling.forest.union(ours, theirs)
        regroup.decide_pending(labeling)
        self.shapes = [_abstract(atom) for atom in self._jaxpr.outvars]
        self._evaluation = evaluation

    def __call__(self, layer: Any, arguments: Sequence[Any]) -> list[Any]:
        """Runs the function on small operands."""
        return self._evaluation.within(self._frame, layer).run(self._jaxpr, self._constants, list(arguments))


def _layer(evaluation: Evaluation) -> Any:
    # Passed as an operand: a function with its own derivative may not close over a traced counter.
    return jnp.int32(0) if evaluation.layer is None else evaluation.layer


def _differentiable(eqn: JaxprEqn) -> list[int]:
    return [i for i, atom in enumerate(eqn.invars) if jnp.issubdtype(_abstract(atom).dtype, jnp.inexact)]


def _abstract(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape_of(atom), atom.aval.dtype)


def _only(eqn: JaxprEqn, operands: Sequence[Any], differentiable: Sequence[int]) -> Callable[..., Any]:
    """The equation as a function of its differentiable operands."""

    def function(*xs: Any) -> list[Any]:
        filled = list(operands)
        for place, x in zip(differentiable, xs, strict=True):
            filled[place] = x
        return list(bind(eqn, *filled))

    return function
