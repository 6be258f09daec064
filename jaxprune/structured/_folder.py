"""A shrunk model in one folder: its parameters, its plan, and a record of what they are."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _atomic, _documents
from jaxprune._arrays import checks, tree
from jaxprune.structured._plan import Plan
from jaxprune.structured._shrink import shrink_fun
from jaxprune.typing import Params

_KIND, _WRITER = "jaxprune small model", "`structured.save`"
_RECORD, _PLAN, _ARRAYS = "model.json", "plan.json", "params.npz"


def save(folder: str | os.PathLike[str], params: Params, plan: Plan) -> None:
    """Writes a shrunk model to a new folder, which is there whole or not at all.

    The folder holds `params.npz`, the parameters by path; `plan.json`; and `model.json`: the sizes before and after,
    the versions of what wrote it, and the type and a checksum of each parameter. Types that NumPy does not know, such
    as bfloat16, are bytes in `params.npz`, and `load` gives them back as they were.

    Args:
      folder: A new name. Until the folder is complete it has a hidden one.
      params: The small parameters, from `shrink` or trained on since. Leaves that are no arrays are not kept.
      plan: That `shrink` returned.

    Raises:
      ValueError: Something has the folder's name, or the parameters are not those of the plan; the message names the
        path.
      OSError: The folder around it is missing, or the disk is full. Nothing is left behind.

    Examples:
      >>> import tempfile
      >>> fun = lambda params, x: jax.nn.relu(x @ params["first"]) @ params["second"]
      >>> params, x = {"first": jnp.ones((4, 8)), "second": jnp.ones((8, 2))}, jnp.ones((1, 4))
      >>> coupling = jaxprune.couple(fun, params, x)
      >>> small, small_params, plan = jaxprune.shrink(fun, params, jaxprune.slim(params, coupling=coupling), coupling)
      >>> folder = tempfile.mkdtemp() + "/small"
      >>> save(folder, small_params, plan)
      >>> small, small_params, plan = load(folder, fun)
      >>> float(small(small_params, x)[0, 0])
      16.0
    """
    if not checks.is_a(plan, Plan):
        raise TypeError(f"`plan` must come from `shrink` or `Plan.load`; got {type(plan).__name__}.")
    tree.check_tree(params)
    arrays = {path: leaf for path, leaf in tree.flatten(params)[0] if tree.is_array(leaf)}
    _check_shapes(arrays, plan, "the parameters", "Give the parameters that `shrink` returned.")
    for path, leaf in arrays.items():
        if not checks.is_concrete(leaf) or not getattr(leaf, "is_fully_addressable", True):
            raise ValueError(f"'{path}' is not here as a whole, so it cannot be written. Gather it first.")
    sizes = plan.sizes()
    size = sum(leaf.nbytes for leaf in arrays.values())
    with _atomic.complete(Path(folder), size, folder=True) as unfinished:
        records = _write_arrays(unfinished / _ARRAYS, arrays)
        plan.save(unfinished / _PLAN)
        body = {
            "versions": {name: metadata.version(name) for name in ("jaxprune", "jax", "numpy")},
            "units": {name: list(pair) for name, pair in sizes.units.items()},
            "shapes": {path: [list(shape) for shape in pair] for path, pair in sizes.shapes.items()},
            "is_nested_dictionaries": _is_nested(params),
            "leaves": records,
        }
        _documents.write(unfinished / _RECORD, _KIND, body)


def load(
    folder: str | os.PathLike[str], fun: Callable[..., Any], like: Params | None = None
) -> tuple[Callable[..., Any], Params, Plan]:
    """Reads what `save` wrote, and makes the small function of it.

    Args:
      folder: That `save` wrote.
      fun: The full model, as it was given to `shrink`.
      like: The full parameters or the small ones, as arrays or `jax.ShapeDtypeStruct`s, where they are more than
        dictionaries of arrays in each other: a module, an `nnx.State`, a list. Leaves that are no arrays are taken from
        it.

    Returns:
      `(small_fun, small_params, plan)`, as `shrink` does.

    Raises:
      ValueError: The folder was not written by `save`, is damaged, or is not of this model; the message names what.
      OSError: Something in it is missing or cannot be read.
    """
    checks.function(fun, "fun", "model.apply")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is not a folder. Give one written by {_WRITER}.")
    record = _documents.read(folder / _RECORD, _KIND, _WRITER)
    _documents.check(folder / _RECORD, record, _WRITER)
    plan = Plan.load(folder / _PLAN)
    arrays = _read_arrays(folder / _ARRAYS, record["leaves"])
    _check_shapes(arrays, plan, f"'{folder / _ARRAYS}'", f"Give a folder written by {_WRITER}.")
    if like is None and not record["is_nested_dictionaries"]:
        raise ValueError(
            f"The parameters in '{folder}' were more than dictionaries of arrays. Give `like=` such parameters, for "
            "example `jax.eval_shape(init, key)`."
        )
    return shrink_fun(fun, plan), _nested(arrays) if like is None else _filled(like, arrays, folder), plan


def _check_shapes(arrays: Mapping[str, Any], plan: Plan, what: str, fix: str) -> None:
    for path in (*plan.leaves, *arrays):
        if path not in plan.leaves or path not in arrays:
            raise ValueError(f"'{path}' is not in {what if path in plan.leaves else 'the plan'}. {fix}")
        if tuple(arrays[path].shape) != plan.leaves[path].small:
            raise ValueError(
                f"'{path}' has shape {tuple(arrays[path].shape)}; by the plan it is {plan.leaves[path].small}. {fix}"
            )


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Writes arrays by name. Returns a record of each: what it was, and a checksum of its bytes."""
    records = dict[str, dict[str, Any]]()
    with zipfile.ZipFile(path, "w") as file:
        for name, leaf in arrays.items():
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(leaf) if is_key else leaf, order="C")
            records[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "crc32": _checksum(array)}
            if is_key:
                records[name]["key"] = str(jax.random.key_impl(leaf))
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                known = array if array.dtype.isbuiltin == 1 else _bytes(array)
                np.lib.format.write_array(member, known, allow_pickle=False)
    return records


