"""What `progress=` takes."""

import sys

import pytest

from jaxprune import _progress


def test_a_function_is_called_as_it_is():
    reports = []
    with _progress.reporting(lambda *report: reports.append(report)) as report:
        report(1, 2, "kernel")
    assert reports == [(1, 2, "kernel")]


def test_a_bar_shows_what_is_done(capsys):
    with _progress.reporting(True) as report:
        report(1, 2, "kernel")
    line = capsys.readouterr().out
    assert "kernel" in line
    assert "1/2" in line


def test_nothing_is_shown_unless_it_is_asked_for(capsys):
    with _progress.reporting(False) as report:
        report(1, 2, "kernel")
    assert not capsys.readouterr().out


def test_a_bar_without_rich_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r'pip install "jaxprune\[training\]"'), _progress.reporting(True):
        pass
