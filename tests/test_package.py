"""The package as a whole: its version, its public names and the places that must mention them."""

import ast
import importlib.metadata
import inspect
import operator
import pathlib

import pytest

import jaxprune

_ROOT = pathlib.Path(__file__).parents[1]
_INIT = ast.parse((_ROOT / "jaxprune" / "__init__.py").read_text())
_EXPORTS = [alias for statement in _INIT.body if isinstance(statement, ast.ImportFrom) for alias in statement.names]
_NAMES = sorted(alias.name for alias in _EXPORTS)
_API = (_ROOT / "docs" / "api.md").read_text()


def _documented_names():
    """The public names, with those of each public module in place of a module that only gathers them."""
    for name in _NAMES:
        value = getattr(jaxprune, name)
        if inspect.ismodule(value) and hasattr(value, "__path__"):
            yield from (f"{name}.{member}" for member, it in vars(value).items() if inspect.isfunction(it))
        elif not inspect.ismodule(value):
            yield name


def test_version_is_the_same_everywhere():
    version = importlib.metadata.version("jaxprune")
    assert jaxprune.__version__ == version
    assert f"\n## [{version}]" in (_ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (_ROOT / "CITATION.cff").read_text()


def test_init_only_reexports():
    assert len(_NAMES) > 10
    assert [alias.name for alias in _EXPORTS if alias.asname != alias.name] == []
    assert not [s for s in _INIT.body if isinstance(s, ast.FunctionDef | ast.ClassDef | ast.If)]


@pytest.mark.parametrize("name", list(_documented_names()))
def test_public_name_is_documented(name):
    """A name that `docs/api.md` leaves out is on no page that a reader could find it by."""
    value = operator.attrgetter(name)(jaxprune)
    assert value.__doc__
    # By its own path where a module of the same name would be found in its place.
    paths = [f"jaxprune.{name}", f"{value.__module__}.{value.__name__}"]
    assert any(f"\n::: {path}\n" in _API for path in paths)


def test_every_page_is_in_the_navigation():
    navigation = (_ROOT / "mkdocs.yml").read_text()
    pages = [str(path.relative_to(_ROOT / "docs")) for path in (_ROOT / "docs").rglob("*.md")]
    assert len(pages) > 4
    assert [page for page in pages if page not in navigation] == []