def _bytes(array: np.ndarray) -> Any:
    return array.reshape(-1).view(np.uint8)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(_bytes(array))


def _read_arrays(path: Path, records: Mapping[str, Any]) -> dict[str, Any]:
    arrays = dict[str, Any]()
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            for name, record in records.items():
                array = np.asarray(file[name], order="C")
                if _checksum(array) != record["crc32"]:
                    raise ValueError(f"'{name}' does not have the checksum written with it")
                array = array.view(jnp.dtype(record["dtype"])).reshape(record["shape"])
                key = record.get("key")
                values = jnp.asarray(array)
                arrays[name] = values if key is None else jax.random.wrap_key_data(values, impl=key)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' is damaged ({error!s:.200}). Give a folder written by {_WRITER}.") from error
    return arrays


def _is_nested(params: Params) -> bool:
    """Whether a tree is made of arrays and dictionaries alone, so that it can be told from the paths."""
    if isinstance(params, dict):
        named = all(isinstance(key, str) and "/" not in key for key in params)
        return type(params) is dict and named and bool(params) and all(map(_is_nested, params.values()))
    return tree.is_array(params)


def _nested(arrays: Mapping[str, Any]) -> Params:
    found: dict[str, Any] = {}
    for path, array in arrays.items():
        *above, name = path.split("/")
        inside = found
        for key in above:
            inside = inside.setdefault(key, {})
        inside[name] = array
    return found


def _filled(like: Params, arrays: Mapping[str, Any], folder: Path) -> Params:
    paths = {path for path, leaf in tree.flatten(like)[0] if tree.is_array(leaf)}
    different = sorted(paths ^ {*arrays})
    if different:
        where = f"'{folder}'" if different[0] in paths else "`like`"
        raise ValueError(f"'{different[0]}' is not in {where}. Give `like=` the parameters of the same model.")
    return tree.map_with_path(lambda path, leaf: arrays[path] if tree.is_array(leaf) else leaf, like)
