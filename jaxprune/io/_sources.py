"""Checkpoints to read: what is in them at once, their arrays one by one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import ml_dtypes as ml_dtypes  # so that NumPy knows bfloat16 by its name
import numpy as np

from jaxprune._arrays import tree
from jaxprune.io._safetensors import Leaf, Safetensors

DTYPES = "__dtypes__.json"
"""The member of an `.npz` that says which dtypes its arrays have that NumPy does not know."""
INDEX = ".safetensors.index.json"


@runtime_checkable
class Source(Protocol):
    """A checkpoint.

    Attributes:
      path: Where it is.
      separator: What stands between the parts of a name.
      leaves: Its arrays by name, in the order in which they lie there.
      metadata: Strings by strings.
    """

    path: Path
    separator: str
    leaves: dict[str, Leaf]
    metadata: dict[str, str]

    def read(self, name: str) -> np.ndarray:
        """One array, in memory of its own."""
        ...

    def tree(self, values: Mapping[str, Any]) -> Any:
        """The tree of some values by name, as the checkpoint's arrays are nested."""
        ...


class Named:
    """What has only names: dictionaries within dictionaries."""

    separator = "."

    def tree(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Nested by the parts of the names.

        Raises:
          ValueError: A name is the beginning of another, which leaves no place for it.
        """
        found = dict[str, Any]()
        for name, value in values.items():
            *parents, last = name.split(self.separator)
            place: Any = found
            for part in parents:
                place = place.setdefault(part, {}) if isinstance(place, dict) else place
            if not isinstance(place, dict) or last in place:
                raise ValueError(f"'{name}' lies within or over another array. Load it with another `separator=`.")
            place[last] = value
        return found


class _Structured:
    """What has a structure of its own."""

    structure: Any
    leaves: dict[str, Leaf]

    def tree(self, values: Mapping[str, Any]) -> Any:
        """In that structure; `None` for what is not among the values."""
        return self.structure.unflatten([values.get(name) for name in self.leaves])


class File(Safetensors, Named):
    """A safetensors file."""


class Folder(Named):
    """Safetensors files and an index of what is in which, or one such file, beside files that describe the model.

    Attributes:
      index: The name of the index, if there is one.
      shards: The files by name.
      places: For each array the file that it is in.
    """

    def __init__(self, path: Path):
        self.path = path
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        indices = [name for name in names if name.endswith(INDEX)]
        files = [name for name in names if name.endswith(".safetensors")]
        if len(indices) > 1 or (not indices and len(files) > 1):
            raise ValueError(f"'{path}' has {tree.some([*indices, *files])}. Give the one that is meant as a file.")
        self.index = indices[0] if indices else None
        index = _index(path / self.index) if self.index else None
        wanted = files if index is None else sorted(set(index.values()))
        for name in wanted:
            if name not in files:
                raise ValueError(f"The index in '{path}' names the file '{name}', which is not there. Copy it, too.")
        self.shards = {name: File(path / name) for name in wanted}
        self.places = {name: shard for shard, file in self.shards.items() for name in file.leaves}
        if index is not None and self.places != index:
            other = next(name for name in (*index, *self.places) if index.get(name) != self.places.get(name))
            raise ValueError(
                f"'{path / str(self.index)}' is wrong about '{other}'. Take index and files of one saving."
            )
        self.leaves = {name: leaf for file in self.shards.values() for name, leaf in file.leaves.items()}
        self.metadata = next(iter(self.shards.values())).metadata

    def read(self, name: str) -> np.ndarray:
        """One array."""
        return self.shards[self.places[name]].read(name)


class Npz(Named):
    """A file of NumPy's."""

    def __init__(self, path: Path):
        self.path, self.metadata = path, dict[str, str]()
        self.leaves = dict[str, Leaf]()
        self._members = dict[str, str]()
        try:
            with zipfile.ZipFile(path) as archive:
                dtypes = json.loads(archive.read(DTYPES)) if DTYPES in archive.namelist() else {}
                for member in archive.namelist():
                    if member != DTYPES:
                        name = member.removesuffix(".npy")
                        self.leaves[name] = _npy(archive, member, name, dtypes.get(name))
                        self._members[name] = member
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"'{path}' is no intact file of `numpy.savez`: {error}.") from error
        self.separator = "/" if any("/" in name for name in self.leaves) else "."

    def read(self, name: str) -> np.ndarray:
        """One array."""
        leaf = self.leaves[name]
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self._members[name]) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
        except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
            raise ValueError(f"'{self.path}' is damaged within '{name}': {error}.") from error
        return array.view(leaf.dtype) if array.dtype != leaf.dtype else array


class Tree(_Structured):
    """A tree in memory, as if it were a file."""

    def __init__(self, path: Path, values: Any, separator: str = "/"):
        self.path, self.separator, self.metadata = path, separator, dict[str, str]()
        rows, self.structure = tree.flatten(values)
        self._arrays = {path.replace("/", separator): np.asarray(leaf) for path, leaf in rows}
        self.leaves = {name: Leaf(name, array.shape, array.dtype) for name, array in self._arrays.items()}
        if len(self.leaves) < len(rows):
            raise ValueError(f"'{path}' would have two arrays of one name. Give another `separator=`.")

    def read(self, name: str) -> np.ndarray:
        """A copy of one array."""
        return self._arrays[name].copy()


