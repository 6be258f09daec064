"""One of two processes that prune together; prints a digest of its masks. `test_meshes.py` starts both.

Usage: two_processes.py ADDRESS NUMBER
"""

import hashlib
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune


def main(address: str, number: int) -> None:
    """Prunes a tree that is spread over both processes, and prints what every process holds of the masks."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    assert jax.process_count() == 2
    rng = np.random.default_rng(0)
    kernels = {"rows": rng.integers(-40, 40, (32, 24)), "columns": rng.integers(-40, 40, (16, 32))}
    specs = {"rows": P("data", None), "columns": P(None, "data")}
    mesh = jax.make_mesh((jax.device_count(),), ("data",))

    def placed(name: str) -> jax.Array:
        kernel = kernels[name].astype(np.float32)
        return jax.make_array_from_callback(kernel.shape, NamedSharding(mesh, specs[name]), kernel.__getitem__)

    prune = jax.jit(lambda tree: jaxprune.magnitude(tree, 0.7))
    masks = prune({name: placed(name) for name in kernels})
    assert all(not mask.is_fully_addressable for mask in masks.values())
    together = multihost_utils.process_allgather(masks, tiled=True)
    alone = prune({name: kernel.astype(np.float32) for name, kernel in kernels.items()})
    assert all(np.array_equal(together[name], alone[name]) for name in kernels)
    print(hashlib.sha256(b"".join(np.asarray(together[name]).tobytes() for name in kernels)).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
