"""What a strategy needs at a refresh: said by its type, never guessed from its signature; and its schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxprune._arrays import checks, tree
from jaxprune.typing import Grads, Masks, Params, PRNGKey, Sparsity

Schedule: TypeAlias = Callable[[Any], Any] | float
"""An optax schedule, or a constant."""

ParamsStrategy: TypeAlias = Callable[[Params, Sparsity | None], Masks]


@dataclasses.dataclass(frozen=True)
class WithGradients:
    """A strategy called with the step's gradients: `strategy(params, grads, sparsity)`.

    The gradients are those handed to the optimizer, of pruned weights too, before anything is hidden.

    Attributes:
      strategy: Such as `jaxprune.taylor`.
    """

    strategy: Callable[[Params, Grads, Sparsity | None], Masks]


@dataclasses.dataclass(frozen=True)
class WithKey:
    """A strategy called with a key: `strategy(key, params, sparsity)`.

    The key is the same at every refresh, so that masks nest as the sparsity grows.

    Attributes:
      strategy: Such as `jaxprune.random`.
      key: From `jax.random.key`.
    """

    strategy: Callable[[PRNGKey, Params, Sparsity | None], Masks]
    key: PRNGKey


Strategy: TypeAlias = ParamsStrategy | WithGradients | WithKey


def call(strategy: Strategy, params: Params, grads: Grads, sparsity: Sparsity | None) -> Masks:
    """Calls a strategy with what its type says it needs."""
    if isinstance(strategy, WithGradients):
        return strategy.strategy(params, grads, sparsity)
    if isinstance(strategy, WithKey):
        return strategy.strategy(strategy.key, params, sparsity)
    return strategy(params, sparsity)


def shapes(strategy: Strategy, params: Params, sparsity: Schedule | None) -> Masks:
    """The shapes of the masks that a strategy will return."""
    return jax.eval_shape(lambda p: call(strategy, p, p, at(sparsity, jnp.int32(0))), params)


def check(constant: Schedule | None, name: str) -> None:
    """Checks the fraction that a constant is, unless it is traced. A schedule is evaluated by `check_at`.

    Raises:
      ValueError: It is out of range or NaN.
      TypeError: It is not a number.
    """
    if constant is not None and not callable(constant):
        checks.fraction(constant, name)


def check_at(schedule: Schedule | None, name: str, *steps: int) -> None:
    """Checks the fractions that a schedule gives at some steps; errors as in `check`.

    In `init`: an optimizer may be made before JAX knows its devices, as `jax.distributed.initialize` demands.
    """
    if schedule is None or not callable(schedule):
        return
    given = list[Any]()

    def values() -> list[Any]:
        given.extend(schedule(jnp.int32(step)) for step in steps)
        return [value for value in given if tree.is_array(value)]

    with jax.ensure_compile_time_eval():
        arrays = iter(jax.jit(values)())  # one program, where an eager schedule compiles each of its operations
        for step, value in zip(steps, given, strict=True):
            checks.fraction(next(arrays) if tree.is_array(value) else value, f"{name}({step})")


def at(schedule: Schedule | None, step: Any) -> Any:
    """The value of a schedule, float32; a constant or `None` as it is."""
    return jnp.asarray(schedule(step), jnp.float32) if callable(schedule) else schedule
