"""Which axes of each parameter are inputs, outputs or a stack, read off the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxprune._arrays import tree
from jaxprune._jaxpr.roles.rules import Use, settled, uses
from jaxprune._jaxpr.tracing import options_of, trace
from jaxprune.typing import Axes, Params


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of every parameter that a matrix product or a convolution multiplies by.

    Attributes:
      axes: By path.
      without: Why the other parameters have no such axes, by path.
    """

    axes: dict[str, Axes]
    without: dict[str, str]

    def is_kernel(self, path: str, leaf: Any) -> bool:
        """Whether a parameter is multiplied by: for `where=`, in place of what its name and shape suggest."""
        return path in self.axes and tree.is_floating(leaf)

    def summed(self, params: Params) -> Any:
        """The axis that each parameter is summed over, for `NM(n, m, axis=...)`.

        Args:
          params: Of the structure that the layout was made for, or a part with the same paths.

        Returns:
          A tree of integers, the last of `inputs`; `None` where a parameter has none.

        Examples:
          >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(8)}  # (out, in)
          >>> layout = jaxprune.layout(lambda p, x: p["kernel"] @ x + p["bias"], params, jnp.ones(4))
          >>> layout.summed(params)
          {'bias': None, 'kernel': 1}
          >>> pattern = jaxprune.patterns.NM(2, 4, axis=layout.summed(params))
          >>> jaxprune.magnitude(params, pattern=pattern)["kernel"].sum(axis=1)
          Array([2, 2, 2, 2, 2, 2, 2, 2], dtype=int32)
        """
        return tree.map_with_path(lambda path, _: self.axes[path].inputs[-1] if path in self.axes else None, params)


@options_of
def layout(fun: Callable[..., Any], params: Params, *args: Any, kwargs: Mapping[str, Any] | None = None) -> Layout:
    """Finds what each parameter's axes do, from the jaxpr: no framework's convention is assumed.

    A parameter is followed through casts, transposes, reshapes, slices, elementwise work with other parameters or
    constants (masks, scales), calls, branches and loops to the products that it enters. A table that is only looked
    up, a bias, or a parameter that a loop carries has no such axes and is listed in `without`; so is one that is
    multiplied along different axes in different places.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree; its arrays may be `jax.ShapeDtypeStruct`s.
      *args: Likewise.
      kwargs: Keyword arguments of `fun`, by name, such as `{"train": False}`.

    Returns:
      The layout.

    Examples:
      >>> params = {"query": jnp.ones((8, 2, 4)), "scale": jnp.ones(8)}
      >>> got = jaxprune.layout(lambda p, x: jnp.einsum("d,dhk->hk", x * p["scale"], p["query"]), params, jnp.ones(8))
      >>> got.axes["query"]
      Axes(inputs=(0,), outputs=(1, 2), stacked=())
      >>> got.without
      {'scale': "'mul' takes it"}
    """
    traced = trace(fun, params, *args, kwargs=kwargs)
    found = uses(traced)
    axes: dict[str, Axes] = {}
    without: dict[str, str] = {}
    for index, (path, leaf) in enumerate(zip(traced.paths, traced.leaves, strict=True)):
        use = settled(found, index, len(leaf.shape))
        if isinstance(use, Use):
            axes[path] = Axes(use.inputs, use.outputs, use.stacked)
        else:
            without[path] = use
    return Layout(axes, without)
