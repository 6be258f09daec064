"""The commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from jaxprune import _text, filters, io, rules
from jaxprune._cli import _program
from jaxprune._evaluation import LeafSummary, overview

_Command = TypeVar("_Command", bound=Callable[..., Any])
_STRATEGIES = ("uniform", "global", "n:m", "block", "slim", "variance", "dft-energy", "dft-low", "dft-high")
_LISTS = ("--strategies", "--sparsity")


def run(argv: Sequence[str]) -> int:
    """Runs a command and returns its exit code; errors are said, not raised."""
    try:
        return int(_jaxprune.main(_repeated(argv), prog_name="jaxprune", standalone_mode=False) or 0)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"jaxprune: {error}", file=sys.stderr)
        return 2


def _repeated(argv: Sequence[str]) -> list[str]:
    """The arguments of `demo` with the name of a list before each of its values: `--sparsity 0.5 0.9` is two."""
    found = list[str]()
    name = None
    for argument in argv:
        if argument.startswith("-"):
            name = argument if argument in _LISTS and argv[0] == "demo" else None
        elif name is not None and found[-1] != name:
            found.append(name)
        found.append(argument)
    return found


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="jaxprune")
def _jaxprune() -> None:
    """Pruning for JAX: checkpoints in, smaller checkpoints out."""


def _example(text: str) -> Callable[[_Command], _Command]:
    """Ends the help of a command with an example."""

    def decorate(function: _Command) -> _Command:
        function.__doc__ = f"{function.__doc__}\n\n\b\nExample:\n  {text}"
        return function

    return decorate


_layout = click.option(
    "--layout", type=click.Choice(["auto", "flax", "torch"]), default="auto", show_default=True,
    help="Which axis of a kernel is its inputs: flax (in, out), torch (out, in), or by its name.",
)  # fmt: skip
_output = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="What to write. Nothing may be there yet."
)
_path = click.argument("path", type=click.Path(path_type=Path))


@_jaxprune.command()
@_path
@_layout
@click.option("--html", type=click.Path(path_type=Path), help="Write a page that sorts, too.")
@_example("jaxprune inspect model.safetensors --html model.html")
def inspect(path: Path, layout: Any, html: Path | None) -> None:
    """What is in a checkpoint: shapes, zeros, N:M patterns, norms, and how prunable each array is.

    The column "energy" is the share of the sum of squares in the largest half of an array's numbers.
    """
    found = io.inspect(path, layout=layout, progress=_bar())
    click.echo(str(found))
    if html is not None:
        found.to_html(html, path.name)


@_jaxprune.command()
@_path
@_output
@click.option("--method", type=click.Choice(sorted(rules.METHODS)), help="How weights are ranked.  [magnitude]")
@click.option("--sparsity", type=float, help="The fraction to remove, from 0 to 1.  [0.5]")
@click.option("--pattern", help="What is removed together: 2:4, 16x16, channel, along.  [single weights]")
@click.option("--budget", type=click.Choice(sorted(rules.BUDGETS)), help="How it is spread.  [that of the method]")
@click.option("--where", metavar="REGEX", help="Prune only kernels whose paths match.")
@click.option(
    "--rules", "file", type=click.Path(path_type=Path), help="A file of rules, in place of the options above."
)
@click.option("--packed", is_flag=True, help="Write what is left in the form of `pack`.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@_layout
@_example("jaxprune prune model.safetensors -o pruned.safetensors --pattern 2:4 --where 'mlp|attn'")
def prune(
    path: Path, output: Path, file: Path | None, packed: bool, dry_run: bool, layout: Any, **options: Any
) -> None:
    """Prune a checkpoint of any size, with memory for one array.

    A folder as Hugging Face has it keeps its other files.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if file is not None and given.keys() - {"where"}:
        raise click.UsageError(f"--rules takes the place of --{', --'.join(sorted(given.keys() - {'where'}))}.")
    pattern = given.pop("where", None)
    where = filters.is_kernel & filters.named(pattern) if pattern else filters.is_kernel
    how = rules.read(file) if file else rules.Rules([rules.rule_of(**given)])
    if dry_run:
        click.echo(str(how.explain(io.shapes(path), where=where)))
        return
    found = io.prune(path, output, how, where=where, layout=layout, packed=packed, progress=_bar())
    click.echo(_table(found))


@_jaxprune.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@_example("jaxprune compare model.safetensors pruned.safetensors")
def compare(first: Path, second: Path) -> int:
    """What changed between two checkpoints, array by array. Exits with 1 where anything did."""
    found = io.compare(first, second, progress=_bar())
    click.echo(str(found))
    return 0 if found.same else 1


