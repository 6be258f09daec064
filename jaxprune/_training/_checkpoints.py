"""Rounds on disk, by orbax: each is there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxprune._arrays import tree
from jaxprune.typing import Masks, Params


def save(folder: Path, index: int, params: Params, masks: Masks, record: Mapping[str, Any]) -> None:
    """Writes a round. Until it is complete, its folder has a temporary name.

    Args:
      folder: Of the run; made where it is missing.
      index: The round's number.
      params: Its parameters; what is not an array is not kept.
      masks: Its masks.
      record: Values that JSON can hold.

    Raises:
      ImportError: Without orbax, which `pip install "jaxprune[training]"` brings.
    """
    ocp = _orbax()
    arrays = {"params": _arrays(params), "masks": _arrays(masks)}
    parts = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(dict(record)))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(_path(folder, index), args=parts)


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of the complete rounds, from 0; what a killed run left half-written is removed."""
    ocp = _orbax()
    found = list[dict[str, Any]]()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        while _path(folder, len(found)).exists():
            wanted = ocp.args.Composite(record=ocp.args.JsonRestore())
            found.append(checkpointer.restore(_path(folder, len(found)), args=wanted).record)
    for leftover in folder.glob(f"{_path(folder, len(found)).name}?*"):
        shutil.rmtree(leftover)
    return found


def load(folder: Path, index: int, params: Params, masks: Masks) -> tuple[Params, Masks]:
    """Reads a round.

    Args:
      folder: Of the run.
      index: The round's number.
      params: Of the same structure and shapes; leaves that are not arrays are taken from it.
      masks: Likewise.
    """
    ocp = _orbax()
    like = {"params": _arrays(params), "masks": _arrays(masks)}
    wanted = jax.tree.map(_abstract, like)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
        arrays = checkpointer.restore(_path(folder, index), args=parts).arrays
    return _filled(params, arrays["params"]), _filled(masks, arrays["masks"])


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _path(folder: Path, index: int) -> Path:
    return folder.absolute() / f"round_{index:04d}"


def _arrays(values: Any) -> dict[str, Any]:
    """The arrays of a tree by number, since orbax does not know every kind of tree."""
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(values)) if tree.is_array(leaf)}


def _filled(values: Any, arrays: Mapping[str, Any]) -> Any:
    leaves, treedef = jax.tree.flatten(values)
    return treedef.unflatten([arrays.get(str(i), leaf) for i, leaf in enumerate(leaves)])


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError('Checkpoints need orbax: pip install "jaxprune[training]".') from error
    return orbax.checkpoint
