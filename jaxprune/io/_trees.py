"""Trees of parameters from files and to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from jaxprune import _progress
from jaxprune._arrays import checks, tree
from jaxprune.io import _layouts, _packed, _sinks, _sources
from jaxprune.io._sources import Source
from jaxprune.typing import Params


def load(path: str | Path, *, like: Params | None = None, separator: str | None = None) -> Params:
    """Reads a checkpoint.

    Args:
      path: A file of safetensors, `.npz` or Flax's `.msgpack`; a folder of safetensors files, with an index where they
        are several; or a checkpoint of orbax. What `pack` wrote is unpacked.
      like: Parameters, or `jax.ShapeDtypeStruct` in their place, whose structure the result gets; the checkpoint must
        have an array of the same shape and dtype for each.
      separator: What stands between the parts of a name: "." in safetensors and "/" in the others, unless it is given.

    Returns:
      NumPy arrays in their own dtypes, bfloat16 and float8 included, in nested dictionaries, or as in `like`.

    Raises:
      ValueError: The checkpoint is damaged, or does not fit `like`; the message names the file and the array.
      ImportError: It needs a package that is not there.
      OSError: It cannot be read.

    Examples:
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
      >>> jaxprune.io.save("model.safetensors", params)
      >>> jaxprune.io.load("model.safetensors")["dense"]["kernel"].shape
      (2, 3)
    """
    source = _opened(path, separator)
    if like is None:
        return source.tree({name: source.read(name) for name in source.leaves})
    rows, treedef = tree.flatten(like)
    names = {name.replace(source.separator, "/"): name for name in source.leaves}
    for where, leaf in rows:
        found = source.leaves.get(names.get(where, ""))
        if tree.is_array(leaf) and (found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype)):
            got = "no such array" if found is None else f"shape {found.shape}, {found.dtype}"
            raise ValueError(
                f"'{where}' has shape {leaf.shape}, {leaf.dtype}; '{path}' has {got}. Give the tree that was saved, or "
                f"another `separator=`. There are {tree.some(list(names))}."
            )
    return treedef.unflatten([source.read(names[where]) if tree.is_array(leaf) else leaf for where, leaf in rows])


def shapes(path: str | Path, *, separator: str | None = None) -> Params:
    """What `load` would give, with a `jax.ShapeDtypeStruct` in place of each array: reads only the header.

    Args:
      path: See `load`, also for the errors.
      separator: See `load`.
    """
    source = _opened(path, separator)
    return source.tree({name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in source.leaves.items()})


def save(
    path: str | Path,
    params: Params,
    *,
    metadata: Mapping[str, str] | None = None,
    separator: str | None = None,
    packed: bool = False,
) -> None:
    """Writes a tree of arrays.

    Args:
      path: Ends in `.safetensors`, `.npz` or `.msgpack`; without an ending it is a checkpoint of orbax.
      params: Any pytree of arrays.
      metadata: Strings by strings, which only safetensors keeps.
      separator: What stands between the parts of a name; see `load`.
      packed: Write what has zeros in the form of `pack`.

    Raises:
      ValueError: There is something at the path, two arrays would have one name, or a dtype cannot be written.
      TypeError: A leaf is no array.
      OSError: The disk is too small.
    """
    target = Path(path)
    tree.check_tree(params)
    rows, _ = tree.flatten(params)
    for where, leaf in rows:
        if not checks.is_a(leaf, int, float, np.generic) and not (tree.is_array(leaf) and checks.is_concrete(leaf)):
            raise TypeError(f"'{where}' must be an array to be saved; got {type(leaf).__name__}. Take it out first.")
    if metadata and target.suffix != ".safetensors":
        raise ValueError(f"'{target}' keeps no metadata; only `.safetensors` does. Leave them out, or name it so.")
    chosen = separator or ("." if target.suffix == ".safetensors" else "/")
    source = _sources.Tree(target, params, chosen)
    source.metadata = dict(metadata or {})
    _copied(source, target, packed=packed)


def pack(
    source: str | Path,
    target: str | Path,
    *,
    layout: _layouts.Layout = "auto",
    progress: _progress.Progress | bool = False,
) -> None:
    """Writes a pruned checkpoint at the size of what is left: which numbers are not 0, and those.

    Of single weights a bit each says whether they are kept; of N of every M, along the inputs, as many bits for a group
    as a choice of N takes. What that does not make smaller is written as it is. `unpack` gives back every bit, and so
    do the ten lines of NumPy on the page *Files*.

    Args:
      source: See `load`.
      target: A `.safetensors` file.
      layout: Along which axis groups are looked for: see `prune`.
      progress: Whether to show a bar, or a function `(done, total, what)`, in bytes.

    Raises:
      ValueError: The source is damaged, or the target there already or no `.safetensors`.
      OSError: The disk is too small.
    """
    _copied(_packed.opened(Path(source)), Path(target), packed=True, layout=layout, progress=progress)


def unpack(source: str | Path, target: str | Path, *, progress: _progress.Progress | bool = False) -> None:
    """Writes what `pack` wrote as arrays with zeros again; or any checkpoint as one of another kind.

    Args:
      source: See `load`.
      target: See `save`.
      progress: See `pack`, as for the errors.
    """
    _copied(_packed.opened(Path(source)), Path(target), progress=progress)


def _opened(path: str | Path, separator: str | None) -> Source:
    source = _packed.opened(Path(path))
    if separator is not None:
        source.separator = separator
    return source


def _copied(
    source: Source,
    target: Path,
    *,
    packed: bool = False,
    layout: _layouts.Layout = "auto",
    progress: _progress.Progress | bool = False,
) -> None:
    total, done = sum(leaf.nbytes for leaf in source.leaves.values()), 0
    writing = _packed.writing(target, source, layout) if packed else _sinks.writing(target, source)
    with _progress.reporting(progress) as report, writing as write:
        for name, leaf in source.leaves.items():
            report(done, total, name)
            write(name, source.read(name))
            done += leaf.nbytes
        report(total, total, "done")
