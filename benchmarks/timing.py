"""The timing protocol: ratios in one process, interleaved, after warm-up, median of at least ten."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def interleaved(
    functions: dict[str, Callable[[], Any]],
    repeats: int = 11,
    inner: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Times functions alternately, so that other load on the machine affects all of them alike.

    Args:
      functions: Each does one unit of work and returns arrays to wait for. Each is called once first, to compile.
      repeats: Timings of each, at least ten.
      inner: Calls per timing, for short functions.
      clock: Returns seconds; `time.process_time` adds up those of all cores, of this process alone.

    Returns:
      Seconds per call, one array of `repeats` timings each.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            for _ in range(inner):
                result = function()
            jax.block_until_ready(result)
            times[name].append((clock() - start) / inner)
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: dict[str, np.ndarray], name: str, baseline: str) -> float:
    """The median of the ratios of neighbouring timings."""
    return float(np.median(times[name] / times[baseline]))
