"""Checks the annotations of the package while tests run, and collects the code of README, docs and docstrings."""

import contextlib
import doctest
import itertools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import install_import_hook
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

# Shapes included. As for a type checker, an `int` will do for a `float`.
install_import_hook("jaxprune", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

_LOOKED_AT_EVERY = 10  # tests
_finished = itertools.count(1)

_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def pytest_report_header():
    """Says which JAX is tested, since two are supported at once."""
    return f"jax {jax.__version__}, numpy {np.__version__}, optax {optax.__version__}"


def pytest_addoption(parser):
    """Adds `--quick` and `--optimized`."""
    parser.addoption("--quick", action="store_true", help="one case of each test of `tests/`, without those of a whole")
    parser.addoption("--optimized", action="store_true", help="compile with LLVM's optimizations, as users do")


def pytest_configure(config):
    """Compiles without LLVM's optimizations; under `--quick`, keeps what was compiled for the next time.

    All of XLA's own are made. LLVM's take a quarter of the time of all tests, most of which run a program only once.
    """
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if not config.getoption("--optimized") and flags not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    if config.getoption("--quick"):
        jax.config.update("jax_compilation_cache_dir", str(config.rootpath / ".pytest_cache" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(config, items):
    """Under `--quick`, leaves the first case of each test."""
    if not config.getoption("--quick"):
        return
    kept, left_out, seen = [], [], set()
    for item in items:
        test = (item.path, getattr(item, "originalname", item.name))
        is_example = not isinstance(item, pytest.Function)
        (left_out if is_example or item.get_closest_marker("whole") or test in seen else kept).append(item)
        seen.add(test)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_xdist_auto_num_workers():
    """Keeps to one process on an accelerator, whose memory the first that uses it takes."""
    return None if jax.default_backend() == "cpu" else 0


def pytest_runtest_teardown():
    """Lets go of compiled programs now and then: some thousands use up a process's memory maps, and XLA crashes."""
    if next(_finished) % _LOOKED_AT_EVERY == 0 and _many_memory_maps():
        jax.clear_caches()


def _many_memory_maps():
    """Half of what Linux allows. No sooner, since much of what is cleared is compiled again."""
    process = pathlib.Path("/proc")
    if not (process / "self/maps").exists():
        return False
    allowed = int((process / "sys/vm/max_map_count").read_text())
    return (process / "self/maps").read_bytes().count(b"\n") > allowed // 2


@pytest.fixture(scope="module")
def scratch_folder(tmp_path_factory):
    """Makes the code of one page run in a folder of its own, so that it leaves no file behind."""
    folder = tmp_path_factory.mktemp("page")
    with contextlib.chdir(folder):
        yield folder


def _name_the_imports(namespace):
    import jaxprune

    namespace.update(jax=jax, jnp=jnp, optax=optax, jaxprune=jaxprune)


_pages = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=_OPTIONS), SkipParser()],
    patterns=["README.md", "docs/**/*.md", "docs/*.md"],
    fixtures=["scratch_folder"],
)
# By source and not with `--doctest-modules`, which finds no function that `jax.jit` or a type checker has wrapped.
_docstrings = Sybil(
    parsers=[DocTestParser(optionflags=_OPTIONS)],
    patterns=["jaxprune/**/*.py", "jaxprune/*.py"],
    setup=_name_the_imports,
    fixtures=["scratch_folder"],
)
pytest_collect_file = (_pages + _docstrings).pytest()
