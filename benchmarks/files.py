"""What does it take to prune a checkpoint from file to file?

SmolLM2-135M, saved as safetensors in float32 and in bfloat16, and as a checkpoint of orbax. Each command runs in a
process of its own: its time, without imports, as a multiple of a copy that is as safely on the disk, and its peak of
memory, beside the bound of 1.3 times the largest array plus 200 MB. The masks are compared with those of the library.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from benchmarks import history, packages, smollm
from jaxprune import budgets, io, patterns
from jaxprune.rules import Rule, Rules

RULES = {
    "uniform": Rules([Rule(sparsity=0.5)]),
    "2:4": Rules([Rule("embedding", method=None), Rule(pattern=patterns.NM(2, 4, axis=-2))]),
    "global": Rules([Rule(sparsity=0.5, budget=budgets.global_)]),
    "rules": Rules(
        [Rule("embedding", None), Rule("/[qkvo]$", pattern=patterns.NM(2, 4, axis=-2)), Rule(budget=budgets.erk)]
    ),
}
_KINDS = {"float32": ".safetensors", "bfloat16": ".bf16.safetensors", "orbax": ""}


def command(name: str, source: Path, target: Path) -> None:
    """Runs one, and prints its seconds and the peak of memory in bytes."""
    start = time.perf_counter()
    if name in RULES:
        io.prune(source, target, RULES[name])
    elif name == "inspect":
        io.inspect(source)
    elif name == "compare":
        io.compare(source, target)
    else:
        {"pack": io.pack, "unpack": io.unpack}[name](source, target)
    seconds = time.perf_counter() - start
    # Of this program alone: `ru_maxrss` would have that of the process that started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps([seconds, 1024 * int(peak.split()[1])]))


def copied(source: Path, target: Path) -> float:
    """Seconds to copy a file or a folder, and to bring the copy to the disk."""
    start = time.perf_counter()
    shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    for path in [target, *target.rglob("*")] if target.is_dir() else [target]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Prints a table and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=packages.CACHE, help="where the model's file is kept")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    params, _ = smollm.load(options.cache)
    params = jax.tree.map(np.asarray, params)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    figures = dict[str, float]()
    print(f"{history.device()}\n")
    print(f"{'checkpoint':12}{'command':12}{'seconds':>10}{'to a copy':>12}{'peak MB':>10}{'bound':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for kind, ending in _KINDS.items():
            source, target = Path(folder) / f"model{ending}", Path(folder) / f"out{ending or '.safetensors'}"
            dtype: Any = jnp.bfloat16 if kind == "bfloat16" else np.float32
            tree = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
            io.save(source, tree)
            for name in [*RULES, "inspect"]:
                runs = list[tuple[float, float, int]]()
                for _ in range(options.repeats):
                    copy = copied(source, Path(folder) / "copy")
                    shutil.rmtree(Path(folder) / "copy") if source.is_dir() else (Path(folder) / "copy").unlink()
                    target.unlink(missing_ok=True)
                    call = [sys.executable, "-m", "benchmarks.files", name, str(source), str(target)]
                    seconds, peak = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
                    runs.append((seconds, seconds / copy, peak))
                seconds, ratio, peak = (statistics.median(column) for column in zip(*runs, strict=True))
                bound = 1.3 * largest * np.dtype(dtype).itemsize / 4 + 200e6
                print(f"{kind:12}{name:12}{seconds:10.2f}{ratio:12.2f}{peak / 1e6:10.0f}{bound / 1e6:8.0f}", flush=True)
                figures |= {f"{kind}, {name}, times a copy": ratio, f"{kind}, {name}, peak MB": peak / 1e6}
                if name in RULES:
                    _check(source, RULES[name], target)
    history.append("files", figures)


def _check(source: Path, rules: Rules, target: Path) -> None:
    """Raises unless a file holds what the library makes of the whole tree."""
    tree = io.load(source)
    expected = jax.tree.leaves(jax.tree.map(np.asarray, jaxprune.apply(tree, rules(tree))))
    found = jax.tree.leaves(io.load(target, like=tree))
    if not all(one.tobytes() == two.tobytes() for one, two in zip(expected, found, strict=True)):
        raise SystemExit(f"'{target}' does not hold what the library makes. This is a defect; report it.")


if __name__ == "__main__":
    command(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
