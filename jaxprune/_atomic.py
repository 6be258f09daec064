"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Generator
from pathlib import Path

_UNFINISHED = ".jaxprune-unfinished"
"""Ends the hidden name that an output has until it is complete. What has such a name was written here."""

_LOCK = ".lock"


@contextlib.contextmanager
def complete(target: Path, size: int, *, folder: bool = False) -> Generator[Path]:
    """Gives a path to write to, which gets its true name at the end. After an error nothing is left.

    A killed run leaves the hidden path, which the next run to the same target replaces.

    Args:
      target: Where the output will be. Nothing may be there yet.
      size: How many bytes are to be written, at least.
      folder: Whether to make a folder.

    Raises:
      ValueError: Something is there, its folder is not, or another run is writing it.
      OSError: The disk has less room.
    """
    if target.exists() or target.is_symlink():
        raise ValueError(f"'{target}' is there already, and nothing is written over. Remove it, or give another name.")
    if not target.parent.is_dir():
        raise ValueError(f"'{target.parent}' is no folder. Make it first, or give another name.")
    unfinished = target.with_name(f".{target.name}{_UNFINISHED}")
    with _locked(unfinished):
        _remove(unfinished)  # what a killed run left
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise OSError(
                errno.ENOSPC,
                f"'{target}' takes {size:,} bytes, and its disk has {free:,} left. Make room, or give another disk",
            )
        try:
            if folder:
                unfinished.mkdir()
            yield unfinished
            for path in [*unfinished.rglob("*"), unfinished]:
                _sync(path)
            unfinished.rename(target)
        finally:
            _remove(unfinished)
    _sync(target.parent)


@contextlib.contextmanager
def _locked(unfinished: Path) -> Generator[None]:
    """Keeps other runs away. The system unlocks it if the run is killed; where it knows no locks, there is none."""
    lock = unfinished.with_name(unfinished.name + _LOCK)
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(lock, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ValueError(f"Another run is writing '{unfinished}'. Wait until it has ended.") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _remove(unfinished: Path) -> None:
    """Removes what has this name, and what orbax makes of it while it writes."""
    for path in unfinished.parent.glob(f"{glob.escape(unfinished.name)}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.suffix != _LOCK:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some systems cannot do so for folders
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(handle)
