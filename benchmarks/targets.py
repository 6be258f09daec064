"""Compiles for a TPU or a GPU that is not there, and reads what its compiler says about the program.

The compilers come with the packages of the extras `tpu-compile` and `gpu-compile`: `libtpu` and JAX's plugin for CUDA.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from benchmarks.collectives import Collective, collectives

Kind: TypeAlias = Literal["tpu", "gpu"]

_PACKAGES = {"tpu": "libtpu", "gpu": "jax_cuda12_plugin"}
_CHIPS = {"tpu": ("accel[0-9]*", "vfio/[0-9]*"), "gpu": ("nvidia[0-9]*",)}  # in /dev
# libtpu would ask a cloud's server what machine this is.
_NO_QUERIES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_H100 = Path(__file__).with_name("h100.txt")


class Program(NamedTuple):
    """What a compiler says about a program. All sizes are those on one chip.

    Attributes:
      lowering: Seconds to trace and to lower it.
      compiling: Seconds to compile it.
      parameters: Bytes of the first argument.
      temporary: Bytes that it needs besides arguments and results.
      held: Bytes of all of these together.
      flops: Floating-point operations, the body of a loop counted once; `None` where the compiler does not say.
      accessed: Bytes read and written, counted likewise.
      collectives: What the chips exchange.
    """

    lowering: float
    compiling: float
    parameters: int
    temporary: int
    held: int
    flops: float | None
    accessed: float | None
    collectives: tuple[Collective, ...]

    @property
    def largest(self) -> int:
        """Bytes of the largest operation between chips."""
        return max((c.bytes for c in self.collectives), default=0)


def is_here(kind: Kind) -> bool:
    """Whether JAX runs on such a chip. It is not asked where there is none: libtpu would wait for one."""
    return any(any(Path("/dev").glob(pattern)) for pattern in _CHIPS[kind]) and jax.default_backend() == kind


def missing(kind: Kind) -> str | None:
    """What to do before this process can compile for such a chip, if anything."""
    package = _PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        return f'needs the package `{package.replace("_", "-")}`; install it by `pip install -e ".[{kind}-compile]"`'
    try:
        devices(kind)
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        return f"`{package}` does not compile on this machine ({reason}); with `JAX_PLATFORMS=cpu` it may"
    return None


@functools.cache
def devices(kind: Kind, topology: str | None = None) -> tuple[jax.Device, ...]:
    """The chips of a topology: for a TPU as in "v5e:2x2", for GPUs their number, H100s of one machine.

    JAX lists its devices once in a process. Where this call comes first, it makes it list the CPU alone.
    """
    if kind == "tpu":
        for name, value in _NO_QUERIES.items():
            os.environ.setdefault(name, value)
    if not is_here(kind):
        jax.config.update("jax_platforms", "cpu")
    if kind == "tpu":
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=topology or "v5e:2x2").devices)
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=_H100.read_text(), topology=f"1x{topology or 4}x1"
    )
    return tuple(described.devices)


def alone(kind: Kind, generation: str = "v5e") -> SingleDeviceSharding:
    """On one chip; of this generation where it is a TPU."""
    return SingleDeviceSharding(devices(kind, f"{generation}:2x2" if kind == "tpu" else None)[0])


def grid(kind: Kind, topology: str, shape: tuple[int, ...], *names: str) -> Mesh:
    """All chips of a topology as a mesh."""
    return Mesh(np.array(devices(kind, topology)).reshape(shape), names)


def chip_of_kernels(kind: Kind) -> contextlib.AbstractContextManager[Any]:
    """Tells Pallas what its kernels are lowered for; from JAX 0.12 on, it asks for the GPU at hand."""
    if kind == "tpu":
        return contextlib.nullcontext()
    known = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": 132, "platform": "gpu"}
    taken = inspect.signature(AbstractDevice).parameters  # `platform` came with JAX 0.12
    h100 = AbstractDevice(**{name: known[name] for name in taken})
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=h100))


def placed(tree: Any, sharding: Any) -> Any:
    """Abstract arrays like those of a tree: by a `Sharding` for all of them, or by a tree of them."""
    one = isinstance(sharding, jax.sharding.Sharding)
    shardings = jax.tree.map(lambda _: sharding, tree) if one else sharding

    def leaf(x: Any, lies: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies) if hasattr(x, "shape") else x

    return jax.tree.map(leaf, tree, shardings)


def split(tree: Any, mesh: Mesh) -> Any:
    """Abstract arrays on a mesh, their last axes split along the mesh's axes where these divide them."""

    def leaf(x: Any) -> NamedSharding:
        axes = [None] * x.ndim
        for position, name in zip(range(x.ndim - 1, -1, -1), reversed(mesh.axis_names), strict=False):
            axes[position] = name if x.ndim > 1 and x.shape[position] % mesh.shape[name] == 0 else None
        return NamedSharding(mesh, PartitionSpec(*axes))

    return placed(tree, jax.tree.map(leaf, tree))


def compiled(fun: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> tuple[Any, Program]:
    """The compiled function of abstract arguments, and what its compiler says about it.

    For a GPU it is the function without its calls back to Python, such as those that warn: JAX lowers them only where
    there is one.
    """
    start = time.perf_counter()
    (chip, *_), *_ = (x.sharding.device_set for x in jax.tree.leaves(args) if hasattr(x, "sharding"))
    silent = mock.patch.object(jax.debug, "callback", return_value=None)
    with silent if chip.platform == "gpu" else contextlib.nullcontext():
        lowered = jax.jit(fun, donate_argnums=donate).lower(*args)
    traced = time.perf_counter()
    executable = lowered.compile()
    done = time.perf_counter()
    costs = {}
    with contextlib.suppress(jax.errors.JaxRuntimeError, NotImplementedError):
        costs = executable.cost_analysis() or {}
    memory = executable.memory_analysis()
    given, returned, shared = (
        memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.alias_size_in_bytes,
    )  # fmt: skip
    program = Program(
        lowering=traced - start,
        compiling=done - traced,
        parameters=sum(map(_bytes, jax.tree.leaves(args[0]))),
        temporary=memory.temp_size_in_bytes,
        held=given + returned - shared + memory.temp_size_in_bytes,
        flops=costs.get("flops"),
        accessed=costs.get("bytes accessed"),
        collectives=tuple(collectives(executable.as_text())),
    )
    return executable, program


def _bytes(leaf: Any) -> int:
    """Of what one chip holds."""
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize


def versions(kind: Kind) -> str:
    """Of JAX and the compiler's package."""
    package = _PACKAGES[kind].replace("_", "-")
    return f"JAX {jax.__version__}, {package} {importlib.metadata.version(package)}"
