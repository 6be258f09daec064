"""Runs one benchmark by name, or all of them."""

import importlib
import inspect
import pkgutil
import sys

import benchmarks
from benchmarks import history

_HELPERS = {
    "__main__", "cold_selection", "collectives", "compiled", "history", "models", "packages", "peer_jaxpruner",
    "peer_torch_pruning", "rows", "smollm", "targets", "texts", "timing",
}  # fmt: skip
_FLAGS = {"--compare", "--plot"}


def main() -> None:
    """Runs `python -m benchmarks [question] [options] [--compare] [--plot]`; without a question, all of them.

    `--compare` prints the figures next to the last ones from the same device; `--plot` draws all that there are.
    """
    questions = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in _HELPERS)
    flags, arguments = _FLAGS.intersection(sys.argv[1:]), [a for a in sys.argv[1:] if a not in _FLAGS]
    name, options = (arguments[0], arguments[1:]) if arguments else (None, [])
    if name in ("-h", "--help"):
        raise SystemExit(f"{inspect.getdoc(main)}\n\nThe questions: {', '.join(questions)}. Each takes --help.")
    if name is not None and name not in questions:
        raise SystemExit(f"There is no benchmark '{name}'; there are: {', '.join(questions)}.")
    for question in questions if name is None else [name]:
        importlib.import_module(f"benchmarks.{question}").main(options)
        rows = history.rows(question)
        if not rows:
            continue  # A question may have had nothing to measure.
        if "--compare" in flags:
            print(history.compared(rows))
        if "--plot" in flags:
            print(f"drawn: {history.plot(question, rows)}")


if __name__ == "__main__":
    main()
