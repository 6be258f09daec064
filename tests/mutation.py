"""Mutation testing: changes one thing at a time in a copy of the package, and asks the tests whether they notice.

Run from the root of the repository, in an environment with the extras `test` and `mutation`:

    python tests/mutation.py budgets --sample 20
    python tests/mutation.py all --sample 10 --seed 1

A mutant is a changed operator, comparison, constant or branch, as cosmic-ray makes them. Each runs the tests of its
module in `MODULES`, which end at the first failure: one case of each test, and all of them if that finds nothing.
What survives is printed with its lines: either a test is missing, or the change makes no difference. Then simplify
the code; or write the name of the constant or the function down under `EQUIVALENT` with the reason, and it is not
changed any more.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from cosmic_ray import mutating, plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.work_item import MutationSpec

MODULES = {
    "budgets": (["budgets.py"], ["test_defaults.py", "test_budgets.py", "test_measured.py", "test_properties.py"]),
    "masks": (["_masks"], ["test_masks.py", "test_frequency.py", "test_fourier.py", "test_first_steps.py"]),
    "patterns": (["patterns.py"], ["test_defaults.py", "test_patterns.py", "test_kept.py", "test_selection.py"]),
    "selection": (
        ["_selection"],
        ["test_selection.py", "test_budgets.py", "test_frequency.py", "test_protocols.py"],
    ),
    "transforms": (
        ["_transforms"],
        ["test_defaults.py", "test_first_steps.py", "test_transforms.py", "test_sparse_training.py"],
    ),
    "layerwise": (["layerwise"], ["test_defaults.py", "test_kept.py", "test_layerwise.py"]),
    "plan": (["structured/_plan.py", "structured/_factored.py"], ["test_plan.py", "test_states.py"]),
    "coupling": (["_jaxpr/coupling"], ["test_coupling.py", "test_primitives.py", "test_shrink.py", "test_zoo.py"]),
}
EVERY = ["test_wrong_calls.py"]  # tests that any module may fail
SKIPPED = ("core/ExceptionReplacer", "core/RemoveDecorator", "core/VariableInserter", "core/VariableReplacer")
_FAST = "decides how fast the search is; what it finds is exact, wherever it looks first"
EQUIVALENT = {
    "_jaxpr/coupling/forest.py": {"_ROOM": "decides how much memory is taken at first"},
    "_selection/brackets.py": {
        "_DEVIATIONS": _FAST, "_EVEN": _FAST, "_OCTAVE": _FAST, "_MOST_OCTAVES": _FAST, "_CURVATURE": _FAST,
        "_FEW": _FAST, "_next_marks": _FAST,
    },
    "_selection/counting.py": {"_TYPICAL": _FAST, "_DEVIATIONS": _FAST, "_sampled_marks": _FAST},
    "_selection/pieces.py": {
        "_LARGE": _FAST, "_ALIKE": _FAST, "_SAMPLED": _FAST, "_SAMPLED_EACH": _FAST, "_MOST_SAMPLED": _FAST,
    },
    "patterns.py": {"_UNROLLED": "decides whether a loop is unrolled"},
}  # fmt: skip
# What the tests import besides the package. Taken from here, a mutant's tests start in a fraction of the time.
IMPORTS = (
    "beartype", "equinox", "flax.linen", "flax.nnx", "hypothesis", "jax.scipy.fft", "jax.scipy.linalg", "jaxtyping",
    "optax.contrib", "sybil",
)  # fmt: skip
OPTIONS = ["-x", "-q", "-n0", "-Wignore::pytest.PytestAssertRewriteWarning"]
TIMEOUT = 900


def without_effect(file: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The places, from and to, where a change changes nothing: annotations, some arguments, and `EQUIVALENT`."""
    places = list[ast.expr | ast.stmt]()
    equivalent = next((names for name, names in EQUIVALENT.items() if file.as_posix().endswith(f"jaxprune/{name}")), {})
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.arg | ast.AnnAssign):
            places += [node.annotation] if node.annotation else []
        elif isinstance(node, ast.FunctionDef):
            places += node.body if node.name in equivalent else [node.returns] if node.returns else []
        elif isinstance(node, ast.keyword) and node.arg in ("strict", "batch_size"):
            places.append(node.value)
        elif isinstance(node, ast.Assign):
            places += [node.value] if getattr(node.targets[0], "id", None) in equivalent else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            places.append(node.func)  # list[int | None]()
    return [((p.lineno, p.col_offset), (p.end_lineno or 0, p.end_col_offset or 0)) for p in places]


