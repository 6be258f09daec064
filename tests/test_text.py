"""Tables as text, to the letter."""

import pytest

from jaxprune import _text

ROWS = [("leaf", "weights", "why"), ("encoder/kernel", "20", ""), ("head", "1,024", "it is small")]


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks():
    assert _text.aligned(ROWS, "lrl") == [
        "leaf            weights  why",
        "encoder/kernel       20",
        "head              1,024  it is small",
    ]


def test_a_table_in_markdown():
    assert _text.markdown(ROWS[:2]) == ["| leaf | weights | why |", "|---|---|---|", "| encoder/kernel | 20 |  |"]


def test_a_row_of_another_length_raises():
    with pytest.raises(ValueError, match="zip"):
        _text.aligned([*ROWS, ("a", "b")], "lrl")
