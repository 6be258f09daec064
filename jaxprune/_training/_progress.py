"""A progress bar, where rich is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import TypeAlias

Tell: TypeAlias = Callable[[str, int, int], None]
"""`tell(what, done, total)`."""


@contextlib.contextmanager
def bar(shown: bool) -> Generator[Tell]:
    """Shows one line that follows what it is told.

    Args:
      shown: Else nothing happens.

    Raises:
      ImportError: It is to be shown and rich is missing.
    """
    if not shown:
        yield lambda what, done, total: None
        return
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError as error:
        raise ImportError('Progress bars need rich: pip install "jaxprune[training]".') from error
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task("")
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
