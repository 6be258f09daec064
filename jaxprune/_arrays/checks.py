"""Checks of what a caller hands in: concrete values wherever they come from, named in the error.

What is traced has no value to check; each function says what becomes of it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._arrays import host, tree


def is_concrete(value: Any) -> bool:
    """Whether a value is known now: neither traced nor a stand-in that has only a shape."""
    return not isinstance(value, Tracer | jax.ShapeDtypeStruct)


def is_a(value: Any, *kinds: type) -> bool:
    """Whether a value is of one of these types, whatever its annotation promises."""
    return isinstance(value, kinds)


def function(value: Any, name: str, example: str) -> None:
    """Raises a `TypeError` unless a value can be called."""
    if not callable(value):
        raise TypeError(f"`{name}` must be a function; got {type(value).__name__}. Give, for example, `{example}`.")


def fraction(value: Any, name: str) -> Any:
    """A number between 0 and 1: a Python float if it is concrete, as it is if it is traced.

    Raises:
      ValueError: It is out of range or NaN.
      TypeError: It is not a number, such as a string, a list or a bool.
    """
    if isinstance(value, Tracer) and value.ndim == 0 and tree.is_floating(value):
        return value
    number = real(value, name)
    if not 0 <= number <= 1:
        raise ValueError(f"`{name}` must be a fraction between 0 and 1; got {value}. Give 0.9 to remove 90 %.")
    return number


def real(value: Any, name: str) -> float:
    """A concrete real number, of Python, NumPy or JAX, as a Python float.

    Raises:
      TypeError: It is not a single concrete number, or a bool.
    """
    if not _is_real(value):
        got = f"shape {value.shape}, {value.dtype}" if tree.is_array(value) else f"{value!r}"
        raise TypeError(f"`{name}` must be a single real number; got {got}. Give a float, such as 0.5.")
    return float(value)


def positive(value: Any, name: str, *, zero: bool = False) -> float:
    """A finite number above 0, or from 0 on.

    Raises:
      ValueError: It is out of range, infinite or NaN.
      TypeError: It is not a number.
    """
    number = real(value, name)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        expected = "0 or more" if zero else "above 0"
        raise ValueError(f"`{name}` must be {expected} and finite; got {value}.")
    return number


def whole(value: Any, name: str, *, least: int | None = 1) -> int:
    """A concrete whole number, from `least` on if that is given, of Python, NumPy or JAX, as a Python int.

    Raises:
      ValueError: It is below `least`.
      TypeError: It is not a whole number, or a bool.
    """
    if not _is_real(value) or (isinstance(value, float) or jnp.issubdtype(jnp.result_type(value), jnp.floating)):
        raise TypeError(f"`{name}` must be a whole number; got {value!r}. Give an int, such as {max(least or 1, 1)}.")
    number = int(value)
    if least is not None and number < least:
        raise ValueError(f"`{name}` must be {least} or more; got {value}.")
    return number


def finite(path: str, leaf: Any, what: str, fix: str) -> None:
    """Raises a `ValueError` if a concrete floating array holds a NaN or an infinity.

    Args:
      path: Of the leaf, for the message.
      leaf: Any leaf; one that is not floating, or traced, passes.
      what: What it is, such as "weights".
      fix: What to do about it, a sentence.
    """
    if not tree.is_floating(leaf) or not is_concrete(leaf):
        return
    array = host.view(leaf)
    is_finite = np.isfinite(array) if isinstance(array, np.ndarray) else jnp.isfinite(array)
    if not bool(is_finite.all()):
        raise ValueError(f"The {what} of '{path}' hold NaN or infinity; finite numbers are needed. {fix}")


def warn(message: str) -> None:
    """Warns the caller of the library: the line that is named is the first outside of it."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "jaxprune":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_real(value: Any) -> bool:
    if isinstance(value, bool | np.bool_) or not is_concrete(value):
        return False
    if isinstance(value, float | int):
        return True
    is_scalar = isinstance(value, np.generic) or (tree.is_array(value) and value.ndim == 0)
    return is_scalar and (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer))
