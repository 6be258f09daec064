"""The safetensors format: a header of JSON, then the bytes of all arrays.

Read and written here array by array, which the package `safetensors` does not do when it writes, and checked before
anything is believed. The format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu, "U16": np.uint16, "I16": np.int16,
    "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U32": np.uint32, "I32": np.int32, "F32": np.float32,
    "U64": np.uint64, "I64": np.int64, "F64": np.float64, "C64": np.complex64,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_MOST_HEADER = 100_000_000  # bytes, as the format sets it
_WHERE = "Give a file that was written whole, by `safetensors` or `jaxprune.io.save`."


class Leaf(NamedTuple):
    """An array in a file.

    Attributes:
      name: As the file has it.
      shape: Its shape.
      dtype: Its dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return self.size * self.dtype.itemsize


class Safetensors:
    """A file, of which only the header was read.

    Attributes:
      leaves: By name, in the order of the file.
      metadata: Strings by strings.

    Raises:
      ValueError: It is not such a file, or it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.leaves = dict[str, Leaf]()
        self._begin = dict[str, int]()
        with path.open("rb") as file:
            size = file.seek(0, 2)
            header, start = _header(path, file, size)
        self.metadata = _metadata(path, header.pop("__metadata__", {}))
        end = 0
        for begin, finish, leaf in sorted((_leaf(path, name, value) for name, value in header.items()), key=_place):
            if begin != end:
                raise _damaged(
                    path, f"'{leaf.name}' begins at byte {begin} of the data, and the one before it ends at {end}"
                )
            self.leaves[leaf.name], self._begin[leaf.name], end = leaf, start + begin, finish
        if start + end != size:
            raise _damaged(path, f"its header describes {start + end:,} bytes, and there are {size:,}")

    def read(self, name: str) -> np.ndarray:
        """One array, in memory of its own.

        Raises:
          ValueError: The file has changed since it was opened.
        """
        leaf = self.leaves[name]
        with self.path.open("rb") as file:
            file.seek(self._begin[name])
            data = np.fromfile(file, np.uint8, leaf.nbytes)
        if data.size != leaf.nbytes:
            raise _damaged(self.path, f"it ends within '{name}'")
        return data.view(leaf.dtype).reshape(leaf.shape)


class Writer:
    """Writes arrays as they come. The header is put before them at the end, into room that was left for it.

    Args:
      file: Empty and open for writing.
      leaves: The names that are to come, and shapes no smaller than theirs.
      metadata: Strings by strings.

    Raises:
      ValueError: A dtype or a name that the format does not have.
    """

    def __init__(self, file: BinaryIO, leaves: Sequence[Leaf], metadata: Mapping[str, str]):
        self._file, self._metadata = file, dict(metadata)
        most = max((1, *(leaf.nbytes for leaf in leaves))) * len(leaves)
        self._room = len(_encoded({leaf.name: _entry(leaf, most, most) for leaf in leaves}, self._metadata, 0))
        self._entries = dict[str, Any]()
        self._end = 0
        file.write(bytes(self._room))

    def write(self, name: str, array: np.ndarray) -> None:
        """Appends an array."""
        leaf = Leaf(name, array.shape, array.dtype)
        self._entries[name] = _entry(leaf, self._end, self._end + leaf.nbytes)
        self._end += leaf.nbytes
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Writes the header."""
        self._file.seek(0)
        self._file.write(_encoded(self._entries, self._metadata, self._room))


def _encoded(entries: Mapping[str, Any], metadata: Mapping[str, str], room: int) -> bytes:
    """The length of the header and the header, filled with blanks to a multiple of eight bytes, or to the room."""
    body = {**({"__metadata__": metadata} if metadata else {}), **entries}
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    length = max(-(-len(text) // 8) * 8, room - 8)
    return length.to_bytes(8, "little") + text.ljust(length)


def _entry(leaf: Leaf, begin: int, end: int) -> dict[str, Any]:
    if leaf.name == "__metadata__" or leaf.dtype not in _NAMES:
        what = "that name" if leaf.name == "__metadata__" else f"dtype {leaf.dtype}"
        raise ValueError(f"safetensors has no {what}; got it for '{leaf.name}'. Cast or rename it, or save as `.npz`.")
    return {"dtype": _NAMES[leaf.dtype], "shape": list(leaf.shape), "data_offsets": [begin, end]}


def _header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MOST_HEADER):
        raise _damaged(path, f"it has {size:,} bytes, and its first eight promise a header of {length:,}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no object of JSON")
    return header, 8 + length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _damaged(path, "its metadata are not strings by strings")
    return value


def _leaf(path: Path, name: str, value: Any) -> tuple[int, int, Leaf]:
    """Where an array begins and ends, and what it is."""
    fields = value if isinstance(value, dict) else {}
    code, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(code, str) or not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"the entry of '{name}' is not a dtype, a shape and two offsets: {value!r:.80}")
    if code not in _DTYPES:
        raise ValueError(f"'{path}' holds '{name}' in {code}; it is read in {', '.join(_DTYPES)}. Convert the file.")
    leaf = Leaf(name, tuple(shape), np.dtype(_DTYPES[code]))
    begin, end = offsets
    if end - begin != leaf.nbytes:
        raise _damaged(path, f"'{name}', {code} {leaf.shape}, takes {leaf.nbytes} bytes and is given {end - begin}")
    return begin, end, leaf


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _place(row: tuple[int, int, Leaf]) -> tuple[int, int]:
    return row[:2]


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"'{path}' is no intact safetensors file: {why}. {_WHERE}")
