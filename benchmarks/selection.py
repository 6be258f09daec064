"""How many passes over the data does exact selection take?

The time to select the highest tenth of many float32 scores, as a multiple of `sum(|x|)` over the same array, which
reads it once. Each result is checked against NumPy's partition, ties included. Then a uniform budget over all leaves of
ResNet-50, with a threshold for each leaf: passes over the model, and the time to trace and to compile it; and these
times for a growing number of large leaves.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from benchmarks import cold_selection, history, models, timing

_NUMBERS = (28, 112, 224)


def scores(kind: str, size: int) -> np.ndarray:
    """Scores of a kind that occurs in practice."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(size, dtype=np.float32)
    if kind == "normal":
        return np.abs(normal)
    if kind == "heavy-tailed":
        with np.errstate(divide="ignore"):
            return np.abs(normal / rng.standard_normal(size, dtype=np.float32))
    if kind == "half zero":
        return np.abs(normal * (rng.random(size, dtype=np.float32) > 0.5))
    if kind == "nearly all zero":
        return np.abs(normal * (rng.random(size, dtype=np.float32) > 0.95))
    return rng.integers(0, 10, size).astype(np.float32)


def is_exact(values: np.ndarray, mask: np.ndarray, keep: int) -> bool:
    """Whether the mask keeps the `keep` highest values, and of those equal to the threshold the first ones."""
    threshold = np.partition(values, len(values) - keep)[len(values) - keep]
    tied, kept = values == threshold, mask[values == threshold]
    above = values > threshold
    first = np.arange(tied.sum()) < keep - above.sum()
    return bool(mask.sum() == keep and mask[above].all() and np.array_equal(kept, first))


def by_leaf(repeats: int) -> dict[str, float]:
    """Prunes nine tenths of every leaf of ResNet-50, scales and biases included."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.tree.leaves(jax.eval_shape(models.ResNet50().init, jax.random.key(0), image)["params"])
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, shapes, strict=True)]
    read = jax.jit(lambda leaves: sum(jnp.sum(jnp.abs(leaf)) for leaf in leaves))
    compiled, tracing, compiling = prepared(leaves)
    calls = {"read": functools.partial(read, leaves), "prune": functools.partial(compiled, leaves)}
    passes = timing.ratio(timing.interleaved(calls, repeats), "prune", "read")
    print(
        f"\nResNet-50, {len(leaves)} leaves each by itself: {passes:.1f} passes, traced in {tracing:.1f} s, "
        f"compiled in {compiling:.1f} s"
    )
    return {
        "leaves of ResNet-50, passes": passes,
        "leaves of ResNet-50, seconds to trace": tracing,
        "leaves of ResNet-50, seconds to compile": compiling,
    }


def by_number() -> dict[str, float]:
    """How the time to compile grows with the number of large leaves, as in a transformer; none is allocated."""
    figures = {}
    for number in _NUMBERS:
        leaves = [jax.ShapeDtypeStruct((512, 512 * (1 + i % 4)), jnp.float32) for i in range(number)]
        _, tracing, compiling = prepared(leaves)
        print(
            f"{number} large leaves each by itself: traced in {tracing:.1f} s, compiled in {compiling:.1f} s",
            flush=True,
        )
        figures |= {f"{number} leaves, seconds to trace": tracing, f"{number} leaves, seconds to compile": compiling}
    return figures


def prepared(leaves: list[Any]) -> tuple[Callable[..., Any], float, float]:
    """A compiled function that prunes nine tenths of each leaf, and the seconds to lower and to compile it."""
    prune = jax.jit(functools.partial(jaxprune.magnitude, sparsity=0.9, where=lambda path, leaf: True))
    start = time.perf_counter()
    lowered = prune.lower(leaves)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, traced - start, time.perf_counter() - traced


def main(argv: list[str]) -> None:
    """Times selection on each kind of data."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks selection", description=__doc__)
    parser.add_argument("--size", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--cold", action="store_true", help="first calls in new processes, compilation included")
    options = parser.parse_args(argv)
    if options.cold:
        cold_selection.run()
        return
    print(f"{history.device()}; {options.size:,} float32 scores, the highest tenth\n")
    print(f"{'scores':18}{'passes':>8}  exact")
    read, select = jax.jit(lambda x: jnp.sum(jnp.abs(x))), jax.jit(jaxprune.select)
    figures = {}
    for kind in ("normal", "heavy-tailed", "half zero", "nearly all zero", "few values"):
        values = scores(kind, options.size)
        array, keep = jnp.asarray(values), options.size // 10
        exact = is_exact(values, np.asarray(select(array, jnp.int32(keep))), keep)
        times = timing.interleaved(
            {"read": functools.partial(read, array), "select": functools.partial(select, array, jnp.int32(keep))},
            options.repeats,
        )
        figures[kind] = timing.ratio(times, "select", "read")
        print(f"{kind:18}{figures[kind]:8.1f}  {'yes' if exact else 'NO'}", flush=True)
        if not exact:
            raise SystemExit("A selection was not exact.")
    found = {f"{kind}, passes": passes for kind, passes in figures.items()}
    history.append("selection", found | by_leaf(options.repeats) | by_number())