@_jaxprune.command()
@_path
@_output
@_layout
@_example("jaxprune pack pruned.safetensors -o packed.safetensors")
def pack(path: Path, output: Path, layout: Any) -> None:
    """Write a pruned checkpoint at the size of what is left."""
    io.pack(path, output, layout=layout, progress=_bar())
    click.echo(_sizes(path, output))


@_jaxprune.command()
@_path
@_output
@_example("jaxprune unpack packed.safetensors -o pruned.safetensors")
def unpack(path: Path, output: Path) -> None:
    """Write what `pack` wrote as arrays with zeros again, or any checkpoint as one of another kind."""
    io.unpack(path, output, progress=_bar())
    click.echo(_sizes(path, output))


@_jaxprune.command("run")
@click.argument("program", type=click.Path(path_type=Path))
@_output
@click.option("--method", type=click.Choice(_program.METHODS), default="magnitude", show_default=True)
@click.option("--sparsity", type=float, default=0.5, show_default=True, help="The fraction to remove, from 0 to 1.")
@click.option("--pattern", help="What is removed together: 2:4, 16x16, channel, along.  [single weights]")
@click.option("--budget", type=click.Choice(sorted(rules.BUDGETS)), help="How it is spread.  [that of the method]")
@click.option("--where", metavar="REGEX", help="Prune only kernels whose paths match.")
@click.option("--rounds", type=click.IntRange(1), help="Prune and retrain in so many rounds, by `trainer`.")
@click.option("--forecast", is_flag=True, help="Time whether masks like these make the model faster here.")
@_example("jaxprune run examples/digits_linen.py --method slim --sparsity 0.5 -o small")
def run_program(
    program: Path,
    output: Path,
    method: str,
    sparsity: float,
    where: str | None,
    rounds: int | None,
    forecast: bool,
    **options: Any,
) -> None:
    """Prune a model that a Python program defines, and report what came of it.

    The program defines `fun(params, inputs)`, `params` and `batches`, a list of inputs; and, where it can,
    `evaluate(fun, params)`, a number or numbers by name, `loss(params)`, `retrain(fun, params, masks)` and, for rounds,
    a `trainer`. The output is a folder with the parameters, the plan of a smaller model, and a report.
    """
    given = {name: value for name, value in options.items() if value is not None}
    chosen = rules.rule_of(**given)
    values = {name: getattr(chosen, name) for name in given}
    if where is not None:
        values["where"] = filters.is_kernel & filters.named(where)
    click.echo(str(_program.run(program, output, method, sparsity, values, rounds, timed=forecast)))


@_jaxprune.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_example("jaxprune report runs")
def report(folder: Path) -> None:
    """Compare the runs whose reports are in a folder, on one page."""
    click.echo(f"Wrote {overview(folder)}.")


@_jaxprune.command()
@click.option(
    "--strategies", multiple=True, type=click.Choice(_STRATEGIES), default=_STRATEGIES, help="One or several."
)
@click.option(
    "--sparsity", "sparsities", multiple=True, type=click.FloatRange(0, 1, max_open=True), default=(0.5, 0.8, 0.9),
    show_default=True, help="Fractions of the weights to remove.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--data", type=click.Choice(["digits", "fashion-mnist"]), default="digits", show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("/usr/share/datasets/fashion-mnist"), show_default=True,
    help="Of Fashion-MNIST's idx files.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("jaxprune-demo"), show_default=True,
    help="Folder for the report and pictures.",
)  # fmt: skip
@_example("jaxprune demo --strategies global slim --sparsity 0.9")
def demo(**options: Any) -> None:
    """Train a classifier of real images, prune and retrain it by each strategy, report what is left."""
    try:
        from jaxprune._demo import main
    except ImportError as error:
        raise ImportError(f'The demo needs {error.name}: pip install "jaxprune[demo]"') from error
    main.run(main.Settings(**options))


def _bar() -> bool:
    """Whether to show a bar: to people, not to files."""
    return sys.stderr.isatty()


def _table(found: Sequence[LeafSummary]) -> str:
    rows = [("leaf", "shape", "weights", "kept", "sparsity")]
    for leaf in found:
        shape = "×".join(map(str, leaf.shape))
        rows.append((leaf.path, shape, f"{leaf.size:,}", f"{leaf.kept:,}", f"{100 * leaf.sparsity:.2f} %"))
    size, kept = sum(leaf.size for leaf in found), sum(leaf.kept for leaf in found)
    rows.append(("all of these", "", f"{size:,}", f"{kept:,}", f"{100 * (1 - kept / max(size, 1)):.2f} %"))
    return "\n".join(_text.aligned(rows, "llrrr"))


def _sizes(before: Path, after: Path) -> str:
    first, second = map(_bytes, (before, after))
    return f"{first:,} bytes became {second:,}."


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(map(_bytes, path.iterdir()))
