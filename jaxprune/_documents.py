"""Files of JSON that say what they are, and by a checksum whether they still are it."""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_VERSION = 1


def write(path: str | os.PathLike[str], kind: str, body: Mapping[str, Any]) -> None:
    """Writes a document.

    Args:
      path: Where to.
      kind: What the document is, such as "jaxprune plan".
      body: Values that JSON can hold, by string keys.
    """
    document = {"format": kind, "version": _VERSION, **body, "crc32": _checksum(body)}
    Path(path).write_text(json.dumps(document), encoding="utf-8")


def read(path: str | os.PathLike[str], kind: str, writer: str) -> dict[str, Any]:
    """Reads what `write` wrote; `check` tells whether it is as it was written.

    Args:
      path: Of the file.
      kind: What it must be.
      writer: What writes such files, for the messages.

    Raises:
      ValueError: It is not a file, or not of that kind; the message names it.
      OSError: It is missing or cannot be read.
    """
    fix = f"Give a file written by {writer}."
    if not stat.S_ISREG(Path(path).stat().st_mode):  # to open a pipe would wait for a writer
        raise ValueError(f"'{path}' is not a regular file. {fix}")
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}). {fix}") from error
    if not isinstance(document, dict) or document.get("format") != kind or document.get("version") != _VERSION:
        raise ValueError(f"'{path}' is not a version {_VERSION} {kind}. {fix}")
    return document


def check(path: str | os.PathLike[str], document: Mapping[str, Any], writer: str) -> None:
    """Raises a `ValueError` that names the file if what `read` read from it is not what `write` wrote."""
    body = {key: value for key, value in document.items() if key not in ("format", "version", "crc32")}
    if document.get("crc32") != _checksum(body):
        raise ValueError(
            f"'{path}' is damaged: its content does not have the checksum written with it. "
            f"Give a file written by {writer}."
        )


def _checksum(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