def mutants(files: list[Path]) -> list[list[MutationSpec]]:
    """For every place that can be changed, all changes."""
    found: dict[tuple[Path, tuple[int, int], tuple[int, int]], list[MutationSpec]] = {}
    for file in files:
        nodes = list(ast_nodes(get_ast(file.read_text())))
        idle = without_effect(file)
        for name in sorted(plugins.operator_names()):
            if name in SKIPPED:
                continue
            operator = plugins.get_operator(name)()
            places = [place for node in nodes for place in operator.mutation_positions(node)]
            for occurrence, (start, end) in enumerate(places):
                if not any(begin <= start < finish for begin, finish in idle):
                    spec = MutationSpec(file, name, occurrence, start, end)
                    found.setdefault((file, start, end), []).append(spec)
    return list(found.values())


def changed(spec: MutationSpec) -> str:
    """The text of a mutant's file."""
    operator = plugins.get_operator(spec.operator_name)()
    return mutating.mutate_code(spec.module_path.read_text(), operator, spec.occurrence) or ""


def is_python(spec: MutationSpec) -> bool:
    """Whether a mutant can be read at all: the bare `*` of a signature is taken for an operator."""
    try:
        ast.parse(changed(spec))
    except SyntaxError:
        return False
    return True


def passes(arguments: list[str]) -> bool:
    """Whether tests pass, and in time, in a fork of this process, which has made their imports but the package's."""
    process = os.fork()
    if not process:
        failed = 1
        try:
            signal.alarm(TIMEOUT)
            output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            failed = pytest.main(arguments)
            sys.stdout.flush()
        finally:
            os._exit(failed)
    return os.waitpid(process, 0)[1] == 0


def survives(spec: MutationSpec, arguments: list[str]) -> bool:
    """Whether no test notices a mutant."""
    text = spec.module_path.read_text()
    spec.module_path.write_text(changed(spec))
    survived = passes(arguments)
    spec.module_path.write_text(text)
    return survived


def described(spec: MutationSpec) -> str:
    """A mutant's place, and the lines that it changes."""
    lines = zip(spec.module_path.read_text().splitlines(), changed(spec).splitlines(), strict=False)
    title = f"  survived: {spec.module_path}:{spec.start_pos[0]} {spec.operator_name}#{spec.occurrence}"
    return "\n".join([title, *(f"  - {old}\n  + {new}" for old, new in lines if old != new)])


def main(argv: list[str]) -> None:
    """Prints what survives, and the share that was noticed, by module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", choices=[*MODULES, "all"])
    parser.add_argument("--sample", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for name in IMPORTS:
        importlib.import_module(name)
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        # What is changed is a copy, so that a killed run leaves the repository as it was.
        copy = shutil.copytree(root, f"{folder}/copy", ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv*"))
        os.chdir(copy)
        os.environ["PYTHONPATH"] = copy
        sys.path.insert(0, copy)
        for name in MODULES if options.module == "all" else [options.module]:
            parts, tests = MODULES[name]
            paths = [Path("jaxprune", part) for part in parts]
            files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
            every = mutants(files)
            draw = random.Random(options.seed)
            drawn = (draw.choice(group) for group in draw.sample(every, len(every)))
            alive = list(itertools.islice(filter(is_python, drawn), options.sample))
            count = len(alive)
            whole = [*OPTIONS, *(f"tests/{test}" for test in tests + EVERY)]
            for arguments in ([*whole, "--quick"], whole):
                if alive and not passes(arguments):
                    raise SystemExit(f"{Path('output').read_text()}\nThe tests of {name} fail without any change.")
                alive = [spec for spec in alive if survives(spec, arguments)]
            title = f"{name}: {count - len(alive)} of {count} noticed, of {len(every)} places"
            print(title, *map(described, alive), sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
