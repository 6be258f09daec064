"""What does selection cost on a mesh, and how much do the devices exchange?

The time to prune two kernels, one split along its rows and one along its columns, over 1, 2, 4 and 8 devices and on
both kinds of mesh, against one device; and the largest result of an operation between devices, in numbers. On a CPU the
devices are threads of one machine, so the times say nothing about a real mesh, but the traffic would be the same there.
"""

import argparse
import functools
import os

from benchmarks.collectives import collectives

_FLAG = "--xla_force_host_platform_device_count=8"


def main(argv: list[str]) -> None:
    """Times pruning on every mesh."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sharded", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of each kernel")
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args(argv)
    # This has an effect only before JAX first lists its devices, and only on a CPU.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}"

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import jaxprune
    from benchmarks import history, timing

    rng = np.random.default_rng(0)
    kernels = {name: rng.standard_normal((options.size,) * 2, np.float32) for name in ("rows", "columns")}
    specs = {"rows": PartitionSpec("data", None), "columns": PartitionSpec(None, "data")}
    prune = jax.jit(functools.partial(jaxprune.magnitude, sparsity=0.9))
    alone = {name: jnp.asarray(kernel) for name, kernel in kernels.items()}
    expected = prune(alone)
    calls = {"alone": functools.partial(prune, alone)}
    moved: dict[str, int] = {}
    for kind in (AxisType.Auto, AxisType.Explicit):
        for count in (n for n in (1, 2, 4, 8) if n <= jax.device_count()):
            mesh = jax.make_mesh((count,), ("data",), axis_types=(kind,), devices=jax.devices()[:count])
            placed = {name: jax.device_put(k, NamedSharding(mesh, specs[name])) for name, k in kernels.items()}
            name = f"{kind.name.lower()}, {count} devices"
            compiled = prune.lower(placed).compile()
            if not all(np.array_equal(mask, expected[key]) for key, mask in compiled(placed).items()):
                raise SystemExit(f"On {name} the masks differ from those on one device.")
            sent = collectives(compiled.as_text())
            calls[name], moved[name] = functools.partial(compiled, placed), max((c.numbers for c in sent), default=0)
    times = timing.interleaved(calls, options.repeats)
    print(f"{history.device()}; two kernels of {options.size} by {options.size}, the highest tenth of each\n")
    print(f"{'mesh':24}{'ms':>8}{'to alone':>10}{'numbers sent at once':>22}")
    figures: dict[str, float] = {}
    for name, size in moved.items():
        figures[f"{name}, time"] = timing.ratio(times, name, "alone")
        figures[f"{name}, numbers sent at once"] = size
        print(f"{name:24}{1e3 * np.median(times[name]):8.1f}{figures[f'{name}, time']:10.2f}{size:22,}")
    history.append("sharded", figures)