class Orbax(_Structured):
    """A checkpoint of orbax."""

    separator = "/"

    def __init__(self, path: Path):
        self.path, self.metadata = _orbax_item(path), dict[str, str]()
        ocp = orbax()
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                found = checkpointer.metadata(self.path.absolute()).item_metadata.tree
        except Exception as error:  # orbax raises whatever its libraries do
            raise ValueError(f"'{path}' is no intact checkpoint of orbax ({error!s:.200}).") from error
        rows, self.structure = jax.tree.flatten_with_path(found)
        names = [tree.path_of(keys) for keys, _ in rows]
        self.leaves = {
            name: Leaf(name, tuple(value.shape), np.dtype(value.dtype))
            for name, (_, value) in zip(names, rows, strict=True)
        }

    def read(self, name: str) -> np.ndarray:
        """One array."""
        ocp = orbax()
        item = self.structure.unflatten([0 if other == name else ocp.PLACEHOLDER for other in self.leaves])
        kinds = self.structure.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * len(self.leaves))
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                found = checkpointer.restore(
                    self.path.absolute(), args=ocp.args.PyTreeRestore(item=item, restore_args=kinds)
                )
        except Exception as error:  # orbax raises whatever its libraries do
            raise ValueError(f"'{self.path}' is damaged within '{name}' ({error!s:.200}).") from error
        return np.array(self.structure.flatten_up_to(found)[list(self.leaves).index(name)])


def opened(path: Path) -> Source:
    """A checkpoint, by the kind of file or folder that it is.

    Raises:
      ValueError: It is none, or damaged; the message names it.
      ImportError: It needs a package that is not there.
      OSError: It is missing or cannot be read.
    """
    if path.is_dir():
        if any(entry.name.endswith((".safetensors", INDEX)) for entry in path.iterdir()):
            return Folder(path)
        return Orbax(path)
    if not path.is_file():
        if path.exists():
            raise ValueError(f"'{path}' is neither a file nor a folder. Give a checkpoint.")
        raise FileNotFoundError(f"There is no '{path}'.")
    kinds = {".safetensors": File, ".npz": Npz, ".msgpack": _msgpack}
    if path.suffix not in kinds:
        raise ValueError(
            f"'{path}' is none of the files that are read: {', '.join(kinds)}, a folder with safetensors files, or one "
            f"of orbax. Convert it first; pickles, as in `.bin` and `.pt`, can run code and are never read."
        )
    return kinds[path.suffix](path)


def orbax() -> Any:
    """The package.

    Raises:
      ImportError: It is missing.
    """
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError('Checkpoints of orbax need it: pip install "jaxprune[training]".') from error
    return orbax.checkpoint


def serialization() -> Any:
    """Flax's module for msgpack.

    Raises:
      ImportError: Flax is missing.
    """
    try:
        from flax import serialization
    except ImportError as error:
        raise ImportError("Files of msgpack are Flax's, and need it: pip install flax.") from error
    return serialization


def _msgpack(path: Path) -> Tree:
    restore = serialization().msgpack_restore
    try:
        values = restore(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it holds no tree")
        return Tree(path, values)
    except Exception as error:  # msgpack raises many kinds
        raise ValueError(f"'{path}' is no intact file of `flax.serialization.to_bytes`: {error!s:.200}.") from error


def _index(path: Path) -> dict[str, str]:
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) for name in places.values()):
            raise ValueError("a file's name is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"'{path}' is no index of safetensors files: {error!r:.200}.") from error
    for name in places.values():
        if name != Path(name).name or name in ("", ".", ".."):
            raise ValueError(f"'{path}' names '{name}', which is no file beside it. Do not trust this folder.")
    return places


def _npy(archive: zipfile.ZipFile, member: str, name: str, dtype: str | None) -> Leaf:
    """What an array is, by its header alone."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, found = read(file)
        begin = file.tell()
    leaf = Leaf(name, shape, np.dtype(dtype) if dtype else found)
    if found.hasobject or (found.kind == "V" and dtype is None):
        raise ValueError(
            f"'{name}' has dtype {found}, which does not say what it is; save it with `jaxprune.io.save`, or as float32"
        )
    if leaf.dtype.itemsize != found.itemsize or archive.getinfo(member).file_size != begin + leaf.nbytes:
        raise ValueError(f"'{name}' has {archive.getinfo(member).file_size - begin} bytes, not {leaf.nbytes}")
    return leaf


def _orbax_item(path: Path) -> Path:
    """The folder with the arrays: of a step with one item, that item's."""
    if (path / "_METADATA").is_file():
        return path
    items = [entry for entry in sorted(path.iterdir()) if (entry / "_METADATA").is_file()]
    if len(items) == 1:
        return items[0]
    steps = [entry.name for entry in sorted(path.iterdir()) if entry.is_dir()]
    found = [entry.name for entry in items] or steps
    raise ValueError(f"'{path}' is no checkpoint. It has the folders {tree.some(found)}: give one that is.")
