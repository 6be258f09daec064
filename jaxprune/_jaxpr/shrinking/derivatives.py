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
from jaxprune._jaxpr.coupling.values import Frame, Value
from jaxprune._jaxpr.primitives import inner_jaxpr
from jaxprune._jaxpr.shrinking.evaluation import Evaluation
from jaxprune._jaxpr.walker import bind, jaxpr_and_constants, shape_of


def forward(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`custom_jvp_call` on smaller operands."""
    differentiable = _differentiable(eqn)
    values = [evaluation.value(atom).replace(leaf=None) for atom in eqn.invars]

    def function(layer: Any, *xs: Any) -> list[Any]:
        inside = evaluation.child(eqn)
        return inside.within(inside.frame, layer).run(*inner_jaxpr(eqn), xs)

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        layer, *primals_ = primals
        small_tangents = [tangents[1 + i] for i in differentiable]

        def full(xs: list[Any], directions: list[Any]) -> Any:
            return jax.jvp(_only(eqn, xs, differentiable), [xs[i] for i in differentiable], directions)

        shapes = [_abstract(atom) for atom in eqn.invars]
        again = Replay(
            evaluation,
            full,
            (shapes, [shapes[i] for i in differentiable]),
            [*values, *(values[i] for i in differentiable)],
        )
        outputs = again(layer, [*primals_, *small_tangents])
        half = len(eqn.outvars)
        return outputs[:half], outputs[half:]

    small = jax.custom_jvp(function)
    small.defjvp(rule)
    return small(_layer(evaluation), *operands)


def backward(evaluation: Evaluation, eqn: JaxprEqn, *operands: Any) -> Sequence[Any]:
    """`custom_vjp_call` on smaller operands."""
    differentiable = _differentiable(eqn)
    values = [evaluation.value(atom).replace(leaf=None) for atom in eqn.invars]
    count = len(eqn.outvars)
    shapes = [_abstract(atom) for atom in eqn.invars]
    structure: list[Any] = []
    ahead: list[Replay] = []

    def function(layer: Any, *xs: Any) -> list[Any]:
        inside = evaluation.child(eqn)
        return inside.within(inside.frame, layer).run(*inner_jaxpr(eqn), xs)

    def full_forward(xs: list[Any]) -> Any:
        outputs, vjp_fun = jax.vjp(_only(eqn, xs, differentiable), *[xs[i] for i in differentiable])
        residuals, treedef = jax.tree.flatten(vjp_fun)
        structure[:] = [treedef]
        return list(outputs), residuals

    def full_backward(residuals: list[Any], cotangents: list[Any]) -> Any:
        return jax.tree.unflatten(structure[0], residuals)(cotangents)

    def forward_pass(layer: Any, *xs: Any) -> tuple[list[Any], tuple[Any, list[Any]]]:
        ahead[:] = [Replay(evaluation, full_forward, (shapes,), values)]
        outputs = ahead[0](layer, xs)
        return outputs[:count], (layer, outputs[count:])

    def backward_pass(saved: tuple[Any, list[Any]], cotangents: list[Any]) -> tuple[Any, ...]:
        layer, residuals = saved
        replay = ahead[0]
        known = [*replay.outputs[count:], *replay.outputs[:count]]
        again = Replay(evaluation, full_backward, (replay.shapes[count:], replay.shapes[:count]), known)
        gradients = iter(again(layer, [*residuals, *cotangents]))
        return (None, *(next(gradients) if i in differentiable else None for i in range(len(eqn.invars))))

    small = jax.custom_vjp(function)
    small.defvjp(forward_pass, backward_pass)
    return small(_layer(evaluation), *operands)


class Replay:
    """A function traced at full size, labelled from the labels of its operands, ready to run small.

    Attributes:
      outputs: Labels of its outputs.
      shapes: Their full shapes.
    """

    def __init__(
        self, evaluation: Evaluation, full: Callable[..., Any], shapes: tuple[Any, ...], values: Sequence[Value]
    ) -> None:
        labeling = evaluation.labeling
        self._jaxpr, self._constants = jaxpr_and_constants(jax.make_jaxpr(full)(*shapes))
        self._frame, outer = Frame(), labeling.frame
        labeling.frame = self._frame
        self.outputs = [value.replace(leaf=None) for value in labeling.walk(self._jaxpr, self._constants, list(values))]
        labeling.frame = outer
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
