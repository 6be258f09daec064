"""Do products with pruned kernels take less time than the best dense one?

For kernels of 4096 by 4096, the time of each form against the dense kernel in the better of its two layouts: blocks of
128 and of 32, vector-wise 2:4 over groups of 256 outputs, and weights pruned one by one. Then what `deploy` makes of
one layer, over shapes, batches and sparsities: it should never lose. The noise of these figures is what a dense product
gains over a copy of itself.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from benchmarks import history, timing
from jaxprune.formats import Dense, Rows, Strips
from jaxprune.formats._timing import seconds, speedup

_SECONDS = 3.0  # that the timings of one deployed layer take together


def blocks(size: int, block: int, sparsity: float) -> np.ndarray:
    """A mask that keeps as many blocks for each block of outputs."""
    rng = np.random.default_rng(0)
    count = size // block
    ranks = np.argsort(np.argsort(rng.random((count, count)), axis=0), axis=0)
    return np.kron(ranks < round(count * (1 - sparsity)), np.ones((block, block), bool))


def vectors(size: int, group: int) -> np.ndarray:
    """A mask that keeps two of every four inputs, the same ones for a group of outputs."""
    rng = np.random.default_rng(0)
    ranks = np.argsort(rng.random((size // 4, 4, size // group)), axis=1)
    return np.repeat((ranks < 2).reshape(size, -1), group, axis=1)


def speedups(mask: np.ndarray, forms: Any, batch: int, repeats: int) -> tuple[float, dict[str, float]]:
    """The milliseconds of the best dense form, and how much faster each other is."""
    rng = np.random.default_rng(0)
    kernel = np.where(mask, rng.standard_normal(mask.shape, np.float32), 0)
    x = jnp.asarray(rng.standard_normal((batch, len(mask)), np.float32))
    dense = jnp.asarray(kernel)
    stored = {"dense": Dense.of(dense), "outputs first": Dense.of(dense, transposed=True)} | forms(kernel, mask)
    product = jax.jit(lambda form, x: form.matmul(x))
    expected = product(stored["dense"], x)
    for name, form in stored.items():
        if not np.allclose(product(form, x), expected, atol=1e-2):
            raise AssertionError(f"'{name}' does not multiply as the dense kernel.")
    times = timing.interleaved({name: functools.partial(product, form, x) for name, form in stored.items()}, repeats)
    best = min(("dense", "outputs first"), key=lambda name: np.median(times[name]))
    return 1e3 * float(np.median(times[best])), {name: timing.ratio(times, best, name) for name in list(stored)[2:]}


def strips(block: tuple[int, int]) -> Any:
    """Both ways to multiply with strips."""

    def forms(kernel: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        return {m: Strips.of(kernel, mask, block=block, method=m) for m in ("strip by strip", "batched")}

    return forms


def scattered(kernel: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """What holds weights pruned one by one."""
    return {"compressed rows": Rows.of(kernel, mask), "gathered": Strips.of(kernel, mask, block=(1, 1))}


def deployed(size: int, batch: int, mask: np.ndarray, repeats: int) -> tuple[str, float, float]:
    """What `deploy` chooses for one layer, its speed-up over the best dense, and that of a dense copy: the noise."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.standard_normal((size, size), np.float32))}
    x = jnp.asarray(rng.standard_normal((batch, size), np.float32))
    fun, stored, choices = jaxprune.deploy(lambda p, x: x @ p["kernel"], params, {"kernel": jnp.asarray(mask)}, x)
    masked = jaxprune.apply(params, {"kernel": jnp.asarray(mask)})["kernel"]
    product, call = jax.jit(lambda form, x: form.matmul(x)), jax.jit(fun)
    calls = {
        "dense": functools.partial(product, Dense.of(masked), x),
        "outputs first": functools.partial(product, Dense.of(masked, transposed=True), x),
        "deployed": functools.partial(call, stored, x),
        "dense again": functools.partial(product, Dense.of(jnp.copy(masked)), x),
    }
    times = seconds(list(calls.values()), repeats, total=_SECONDS)
    first, second = times[:, ::2], times[:, 1::2]  # the best is chosen by one half of the timings, judged by the other
    best = int(np.argmin(np.median(first[:2], axis=1)))
    form = choices.leaves[0].form
    return form, speedup(second, of=2, over=best), speedup(second, of=3, over=0)


def compare_forms(size: int, repeats: int) -> dict[str, float]:
    """Prints the speed-up of every form, and its share of what the sparsity allows."""
    figures: dict[str, float] = {}

    def show(name: str, mask: np.ndarray, forms: Any, batch: int) -> None:
        ideal = 1 / mask.mean()
        dense, gains = speedups(mask, forms, batch, repeats)
        for form, gain in gains.items():
            figures[f"{name}, batch {batch}, {form}"] = gain
            share = f"{100 * gain / ideal:4.0f} % of the ideal; dense {dense:.2f} ms"
            print(f"{name:24} batch {batch:4} {form:16}{gain:8.2f} of {ideal:6.2f} {share}", flush=True)

    for block, sparsities in ((128, (0.5, 0.75, 0.875)), (32, (0.75, 0.875))):
        for sparsity in sparsities:
            show(f"block {block}, {100 * sparsity:.1f} %", blocks(size, block, sparsity), strips((block, block)), 256)
    show("vector 2:4", vectors(size, 256), strips((1, 256)), 256)
    rng = np.random.default_rng(1)
    for sparsity in (0.9, 0.98):
        mask = rng.random((size, size)) >= sparsity
        for batch in (1, 256):
            show(f"single, {100 * sparsity:.0f} %", mask, scattered, batch)
    return figures


def compare_deployed(repeats: int) -> dict[str, float]:
    """Prints what `deploy` makes of one layer."""
    rng = np.random.default_rng(1)
    figures: dict[str, float] = {}
    noise: list[float] = []
    for size in (512, 2048):
        for batch in (1, 32, 256):
            for name, mask in (
                ("block 64, 75 %", blocks(size, 64, 0.75)),
                ("single, 50 %", rng.random((size, size)) >= 0.5),
                ("single, 97 %", rng.random((size, size)) >= 0.97),
            ):
                form, gain, again = deployed(size, batch, mask, repeats)
                figures[f"deploy {size}, {name}, batch {batch}"] = gain
                noise.append(again)
                print(f"deploy {size:5} {name:16} batch {batch:4}{gain:8.2f}  {form} (noise {again:.2f})", flush=True)
    worst = {"deploy, worst": min(figures.values()), "noise, worst": min(noise)}
    print(f"deploy, at worst{worst['deploy, worst']:8.2f}; a dense product against itself{worst['noise, worst']:8.2f}")
    return figures | worst


def main(argv: list[str]) -> None:
    """Prints the speed-up of every form, then that of `deploy`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks formats", description=__doc__)
    parser.add_argument("part", nargs="?", choices=("forms", "deploy"), help="only one of the two tables")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the kernels of the first table")
    parser.add_argument("--repeats", type=int, default=11, help="timings, at least twice as many in the second table")
    options = parser.parse_args(argv)
    print(f"{history.device()}; kernels of {options.size} by {options.size}, times as fast as the best dense\n")
    figures: dict[str, float] = {}
    if options.part != "deploy":
        figures |= compare_forms(options.size, options.repeats)
    if options.part != "forms":
        figures |= compare_deployed(2 * options.repeats)
    history.append("formats", figures)
