"""The command line: `python -m jaxprune demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_STRATEGIES = ("uniform", "global", "n:m", "block", "slim", "variance", "dft-energy", "dft-low", "dft-high")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: The arguments; those of the process by default.

    Returns:
      The exit code: 0, or 2 where the arguments or the data are wrong.
    """
    options = _parser().parse_args(argv)
    try:
        from jaxprune._demo.main import Settings, run
    except ImportError as error:
        print(f'The demo needs {error.name}: pip install "jaxprune[demo]"', file=sys.stderr)
        return 2
    try:
        run(
            Settings(
                strategies=tuple(options.strategies),
                sparsities=tuple(options.sparsity),
                seed=options.seed,
                data=options.data,
                folder=options.folder,
                output=options.output,
            )
        )
    except ValueError as error:
        print(f"jaxprune: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxprune", description="Pruning for JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train a classifier of real images, prune and retrain it by each strategy, report what is left",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--strategies", nargs="+", choices=_STRATEGIES, default=_STRATEGIES, metavar="NAME")
    demo.add_argument(
        "--sparsity", nargs="+", type=_fraction, default=(0.5, 0.8, 0.9), help="fractions of the weights to remove"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits")
    demo.add_argument(
        "--folder", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="of Fashion-MNIST's idx files"
    )
    demo.add_argument("--output", type=Path, default=Path("jaxprune-demo"), help="folder for the report and pictures")
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a sparsity is the fraction removed, from 0 to below 1; got {text}")
    return value
