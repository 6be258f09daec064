"""What does a first call of selection cost, compilation included?

Each figure is of a new process, in which JAX has compiled something else before: "eager" is a call on concrete arrays,
"jit" one inside `jax.jit`, beside a jitted sort of each leaf, the way that one writes first, and NumPy's partition. And
how much longer a training step of Adam takes to trace and compile with `gradual` in it. Medians of several processes.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from benchmarks import history, models
from jaxprune import patterns

_THREE = [(64, 128), (128, 128), (128, 256)]
_WIDTH = 768
_BLOCK = [(_WIDTH, _WIDTH)] * 4 + [(_WIDTH, 4 * _WIDTH), (4 * _WIDTH, _WIDTH)]
TREES: dict[str, list[tuple[int, ...]]] = {
    "3 kernels": _THREE[:1] * 3,
    "40 kernels, 3 shapes": [_THREE[i % 3] for i in range(40)],
    "40 kernels, 40 shapes": [(64 + i, 128) for i in range(40)],
    "8 kernels, 2.4 M weights": [(512, 584)] * 8,
    "ViT-B/16": [(16, 16, 3, _WIDTH), *_BLOCK * 12, (_WIDTH, 1000)],
}
WAYS = ("eager", "jit", "sort", "NumPy", "eager 2:4", "jit 2:4")
STEPS = ("ResNet-50", "8 kernels", "224 large leaves")


def arrays(tree: str) -> list[np.ndarray]:
    """Random weights of a tree's shapes."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in TREES[tree]]


def prune(leaves: Any) -> Any:
    """Nine tenths of each leaf."""
    return jaxprune.magnitude(leaves, 0.9)


def prune_two_of_four(leaves: Any) -> Any:
    """Two of every four weights; ViT's patch kernel has three input channels and stays dense."""
    return jaxprune.magnitude(leaves, pattern=patterns.NM(2, 4), where=lambda _, leaf: leaf.shape[-2] % 4 == 0)


def sort(leaves: Any) -> Any:
    """The way that one writes first."""
    return [jnp.abs(leaf) >= jnp.sort(jnp.abs(leaf).reshape(-1))[int(0.9 * leaf.size)] for leaf in leaves]


def partition(leaves: Any) -> Any:
    """The same by NumPy."""
    sizes = [np.abs(leaf) for leaf in leaves]
    return [size >= np.partition(size, int(0.9 * size.size), axis=None)[int(0.9 * size.size)] for size in sizes]


def first_call(tree: str, way: str) -> dict[str, float]:
    """Seconds of the first and of the second call, in this process."""
    leaves: Any = (
        arrays(tree) if way == "NumPy" else jax.block_until_ready([jnp.asarray(leaf) for leaf in arrays(tree)])
    )
    calls: dict[str, Callable[[Any], Any]] = {
        "eager": prune, "jit": jax.jit(prune), "sort": jax.jit(sort), "NumPy": partition,
        "eager 2:4": prune_two_of_four, "jit 2:4": jax.jit(prune_two_of_four),
    }  # fmt: skip
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(calls[way](leaves))
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "second": seconds[1]}


def prepared_step(name: str, way: str) -> dict[str, float]:
    """Seconds to trace and compile a training step."""
    if name == "ResNet-50":
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        params = jax.eval_shape(models.ResNet50().init, jax.random.key(0), image)["params"]
    else:
        shapes = [(512, 584)] * 8 if name == "8 kernels" else [(512, 512 * (1 + i % 4)) for i in range(224)]
        params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    optimizer: Any = optax.adam(1e-3)
    if way == "gradual":
        schedule = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=100)
        optimizer = jaxprune.gradual(optimizer, jaxprune.magnitude, schedule, end=100, every=10)

    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    start = time.perf_counter()
    jax.jit(step).lower(params, state).compile()
    return {"first": time.perf_counter() - start}


def in_new_process(*case: str, repeats: int = 3) -> dict[str, float]:
    """The medians of what a case prints in processes of its own."""
    command = [sys.executable, "-m", "benchmarks.cold_selection", *case]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(repeats)]
    return {name: statistics.median(row[name] for row in found) for name in found[0]}


def run() -> None:
    """Prints both tables and keeps the figures."""
    print(f"{history.device()}; seconds of the first call in a new process, milliseconds of the second\n")
    print(f"{'tree':26}" + "".join(f"{way:>18}" for way in WAYS))
    figures = dict[str, float]()
    for tree in TREES:
        print(f"{tree:26}", end="", flush=True)
        for way in WAYS:
            found = in_new_process("call", tree, way)
            figures[f"{tree}, {way}, seconds of the first call"] = found["first"]
            print(f"{found['first']:10.2f} ({1e3 * found['second']:5.0f})", end="", flush=True)
        print()
    print(f"\n{'training step':26}{'Adam':>8}{'gradual':>9}{'more':>7}")
    for name in STEPS:
        plain, pruned = (in_new_process("step", name, way)["first"] for way in ("plain", "gradual"))
        figures[f"{name}, seconds that gradual adds to compile a step"] = pruned - plain
        print(f"{name:26}{plain:8.2f}{pruned:9.2f}{pruned - plain:7.2f}", flush=True)
    history.append("selection --cold", figures)


if __name__ == "__main__":
    jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) + 1)(jnp.ones(3)))
    kind, *case = sys.argv[1:]
    print(json.dumps({"call": first_call, "step": prepared_step}[kind](*case)))
