"""How does the time of selection grow with the number of parameters?

Uniform magnitude pruning of float32 leaves of 4 M weights each, from 1 M parameters up, as passes of `sum(|x|)` over
the same leaves and as nanoseconds per parameter. Linear growth is a flat column. Sizes that do not fit into the
memory that is free are left out; `benchmarks.memory` measures the memory of a step at any size.
"""

import argparse
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from benchmarks import history, timing

_LEAF = 4_000_000
_SIZES = (1_000_000, 4_000_000, 20_000_000, 100_000_000, 200_000_000, 500_000_000, 1_000_000_000)


def leaves(size: int) -> list[jax.Array]:
    """Gaussian leaves with `size` weights in all."""
    keys = jax.random.split(jax.random.key(0), -(-size // _LEAF))
    return [jax.random.normal(key, (min(_LEAF, size) // 1000, 1000)) for key in keys]


def free() -> int:
    """Bytes of the device that nothing occupies."""
    stats = jax.devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    # Where the system does not report free memory, all of it counts as free.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def needed(compiled: Any) -> int:
    """Bytes of a compiled selection: arguments, working memory, and two results, since the one before is still held."""
    analysis = compiled.memory_analysis()
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + 2 * analysis.output_size_in_bytes


def main(argv: list[str]) -> None:
    """Times selection at every size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scaling", description=__doc__)
    parser.add_argument("--largest", type=int, default=_SIZES[-1])
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args(argv)
    print(f"{history.device()}; leaves of {_LEAF:,} float32 weights\n")
    print(f"{'parameters':>14}{'ms':>10}{'ns each':>10}{'passes':>8}")
    read = jax.jit(lambda tree: sum(jnp.sum(jnp.abs(leaf)) for leaf in tree))
    prune = jax.jit(functools.partial(jaxprune.magnitude, sparsity=0.9))
    figures: dict[str, float] = {}
    for size in (n for n in _SIZES if n <= options.largest):
        compiled = prune.lower(jax.eval_shape(functools.partial(leaves, size))).compile()
        if needed(compiled) > free():
            gib = needed(compiled) / 2**30
            print(f"{size:14,}  left out: it takes {gib:.1f} GiB, and {free() / 2**30:.1f} GiB are free", flush=True)
            continue
        tree = leaves(size)
        calls = {"read": functools.partial(read, tree), "prune": functools.partial(compiled, tree)}
        times = timing.interleaved(calls, options.repeats)
        milliseconds = 1e3 * float(np.median(times["prune"]))
        each, passes = 1e6 * milliseconds / size, timing.ratio(times, "prune", "read")
        figures |= {f"{size:,}, passes": passes, f"{size:,}, ns each": each}
        print(f"{size:14,}{milliseconds:10.1f}{each:10.2f}{passes:8.1f}", flush=True)
        del tree, calls  # frees their memory before the next leaves are made
    history.append("scaling", figures)
