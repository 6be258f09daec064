"""The package as a whole: its version, its public names and the pages that must mention them."""

import ast
import collections
import importlib
import importlib.metadata
import inspect
import pathlib
import pkgutil
import re
import tomllib

import pytest

import jaxprune

_ROOT = pathlib.Path(__file__).parents[1]
_INIT = ast.parse((_ROOT / "jaxprune" / "__init__.py").read_text())
_EXPORTS = [alias for statement in _INIT.body if isinstance(statement, ast.ImportFrom) for alias in statement.names]
_NAMES = sorted(alias.name for alias in _EXPORTS)
_ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
_ADDED_BY_THE_HOOK = {"jaxtyping"}  # That of `conftest.py`, which checks annotations, imports it into every module.
_LAYERS = [
    contract
    for contract in tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
]


def _is_public(path):
    return not any(part.startswith("_") for part in path.split("."))


def _modules():
    """The dotted path of every module and package of `jaxprune`."""
    return ["jaxprune", *(module.name for module in pkgutil.walk_packages(jaxprune.__path__, "jaxprune."))]


def _exports(package):
    return {name for name in dir(package) if not name.startswith("_")} - _ADDED_BY_THE_HOOK


def _definitions(module):
    """The public names that a module itself defines, each with its docstring."""
    found = {}
    body = ast.parse(inspect.getsource(module)).body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = ast.get_docstring(statement)
        elif isinstance(statement, ast.AnnAssign | ast.Assign):
            target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
            text = following.value if isinstance(following, ast.Expr) else None
            found[target.id] = text.value if isinstance(text, ast.Constant) else None
    return {name: text for name, text in found.items() if not name.startswith("_")}


def _reexports(module):
    """The names that a module imports as `x as x`, each with its docstring."""
    found = {}
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.ImportFrom):
            origin = importlib.import_module(statement.module)
            for name in (alias.name for alias in statement.names if alias.asname == alias.name):
                found[name] = getattr(origin, name).__doc__ or _definitions(origin).get(name)
    return found


def _public_names():
    """Every public name with its docstring: what packages list in `dir`, and what modules define."""
    names = {}
    for path in filter(_is_public, _modules()):
        module = importlib.import_module(path)
        names[path] = module.__doc__
        members = _definitions(module) | _reexports(module)
        if hasattr(module, "__path__"):
            members = {name: members.get(name) for name in _exports(module)}
        names |= {f"{path}.{name}": text for name, text in members.items()}
    return names


def _documented_names():
    """How often each name is documented on the API pages. The entry of a module documents what the module defines."""
    counts = collections.Counter()
    for page in (_ROOT / "docs" / "api").glob("*.md"):
        for path in _ENTRY.findall(page.read_text()):
            value = pkgutil.resolve_name(path)
            counts[path] += 1
            if inspect.ismodule(value) and not hasattr(value, "__path__"):
                counts.update(f"{path}.{name}" for name in _definitions(value))
    return counts


def test_version_is_the_same_everywhere():
    version = importlib.metadata.version("jaxprune")
    assert jaxprune.__version__ == version
    assert f"\n## [{version}]" in (_ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (_ROOT / "CITATION.cff").read_text()


def test_init_only_reexports():
    assert len(_NAMES) > 10
    assert [alias.name for alias in _EXPORTS if alias.asname != alias.name] == []
    assert not [s for s in _INIT.body if isinstance(s, ast.FunctionDef | ast.ClassDef | ast.If)]


def test_public_names_are_documented_once_and_no_others():
    """A name on no page cannot be found; one on two pages is two things to a reader; a private one may change."""
    names, documented = set(_public_names()) - {"jaxprune"}, _documented_names()
    assert len(names) > 100
    assert sorted(names - set(documented)) == []
    assert sorted(set(documented) - names) == []
    assert [path for path, count in documented.items() if count > 1] == []


def test_modules_without_an_underscore_are_those_documented():
    modules = {path for path in _modules() if _is_public(path)} - {"jaxprune"}
    documented = {path for path in _documented_names() if inspect.ismodule(pkgutil.resolve_name(path))}
    assert modules == documented
    reachable = {f"jaxprune.{name}" for name in _exports(jaxprune) if inspect.ismodule(getattr(jaxprune, name))}
    assert modules == reachable


def test_no_function_has_the_name_of_its_module():
    """One of them would hide the other in the package."""
    found = {path: ast.parse(path.read_text()).body for path in (_ROOT / "jaxprune").rglob("*.py")}
    assert len(found) > 100
    definitions = ast.FunctionDef | ast.ClassDef
    assert [p for p, body in found.items() if any(isinstance(s, definitions) and s.name == p.stem for s in body)] == []


def test_public_names_have_docstrings():
    assert [name for name, text in _public_names().items() if not text] == []


def test_every_page_is_in_the_navigation():
    navigation = (_ROOT / "mkdocs.yml").read_text()
    pages = [str(path.relative_to(_ROOT / "docs")) for path in (_ROOT / "docs").rglob("*.md")]
    assert len(pages) > 30
    assert [page for page in pages if f": {page}\n" not in navigation] == []


@pytest.mark.parametrize("contract", _LAYERS, ids=[contract["containers"][0] for contract in _LAYERS])
def test_architecture_shows_the_import_contract(contract):
    """A diagram names its package in a comment; its boxes, from the bottom up, are the layers of the contract."""
    text = (_ROOT / "docs" / "architecture.md").read_text()
    (package,) = contract["containers"]
    diagram = re.search(rf"%% {re.escape(package)}\n(.*?)```", text, re.DOTALL)[1]
    assert re.findall(r'\["(.*?)"\]', diagram) == contract["layers"][::-1]


def test_architecture_has_a_line_for_every_room():
    text = (_ROOT / "docs" / "architecture.md").read_text()
    rooms = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    package = _ROOT / "jaxprune"
    there = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(rooms) == sorted(there - {"__init__"})
    assert {path.split(".")[1] for path in _modules() if "." in path} <= set(rooms)
