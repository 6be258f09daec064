"""Rounds on disk, their arrays by orbax: each is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import zlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _documents
from jaxprune._arrays import tree
from jaxprune.typing import Masks, Params

_KIND = "jaxprune round"
_RECORD = "jaxprune.json"
"""The record of a round. What has no such file was not written here, and is left alone."""
_ARRAYS = "arrays"
_UNFINISHED = ".orbax-checkpoint-tmp"
"""Ends the name of a round until it is complete, as orbax ends its own, so that its tools skip it too."""


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keeps other runs out of a folder, which is made where it is missing. The system unlocks it if the run is killed.

    Raises:
      ValueError: Another run is in the folder, or it is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is not a folder. Give `folder=` another name, or move the file away.")
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index():
        yield
        return
    try:
        handle = _lock(folder)
    except BlockingIOError as error:
        raise ValueError(
            f"Another run is using '{folder}'. Wait until it has ended, or give another folder."
        ) from error
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def save(folder: Path, index: int, params: Params, masks: Masks, record: Mapping[str, Any]) -> None:
    """Writes a round. Until it is complete, its folder has a temporary name.

    Args:
      folder: Of the run.
      index: The round's number.
      params: Its parameters; what is not an array is not kept.
      masks: Its masks.
      record: Values that JSON can hold.

    Raises:
      ValueError: Something else has the round's name.
      ImportError: Without orbax, which `pip install "jaxprune[training]"` brings.
    """
    ocp = _orbax()
    path = _path(folder, index)
    unfinished = path.with_name(path.name + _UNFINISHED)
    if jax.process_index() == 0:
        _check_free(path)
        unfinished.mkdir(exist_ok=True)
        sums = {"params": checksums(params), "masks": checksums(masks)}
        _documents.write(unfinished / _RECORD, _KIND, {"index": index, **record, **sums})
    arrays = {"params": _arrays(params), "masks": _arrays(masks)}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(unfinished / _ARRAYS, args=ocp.args.StandardSave(arrays))
    if jax.process_index() == 0:
        unfinished.rename(path)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(str(path))


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of the complete rounds, from 0; what a killed run left half-written is removed.

    Raises:
      ValueError: A round is missing or damaged, or its name is that of something else; the message names it.
    """
    _orbax()
    names = sorted(entry.name for entry in folder.iterdir())
    rounds = [name for name in names if re.fullmatch(r"round_\d{4,}", name)]
    for index, name in enumerate(rounds):
        if name != _path(folder, index).name:
            raise ValueError(
                f"'{folder}' has '{name}', but not '{_path(folder, index).name}'. Put it back, or begin anew."
            )
    found = [_record(folder / name, index) for index, name in enumerate(rounds)]
    for name in names:
        leftover = folder / name
        if re.fullmatch(rf"round_\d{{4,}}{re.escape(_UNFINISHED)}.*", name):
            if jax.process_index() == 0 and _is_ours(leftover):
                shutil.rmtree(leftover)
            elif name.endswith(_UNFINISHED):
                _check_free(leftover.with_suffix(""))
    return found


def load(folder: Path, index: int, params: Params, masks: Masks) -> tuple[Params, Masks]:
    """Reads a round.

    Args:
      folder: Of the run.
      index: The round's number.
      params: Of the same structure and shapes; leaves that are not arrays are taken from it.
      masks: Likewise.

    Raises:
      ValueError: The round is damaged, or its arrays have other shapes; the message names it.
    """
    ocp = _orbax()
    path = _path(folder, index)
    record = _record(path, index)
    wanted = jax.tree.map(_abstract, {"params": _arrays(params), "masks": _arrays(masks)})
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            arrays = checkpointer.restore(path / _ARRAYS, args=ocp.args.StandardRestore(wanted))
        found = _filled(params, arrays["params"]), _filled(masks, arrays["masks"])
    except Exception as error:  # orbax raises whatever its libraries do
        message = f"'{path / _ARRAYS}' cannot be read ({error!s:.200}). {_fix(path)}"
        raise ValueError(message) from error
    for name, values in zip(("params", "masks"), found, strict=True):
        different = differing(checksums(values), record[name])
        if different is not None:
            raise ValueError(
                f"'{path / _ARRAYS}' is damaged: {name} '{different}' is not what was written. {_fix(path)}"
            )
    return found


def checksums(values: Any) -> dict[str, str]:
    """A checksum of each array of a tree by path, the same for the same bits; arrays on other hosts have none."""
    sums = dict[str, str]()
    for path, leaf in tree.flatten(values)[0]:
        if tree.is_array(leaf) and getattr(leaf, "is_fully_addressable", True):
            content: Any = np.ascontiguousarray(_plain(leaf)).reshape(-1).view(np.uint8)
            sums[path] = f"{leaf.dtype}{list(leaf.shape)} {zlib.crc32(content):08x}"
    return sums


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """The first path at which checksums or other records differ."""
    return next((key for key in (*first, *second) if first.get(key) != second.get(key)), None)


def _lock(folder: Path) -> int | None:
    """A handle that holds the lock; `None` where the file system has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows, which cannot lock a folder
        import msvcrt

        handle = os.open(folder / "jaxprune.lock", os.O_RDWR | os.O_CREAT)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError as error:
            os.close(handle)
            raise BlockingIOError from error
        return handle
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _record(path: Path, index: int) -> dict[str, Any]:
    try:
        record = _documents.read(path / _RECORD, _KIND, "`prune_retrain`")
        _documents.check(path / _RECORD, record, "`prune_retrain`")
    except OSError as error:
        raise ValueError(
            f"'{path}' is not a round that this version of jaxprune wrote: {error}. {_fix(path)}"
        ) from error
    if record.get("index") != index:
        raise ValueError(f"'{path}' holds round {record.get('index')}, not {index}. {_fix(path)}")
    return record


def _fix(path: Path) -> str:
    return f"Move '{path.name}' and the rounds after it away to do them again, or give another folder."


def _check_free(path: Path) -> None:
    """Raises if a round cannot be written under its name. An empty folder is what a kill at the very start leaves."""
    unfinished = path.with_name(path.name + _UNFINISHED)
    is_empty = unfinished.is_dir() and not unfinished.is_symlink() and not any(unfinished.iterdir())
    for name in (path, unfinished):
        if os.path.lexists(name) and not (name is unfinished and is_empty):
            raise ValueError(f"'{name}' is in the way of a round. Move it away, or give another folder.")


def _is_ours(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and (path / _RECORD).is_file()


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _path(folder: Path, index: int) -> Path:
    return folder.absolute() / f"round_{index:04d}"


def _arrays(values: Any) -> dict[str, Any]:
    """The arrays of a tree by number, since orbax does not know every kind of tree; it does not write empty ones."""
    leaves = enumerate(jax.tree.leaves(values))
    return {str(i): _plain(leaf) for i, leaf in leaves if tree.is_array(leaf) and leaf.size}


def _plain(leaf: Any) -> Any:
    """The numbers of a random key; any other array as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _filled(values: Any, arrays: Mapping[str, Any]) -> Any:
    def leaf_of(number: str, leaf: Any) -> Any:
        if number not in arrays:
            return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        if not _is_key(leaf):
            return arrays[number]
        return jax.random.wrap_key_data(arrays[number], impl=jax.random.key_impl(leaf))

    leaves, treedef = jax.tree.flatten(values)
    return treedef.unflatten([leaf_of(str(i), leaf) for i, leaf in enumerate(leaves)])


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError('Checkpoints need orbax: pip install "jaxprune[training]".') from error
    return orbax.checkpoint
