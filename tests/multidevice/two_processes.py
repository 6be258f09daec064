"""One of two processes that prune and train together; prints a digest of what it holds. `test_meshes.py` starts both.

The first also compares with one device; the second need not, since their digests have to be the same.

Usage: two_processes.py ADDRESS NUMBER
"""

import functools
import hashlib
import sys

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import budgets

SPECS = {"rows": P("data", None), "columns": P(None, "data")}
OPTIMIZER = jaxprune.gradual(optax.sgd(0.5), jaxprune.magnitude, optax.linear_schedule(0.3, 0.7, 2), end=2)


def main(address: str, number: int) -> None:
    """Works on a tree that is spread over both processes and prints what every process holds."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    assert jax.process_count() == 2
    rng = np.random.default_rng(0)
    shapes = {"rows": (32, 24), "columns": (16, 32)}
    kernels = {name: rng.integers(-40, 40, shape).astype(np.float32) for name, shape in shapes.items()}
    jointly = functools.partial(jaxprune.magnitude, sparsity=0.7, budget=budgets.global_)
    tasks = [jax.jit(jointly), trained]
    digest = hashlib.sha256()
    alone = [task(kernels) if number == 0 else None for task in tasks]
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(kind,))
        spread = {name: placed(kernel, NamedSharding(mesh, SPECS[name])) for name, kernel in kernels.items()}
        for task, expected in zip(tasks, alone, strict=True):
            result = task(spread)
            assert all(not leaf.is_fully_addressable for leaf in jax.tree.leaves(result))
            together = multihost_utils.process_allgather(result, tiled=True)
            if number == 0:
                pairs = zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True)
                assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
            for leaf in jax.tree.leaves(together):
                digest.update(np.asarray(leaf).tobytes())
    print(digest.hexdigest())


def placed(kernel: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array of both processes, each of which makes its own part."""
    return jax.make_array_from_callback(kernel.shape, sharding, kernel.__getitem__)


def trained(params: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Parameters and masks after three steps, masks by the uniform budget."""
    state = OPTIMIZER.init(params)
    for _ in range(3):
        params, state = step(params, state)
    return params, jaxprune.masks_of(state)


@jax.jit
def step(params: dict[str, jax.Array], state: object) -> tuple[dict[str, jax.Array], object]:
    """The gradient pulls every weight towards -2."""
    updates, state = OPTIMIZER.update(jax.tree.map(lambda leaf: leaf * 0.5 + 1, params), state, params)
    return optax.apply_updates(params, updates), state


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
