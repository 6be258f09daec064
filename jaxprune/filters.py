"""Which leaves to prune: filters for `where=` that combine with `&`, `|` and `~`.

Examples:
  >>> import jax.numpy as jnp
  >>> from jaxprune import filters
  >>> params = {"conv": {"kernel": jnp.ones((3, 3, 8, 16))}, "head": {"kernel": jnp.ones((16, 10))}}
  >>> where = filters.is_kernel & ~filters.named("head")
  >>> where("conv/kernel", params["conv"]["kernel"]), where("head/kernel", params["head"]["kernel"])
  (True, False)
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from jaxprune._arrays import checks, tree
from jaxprune.typing import Params, Where


@dataclasses.dataclass(frozen=True)
class Filter:
    """A predicate over `(path, leaf)` that combines with others.

    Attributes:
      function: The predicate. Any callable of that form can be wrapped.
    """

    function: Where

    def __post_init__(self) -> None:
        tree.check_where(self.function)

    def __call__(self, path: str, leaf: Any) -> bool:
        """Whether to pick the leaf."""
        return self.function(path, leaf)

    def __and__(self, other: Where) -> Filter:
        tree.check_where(other)
        return Filter(lambda path, leaf: self(path, leaf) and other(path, leaf))

    def __or__(self, other: Where) -> Filter:
        tree.check_where(other)
        return Filter(lambda path, leaf: self(path, leaf) or other(path, leaf))

    def __invert__(self) -> Filter:
        return Filter(lambda path, leaf: not self(path, leaf))


_BIAS = re.compile(r"(.*_)?(bias|biases|scale|offset|gamma|beta)(_.*|\d*)")
_KERNEL = re.compile(r"w\d*|(.*_)?(kernel|weight|weights)(_.*|\d*)")


def _is_kernel(path: str, leaf: Any) -> bool:
    if not tree.is_floating(leaf) or leaf.ndim < 2:
        return False
    name = re.split("[/.]", path.removesuffix("/data_array"))[-1]  # an array with named axes is one level deeper
    if name == "weight_g" and "weight_v" in getattr(path, "siblings", ()):
        return False
    if _BIAS.fullmatch(name) or (re.fullmatch(r"b\d*", name) and _is_beside_a_kernel(path)):
        return False
    long_axes = sum(size > 1 for size in leaf.shape)
    return leaf.ndim == 2 or long_axes != 1 or _KERNEL.fullmatch(name) is not None


def _is_beside_a_kernel(path: str) -> bool:
    """Whether a leaf has a sibling called as kernels are, or nothing is known of its siblings."""
    return not isinstance(path, tree.Path) or any(map(_KERNEL.fullmatch, path.siblings))


is_kernel = Filter(_is_kernel)
"""Floating-point leaves with two axes or more that are no biases: what strategies prune unless told otherwise.

Biases, and the scales and offsets of norms, are known by the last part of their path, behind a `/` or `.`, whatever
their rank: `bias`, `scale`, `offset`, `gamma` or `beta`, alone or between underscores as in `in_proj_bias`; `b` beside
a `w`; and the magnitudes `weight_g` beside a `weight_v`. A leaf of three axes or more of which one alone is longer than
1, such as `(channels, 1, 1)`, is a bias too unless it is called a kernel. Embeddings and position tables are matrices
like any other, and are picked: leave them out by name, as with `is_kernel & ~named("embed")`. Where the model is at
hand, `layout(fun, params, *args).is_kernel` goes by what it multiplies with. `jaxprune.summary` says what was picked.
"""


def named(pattern: str) -> Filter:
    r"""Picks leaves whose path matches a regular expression.

    Args:
      pattern: Searched anywhere in the path, as `re.search` does; anchor it with `^` and `$`.

    Examples:
      >>> named(r"attention/.*kernel$")("block_0/attention/query/kernel", None)
      True

    Raises:
      ValueError: It is not a regular expression.
      TypeError: It is not a string.
    """
    if not checks.is_a(pattern, str):
        raise TypeError(
            f"`named` takes a regular expression as a string; got {pattern!r}. Give, for example, 'kernel$'."
        )
    matches = tree.matcher(pattern)
    return Filter(lambda path, leaf: matches(path))


def at_least(size: int) -> Filter:
    """Picks leaves with at least `size` weights: small layers cost little and often matter much."""
    least = checks.whole(size, "size", least=0)
    return Filter(lambda path, leaf: tree.is_array(leaf) and leaf.size >= least)


def share_at_least(params: Params, share: float) -> Filter:
    """Picks leaves that hold at least `share` of all floating-point parameters.

    Args:
      params: The whole model, of which each leaf's share is taken.
      share: Between 0 and 1.

    Raises:
      ValueError: `share` is not between 0 and 1.
    """
    if not 0 <= checks.real(share, "share") <= 1:
        raise ValueError(f"`share_at_least` needs a share between 0 and 1; got {share}. Give 0.01 for 1 %.")
    total = sum(leaf.size for leaf in jax.tree.leaves(params) if tree.is_floating(leaf))
    return Filter(lambda path, leaf: tree.is_floating(leaf) and leaf.size >= share * total)
