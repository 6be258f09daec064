"""What does pruning cost on a GPU?

On a GPU, the times of `step`, `selection`, `sharded`, `shrink` and `formats`. Elsewhere, they are compiled for an H100
and for a mesh of them by the GPU's own compiler: seconds to compile, temporary memory as a part of the parameters, and
what the chips send each other at once. Nothing is run, so there are no times.
"""

from benchmarks import compiled


def main(argv: list[str]) -> None:
    """Times or compiles for a GPU."""
    compiled.main("gpu", __doc__, argv)
