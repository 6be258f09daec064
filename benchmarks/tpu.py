"""What does pruning cost on a TPU?

On a TPU, the times of `step`, `selection`, `sharded`, `shrink` and `formats`. Elsewhere, they are compiled for one chip
and for meshes by the TPU's own compiler: seconds to compile, temporary memory as a part of the parameters, the memory
traffic in passes over the parameters and the operations, for which the body of a loop counts once, and what the chips
send each other at once. Nothing is run, so there are no times.
"""

from benchmarks import compiled


def main(argv: list[str]) -> None:
    """Times or compiles for a TPU."""
    compiled.main("tpu", __doc__, argv)
