from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.api.spreadsheet import written


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def one(value: Any) -> str:
    """The cell of a value."""
    _, (cell, _) = read(written([{"a": value, "b": 1}], {"a": None, "b": None}))
    return cell


def test_a_header_stands_above_the_rows_and_lines_end_as_the_rfc_says() -> None:
    rows = [{"a": "x", "b": 1}, {"a": 'say "no", twice\nor more', "b": 0.1}]
    text = written(rows, {"a": None, "b": None})
    assert text == 'a,b\r\nx,1\r\n"say ""no"", twice\nor more",0.1\r\n'


def test_no_rows_still_have_a_header() -> None:
    assert written([], {"a": None, "b": {"c": None}}) == "a,b.c\r\n"


def test_objects_are_flattened_and_lists_left_out() -> None:
    blank = {"name": None, "ratio": {"rate": None, "latency_ms": {"p50": None}}, "models": []}
    row = {"name": "x", "ratio": {"rate": 1.0, "latency_ms": {"p50": 2}}, "models": [{"a": 1}]}
    header, cells = read(written([row], blank))
    assert header == ["name", "ratio.rate", "ratio.latency_ms.p50"]
    assert cells == ["x", "1.0", "2"]


def test_what_is_not_a_column_is_left_out_and_what_is_missing_is_empty() -> None:
    text = written([{"b": {"c": None}, "gpus": []}, {"b": None}], {"a": None, "b": {"c": 0}})
    assert read(text) == [["a", "b.c"], ["", ""], ["", ""]]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-5, "-5"),
        (-0.5, "-0.5"),
        (1e-06, "1e-06"),
        ({"eval_count": 7}, '{"eval_count":7}'),
        ("", ""),
        ("plain", "plain"),
        ("a=b", "a=b"),
        ("=1+1", "'=1+1"),
        ("+49", "'+49"),
        ("-5", "'-5"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1", "'＝1"),  # noqa: RUF001
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
    ],
)
def test_a_cell_says_what_the_value_is_and_text_is_never_a_formula(value: Any, cell: str) -> None:
    assert one(value) == cell


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_can_be_read_back(text: str) -> None:
    assert one(text).removeprefix("'") == text.removeprefix("'")
    assert not one(text).startswith(("=", "+", "-", "@"))
