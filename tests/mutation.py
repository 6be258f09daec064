"""Mutation testing: changes one thing at a time in a copy of the package, and asks the tests whether they notice.

Run from the root of the repository, in an environment with the extras `test` and `mutation`:

    python tests/mutation.py budgets --sample 20
    python tests/mutation.py all --sample 10 --seed 1

A mutant is a changed operator, comparison, constant or branch, as cosmic-ray makes them. Each runs the tests of its
module in `MODULES`, which end at the first failure. What survives is printed with its line: either a test is missing,
or the change makes no difference. Then simplify the code; or, if it is a constant, write its name down under
`EQUIVALENT` with the reason, and it is not changed any more.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray import mutating, plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.work_item import MutationSpec, TestOutcome

MODULES = {
    "budgets": (["budgets.py"], ["test_defaults.py", "test_budgets.py", "test_measured.py", "test_properties.py"]),
    "masks": (["_masks"], ["test_masks.py", "test_frequency.py", "test_fourier.py", "test_first_steps.py"]),
    "patterns": (["patterns.py"], ["test_defaults.py", "test_protocols.py", "test_properties.py", "test_selection.py"]),
    "selection": (["_selection"], ["test_selection.py", "test_protocols.py"]),
    "transforms": (
        ["_transforms"],
        ["test_defaults.py", "test_first_steps.py", "test_transforms.py", "test_sparse_training.py"],
    ),
    "layerwise": (["layerwise"], ["test_defaults.py", "test_kept.py", "test_layerwise.py"]),
    "plan": (["structured/_plan.py", "structured/_factored.py"], ["test_plan.py", "test_states.py"]),
    "coupling": (["_jaxpr/coupling"], ["test_coupling.py", "test_shrink.py", "test_zoo.py"]),
}
SKIPPED = ("core/ExceptionReplacer", "core/RemoveDecorator", "core/VariableInserter", "core/VariableReplacer")
_FAST = "decides how fast the search is; what it finds is exact, wherever it looks first"
EQUIVALENT = {
    "_selection/brackets.py": {
        "_DEVIATIONS": _FAST, "_EVEN": _FAST, "_OCTAVE": _FAST, "_MOST_OCTAVES": _FAST, "_CURVATURE": _FAST,
        "_FEW": _FAST,
    },
    "_selection/counting.py": {"_TYPICAL": _FAST, "_DEVIATIONS": _FAST},
    "_selection/pieces.py": {
        "_LARGE": _FAST, "_ALIKE": _FAST, "_SAMPLED": _FAST, "_SAMPLED_EACH": _FAST, "_MOST_SAMPLED": _FAST,
    },
    "patterns.py": {"_UNROLLED": "decides whether a loop is unrolled"},
}  # fmt: skip
TIMEOUT = 900.0


def without_effect(file: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The places, from and to, where a change changes nothing: annotations, some arguments, and `EQUIVALENT`."""
    places = list[ast.expr]()
    equivalent = next((names for name, names in EQUIVALENT.items() if file.as_posix().endswith(f"jaxprune/{name}")), {})
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.arg | ast.AnnAssign):
            places += [node.annotation] if node.annotation else []
        elif isinstance(node, ast.FunctionDef):
            places += [node.returns] if node.returns else []
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


def is_python(spec: MutationSpec) -> bool:
    """Whether a mutant can be read at all: the bare `*` of a signature is taken for an operator."""
    operator = plugins.get_operator(spec.operator_name)()
    code = mutating.mutate_code(spec.module_path.read_text(), operator, spec.occurrence)
    try:
        ast.parse(code or "")
    except SyntaxError:
        return False
    return True


def commands(tests: list[str]) -> list[str]:
    """What runs the tests: first one case of each, which takes seconds, and then all."""
    command = f"{sys.executable} -m pytest -x -q -n 0 {' '.join(f'tests/{test}' for test in tests)}"
    return [f"{command} --quick", command]


def survives(spec: MutationSpec, tests: list[str]) -> bool:
    """Whether no test notices a mutant."""
    return all(
        mutating.mutate_and_test([spec], command, TIMEOUT).test_outcome == TestOutcome.SURVIVED
        for command in commands(tests)
    )


def main(argv: list[str]) -> None:
    """Prints what survives, and the share that was noticed, by module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", choices=[*MODULES, "all"])
    parser.add_argument("--sample", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        # What is changed is a copy, so that a killed run leaves the repository as it was.
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv*"))
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        for name in MODULES if options.module == "all" else [options.module]:
            parts, tests = MODULES[name]
            paths = [copy / "jaxprune" / part for part in parts]
            files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
            every = mutants(files)
            for command in commands(tests):
                if subprocess.run(command.split(), check=False, capture_output=True).returncode:
                    raise SystemExit(f"The tests of {name} fail without any change: {command}")
            draw = random.Random(options.seed)
            drawn = (draw.choice(group) for group in draw.sample(every, len(every)))
            chosen = list(itertools.islice(filter(is_python, drawn), options.sample))
            alive = 0
            for spec in chosen:
                label = (
                    f"{spec.module_path.relative_to(copy)}:{spec.start_pos[0]}:{spec.start_pos[1]} {spec.operator_name}"
                )
                if survives(spec, tests):
                    alive += 1
                    print(f"  survived: {label}#{spec.occurrence}", flush=True)
            print(f"{name}: {len(chosen) - alive} of {len(chosen)} noticed, of {len(every)} places", flush=True)


if __name__ == "__main__":
    if subprocess.run([sys.executable, "-c", "import jaxprune"], check=False).returncode:
        raise SystemExit("Install the package first: pip install -e '.[test,mutation]'")
    main(sys.argv[1:])
