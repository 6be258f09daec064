"""What `progress=` takes, in every function that has it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

Progress: TypeAlias = Callable[[int, int, str], Any]
"""Called as `progress(done, total, what)`."""


@contextlib.contextmanager
def reporting(progress: Progress | bool) -> Generator[Progress]:
    """What to call with `(done, total, what)`: the user's function, or one that moves a bar, or one that does nothing.

    Args:
      progress: A function; or whether to show a bar, by rich.

    Raises:
      ImportError: A bar is asked for and rich is missing.
    """
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield lambda done, total, what: None
        return
    try:
        from rich import progress as bars
    except ImportError as error:
        raise ImportError('Progress bars need rich: pip install "jaxprune[training]".') from error
    columns = bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn()
    with bars.Progress(*columns, bars.TimeElapsedColumn()) as bar:
        task = bar.add_task("")
        yield lambda done, total, what: bar.update(task, description=what, completed=done, total=total)
