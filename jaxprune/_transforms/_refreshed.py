"""Masks that are chosen anew from time to time, inside the jitted step: what `gradual`, `rigl` and their like share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune._masks import masking
from jaxprune._transforms import _state, _updates
from jaxprune.typing import Grads, Masks, Params


class RefreshedState(NamedTuple):
    """The state of `gradual`, `rigl`, `sparse_evolution` and `acdc`.

    Attributes:
      step: How many updates were made.
      masks: In force since the last refresh; `Packed` if so asked.
      inner: The optimizer's own state.
    """

    step: Int[Array, ""]
    masks: Masks
    inner: Any


@dataclasses.dataclass(frozen=True)
class Times:
    """When masks are refreshed: at `begin`, every `every` updates from there, and at `end`, whatever `every` is.

    Attributes:
      name: Whose times they are, for the error.
      begin: The first.
      end: The last.
      every: Updates between two.

    Raises:
      ValueError: Not 0 <= begin <= end, or every < 1.
    """

    name: str
    begin: int
    end: int
    every: int

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end or self.every < 1:
            raise ValueError(
                f"`{self.name}` needs 0 <= begin <= end and every >= 1; got begin={self.begin}, end={self.end}, "
                f"every={self.every}."
            )

    def include(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether masks are refreshed at this update."""
        due = ((step - self.begin) % self.every == 0) | (step == self.end)
        return due & (step >= self.begin) & (step <= self.end)


def refreshed(
    optimizer: optax.GradientTransformation,
    start: Callable[[Params], Masks],
    refresh: Callable[[Int[Array, ""], Params, Grads, Masks], Masks],
    times: Times,
    *,
    regrown_wait: bool = True,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer as `masked` does, with masks that change.

    What the optimizer remembers of a weight is zeroed when the weight is pruned, so that one that comes back starts
    from 0 with nothing remembered.

    Args:
      optimizer: Any optax optimizer; extra arguments are passed on to it.
      start: From the parameters to the masks before the first refresh.
      refresh: `refresh(step, params, grads, masks)`, the new masks; run at its times only. The gradients are those
        handed in, of pruned weights too.
      times: When to refresh.
      regrown_wait: Whether a weight that a refresh brings back is exactly 0 until the next update moves it, or takes
        part in this one already. Costs every step a look at two sets of masks.
      packed: Keep the masks in the state at one bit per weight.

    Returns:
      An optax optimizer. Its update needs `params`.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    at_rest = masking.pack if packed else lambda masks: masks

    def init_fn(params: Params) -> RefreshedState:
        return RefreshedState(
            jnp.zeros((), jnp.int32), at_rest(start(params)), _state.owned(optimizer.init(params), params)
        )

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, RefreshedState]:
        params = _updates.given(params, times.name)
        before = masking.unpack(state.masks)
        resting = lax.cond(
            times.include(state.step),
            lambda: at_rest(_state.sharded_like(params, refresh(state.step, params, updates, before))),
            lambda: state.masks,
        )
        visible = masking.unpack(resting)
        if regrown_wait:
            visible = masking.intersection(before, visible)
        # At every step, not only at a refresh: it is fused into the optimizer, and a state that passes through `cond`
        # would be copied.
        inner = _state.zero_pruned(state.inner, params, visible)
        hidden, shown = masking.apply(updates, visible), masking.apply(params, visible)
        new_updates, inner = optimizer.update(hidden, inner, shown, **extra_args)
        return _updates.constrain(new_updates, params, visible), RefreshedState(state.step + 1, resting, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
