"""Times functions in turn, so that other work of the machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

_SHORTEST = 5e-3  # seconds of one timing at least, so that the cache holds what it would hold in use


def seconds(calls: Sequence[Callable[[], Any]], least: int, total: float = 0.5) -> np.ndarray:
    """Seconds per call, each waited for: `(calls, timings)`.

    Args:
      calls: Each returns arrays to wait for. They are called before, to compile and to warm up.
      least: Timings of each, at least.
      total: Seconds that all timings take at least; quick functions are timed more often.
    """
    for call in calls:
        jax.block_until_ready(call())
    inner = [math.ceil(_SHORTEST / _each(call, 1)) for call in calls]
    once = sum(n * _each(call, n) for call, n in zip(calls, inner, strict=True))
    repeats = max(least, math.ceil(total / once))
    return np.array([[_each(call, n) for call, n in zip(calls, inner, strict=True)] for _ in range(repeats)]).T


def speedup(times: np.ndarray, of: int, over: int) -> float:
    """How much faster one is than another: the median of the ratios of neighbouring timings."""
    return float(np.median(times[over] / times[of]))


def sure_speedup(times: np.ndarray, of: int, over: int) -> float:
    """How much faster one is at least, with 97 % confidence: the ratio two standard deviations below the middle one."""
    ratios = np.sort(times[over] / times[of])
    return float(ratios[max(0, math.floor(len(ratios) / 2 - math.sqrt(len(ratios))))])


def _each(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / calls
