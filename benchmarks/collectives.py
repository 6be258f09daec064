"""What the devices of a mesh exchange, read from the text of a compiled program."""

import math
import re
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
_OPERATION = re.compile(rf"= (.*?) ({_KINDS}|ragged-all-to-all)(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_GIVES_BACK_ITS_ARGUMENT = {"all-gather", "collective-permute"}  # when it only starts


class Collective(NamedTuple):
    """One operation between devices; in a loop, it is there once.

    Attributes:
      kind: As XLA calls it, such as "all-reduce".
      numbers: Values in its result on one device.
      bytes: The size of these.
    """

    kind: str
    numbers: int
    bytes: int


def collectives(text: str) -> list[Collective]:
    """All of a program, in the order of its text."""
    found = []
    for result, kind, start in _OPERATION.findall(text):
        arrays = [(_bits(dtype), math.prod(map(int, filter(None, shape.split(","))))) for dtype, shape in
                  _ARRAY.findall(result)]  # fmt: skip
        if start and kind in _GIVES_BACK_ITS_ARGUMENT:
            arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else [max(arrays, key=math.prod)]
        bits = sum(width * count for width, count in arrays)
        found.append(Collective(kind, sum(count for _, count in arrays), -(-bits // 8)))
    return found


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
