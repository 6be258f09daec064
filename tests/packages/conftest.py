"""`pytest -m packages tests/packages --page docs/works-with.md` writes the page of what works."""

import pathlib

import jax
import pytest

from packages import page

_ROWS = []


def pytest_addoption(parser):
    parser.addoption("--page", type=pathlib.Path, help="writes what was found of each model to this page")


@pytest.fixture(autouse=True)
def _compiled_fast():
    """These tests compile far longer than they compute."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        _ROWS.extend(value for name, value in report.user_properties if name == "model")


def pytest_sessionfinish(session):
    path = session.config.getoption("--page")
    if path is not None and not hasattr(session.config, "workerinput"):
        path.write_text(page.text(_ROWS))
