"""Checkpoints to write: array by array, there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from jaxprune import _atomic
from jaxprune.io._safetensors import Leaf, Writer
from jaxprune.io._sources import DTYPES, Folder, Source, orbax, serialization

Write: TypeAlias = Callable[..., None]
"""Called for every array by name, in the order of its source; what packs takes a frequency mask, too."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt")


@contextlib.contextmanager
def writing(target: Path, source: Source) -> Generator[Write]:
    """What to call with the arrays of a source, by name and in its order, as they are to stand in the target.

    The ending of its name decides what is written; a name without one is a folder, of the kind that the source is.

    Raises:
      ValueError: There is something at the target, or it can be no such file.
      OSError: The disk is too small.
    """
    kinds = {".safetensors": _file, ".npz": _npz, ".msgpack": _msgpack}
    if target.suffix in kinds:
        opened = kinds[target.suffix](target, source)
    elif isinstance(source, Folder):
        opened = _folder(target, source)
    elif target.suffix:
        raise ValueError(f"'{target}' ends in none of {', '.join(kinds)}. Name it so, or without an ending for orbax.")
    else:
        opened = _orbax(target, source)
    with opened as write:
        yield write


@contextlib.contextmanager
def safetensors(target: Path, leaves: Sequence[Leaf], metadata: Mapping[str, str]) -> Generator[Write]:
    """A safetensors file of arrays with these names, no larger than these shapes."""
    with _atomic.complete(target, 0) as unfinished, unfinished.open("wb") as file:
        writer = Writer(file, leaves, metadata)
        yield writer.write
        writer.close()


@contextlib.contextmanager
def _file(target: Path, source: Source) -> Generator[Write]:
    with _atomic.complete(target, _nbytes(source)) as unfinished, unfinished.open("wb") as file:
        writer = Writer(file, list(source.leaves.values()), source.metadata)
        yield writer.write
        writer.close()


@contextlib.contextmanager
def _folder(target: Path, source: Folder) -> Generator[Write]:
    """The shards again, and copies of whatever else describes the model."""
    with _atomic.complete(target, _nbytes(source), folder=True) as unfinished:
        for path in sorted(source.path.rglob("*")):
            inside = path.relative_to(source.path)
            if any(part.startswith(".") for part in inside.parts) or path.suffix in _WEIGHTS or not path.is_file():
                continue
            (unfinished / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, unfinished / inside)
        with contextlib.ExitStack() as files:
            writers = {
                name: Writer(
                    files.enter_context((unfinished / name).open("wb")), list(shard.leaves.values()), shard.metadata
                )
                for name, shard in source.shards.items()
            }
            yield lambda name, array: writers[source.places[name]].write(name, array)
            for writer in writers.values():
                writer.close()


@contextlib.contextmanager
def _npz(target: Path, source: Source) -> Generator[Write]:
    foreign = {name: leaf.dtype.name for name, leaf in source.leaves.items() if leaf.dtype.isbuiltin != 1}
    with _atomic.complete(target, _nbytes(source)) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:

        def write(name: str, array: np.ndarray) -> None:
            plain = array.view(f"V{array.dtype.itemsize}") if name in foreign else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, plain, allow_pickle=False)

        yield write
        if foreign:
            archive.writestr(DTYPES, json.dumps(foreign))


@contextlib.contextmanager
def _msgpack(target: Path, source: Source) -> Generator[Write]:
    """Written at the end, since Flax's function takes the whole tree."""
    serialize = serialization().msgpack_serialize
    arrays = dict[str, np.ndarray]()
    with _atomic.complete(target, _nbytes(source)) as unfinished:
        yield arrays.__setitem__
        unfinished.write_bytes(serialize(source.tree(arrays)))


@contextlib.contextmanager
def _orbax(target: Path, source: Source) -> Generator[Write]:
    """Written at the end, since orbax takes the whole tree."""
    ocp = orbax()
    arrays = dict[str, np.ndarray]()
    with _atomic.complete(target, _nbytes(source)) as unfinished:
        yield arrays.__setitem__
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(unfinished.absolute(), source.tree(arrays))


def _nbytes(source: Source) -> int:
    return sum(leaf.nbytes for leaf in source.leaves.values())
