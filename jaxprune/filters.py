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

from jaxprune._arrays import tree
from jaxprune.typing import Params, Where


@dataclasses.dataclass(frozen=True)
class Filter:
    """A predicate over `(path, leaf)` that combines with others.

    Attributes:
      function: The predicate. Any callable of that form can be wrapped.
    """

    function: Where

    def __call__(self, path: str, leaf: Any) -> bool:
        """Whether to pick the leaf."""
        return self.function(path, leaf)

    def __and__(self, other: Where) -> Filter:
        return Filter(lambda path, leaf: self(path, leaf) and other(path, leaf))

    def __or__(self, other: Where) -> Filter:
        return Filter(lambda path, leaf: self(path, leaf) or other(path, leaf))

    def __invert__(self) -> Filter:
        return Filter(lambda path, leaf: not self(path, leaf))


is_kernel = Filter(lambda path, leaf: tree.is_floating(leaf) and leaf.ndim >= 2)
"""Floating-point leaves with two axes or more: what strategies prune unless told otherwise."""


def named(pattern: str) -> Filter:
    r"""Picks leaves whose path matches a regular expression.

    Args:
      pattern: Searched anywhere in the path, as `re.search` does; anchor it with `^` and `$`.

    Examples:
      >>> named(r"attention/.*kernel$")("block_0/attention/query/kernel", None)
      True
    """
    expression = re.compile(pattern)
    return Filter(lambda path, leaf: expression.search(path) is not None)


def at_least(size: int) -> Filter:
    """Picks leaves with at least `size` weights: small layers cost little and often matter much."""
    return Filter(lambda path, leaf: tree.is_array(leaf) and leaf.size >= size)


def share_at_least(params: Params, share: float) -> Filter:
    """Picks leaves that hold at least `share` of all floating-point parameters.

    Args:
      params: The whole model, of which each leaf's share is taken.
      share: Between 0 and 1.

    Raises:
      ValueError: `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share_at_least` needs a share between 0 and 1; got {share}. Give 0.01 for 1 %.")
    total = sum(leaf.size for leaf in jax.tree.leaves(params) if tree.is_floating(leaf))
    return Filter(lambda path, leaf: tree.is_floating(leaf) and leaf.size >= share * total)
