"""The command line: `jaxprune COMMAND`, or `python -m jaxprune COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: The arguments; those of the process by default.

    Returns:
      The exit code: 0; 1 where `compare` finds a difference; 2 where the arguments, the files or the data are wrong, or
      a package is missing; 130 after an interrupt.
    """
    try:
        from jaxprune._cli import _commands
    except ImportError as error:
        print(f'The command line needs {error.name}: pip install "jaxprune[cli]"', file=sys.stderr)
        return 2
    return _commands.run(sys.argv[1:] if argv is None else argv)
