"""What a run is made of, in a form that is the same in the next process."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxprune._arrays import tree
from jaxprune._training import _checkpoints


def described(value: Any) -> Any:
    """A value as JSON can hold it: arrays by checksum, functions by name, what has parts by those."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, functools.partial):
        arguments = {**{str(i): argument for i, argument in enumerate(value.args)}, **value.keywords}
        return {"function": described(value.func), **described(arguments)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return f"{type(value).__qualname__}({', '.join(f'{k}={described(v)}' for k, v in fields.items())})"
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: described(item) for key, item in value.items()}
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if any(map(tree.is_array, jax.tree.leaves(value))):
        return _checkpoints.checksums(value)
    return type(value).__qualname__
