"""Integers that a program computes from none of its arguments: positions that it indexes are read off them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn

_LARGEST = 1 << 16  # positions along an axis; what is larger is a mask or a table


def known(value: Any) -> np.ndarray | None:
    """A constant of a program as an array, if it holds a few integers or booleans."""
    dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
    if isinstance(value, Tracer) or getattr(dtype, "kind", "") not in "iub" or np.size(value) > _LARGEST:
        return None
    return np.asarray(value)


def evaluate(eqn: JaxprEqn, operands: Sequence[np.ndarray]) -> np.ndarray | None:
    """The result of an equation on known integers, or `None`.

    It is computed by NumPy: to compile each operation would take longer than the rest of the label pass.
    """
    rule, aval = RULES.get(eqn.primitive.name), getattr(eqn.outvars[0], "aval", None)
    shape, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", None)
    sizes = [n for n in shape if isinstance(n, int)]
    if rule is None or getattr(dtype, "kind", "") not in "iub" or len(sizes) < len(shape) or np.prod(sizes) > _LARGEST:
        return None
    with np.errstate(all="ignore"):
        return np.asarray(rule(eqn.params, *operands)).astype(dtype)


def _iota(params: Any) -> np.ndarray:
    shape, along = params["shape"], params["dimension"]
    return np.broadcast_to(np.arange(shape[along]).reshape([-1 if a == along else 1 for a in range(len(shape))]), shape)


def _broadcast(params: Any, x: np.ndarray) -> np.ndarray:
    shape = [1] * len(params["shape"])
    for axis, out in enumerate(params["broadcast_dimensions"]):
        shape[out] = x.shape[axis]
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _slice(params: Any, x: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * x.ndim
    cuts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(slice(*cut) for cut in cuts)]


def _quotient(params: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rounded towards zero, as XLA does."""
    return (x - np.fmod(x, np.where(y == 0, 1, y))) // np.where(y == 0, 1, y)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *operands: function(*operands)


RULES: dict[str, Callable[..., Any]] = {
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "div": _quotient,
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: x.squeeze(tuple(params["dimensions"])),
    "transpose": lambda params, x: x.transpose(params["permutation"]),
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "select_n": _plain(lambda which, *cases: np.choose(which.astype(np.int32), cases)),
    "clamp": _plain(lambda low, x, high: np.clip(x, low, high)),
    **dict.fromkeys(("convert_element_type", "copy", "stop_gradient"), _plain(np.asarray)),
    **{
        name: _plain(function)
        for name, function in {
            "add": np.add, "sub": np.subtract, "mul": np.multiply, "rem": np.fmod, "neg": np.negative,
            "sign": np.sign, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or,
            "not": np.bitwise_not, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
            "gt": np.greater, "ge": np.greater_equal,
        }.items()
    },
}  # fmt: skip
