"""Times functions in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

_SHORTEST = 2e-3  # seconds that one timing takes at least


def seconds(calls: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Seconds per call: `(calls, repeats)`.

    Args:
      calls: Each returns arrays to wait for. They are called twice before, to compile and to warm up.
      repeats: Timings of each.
    """
    inner = [max(1, round(_SHORTEST / max(_once(call), 1e-7))) for call in _warm(calls)]
    return np.array([[_once(call, n) for call, n in zip(calls, inner, strict=True)] for _ in range(repeats)]).T


def speedup(times: np.ndarray, of: int, over: int) -> float:
    """How much faster one is than another: the median of the ratios of neighbouring timings."""
    return float(np.median(times[over] / times[of]))


def _warm(calls: Sequence[Callable[[], Any]]) -> Sequence[Callable[[], Any]]:
    for call in calls:
        jax.block_until_ready(call())
    return calls


def _once(call: Callable[[], Any], inner: int = 1) -> float:
    start = time.perf_counter()
    results = [call() for _ in range(inner)]
    jax.block_until_ready(results)
    return (time.perf_counter() - start) / inner
