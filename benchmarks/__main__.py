"""Runs one benchmark by name, or says which there are."""

import importlib
import pkgutil
import sys

import benchmarks

_HELPERS = {"__main__", "timing", "history", "models"}


def main() -> None:
    """Runs `python -m benchmarks [question] [options]`; without a question, all of them."""
    questions = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in _HELPERS)
    name, options = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else (None, [])
    if name is not None and name not in questions:
        raise SystemExit(f"There is no benchmark '{name}'; there are: {', '.join(questions)}.")
    for question in questions if name is None else [name]:
        importlib.import_module(f"benchmarks.{question}").main(options)


if __name__ == "__main__":
    main()
