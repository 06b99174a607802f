from __future__ import annotations

from typing import Any

import pytest

from proxy.providers.members import first, inner, number, text, tokens


@pytest.mark.parametrize(
    "value", [None, True, "5", -1, 1.5, float("nan"), float("inf"), 10**30, [], {}]
)
def test_what_is_no_count_is_unknown(value: Any) -> None:
    assert number(value) is None


def test_a_whole_float_is_a_count() -> None:
    assert number(45.0) == 45


def test_tokens_are_no_more_than_one_call_can_have() -> None:
    assert tokens(10**12) == 10**12
    assert tokens(10**12 + 1) is None
    assert number(10**12 + 1) == 10**12 + 1
    assert tokens("5") is None


def test_zero_is_a_count_and_null_is_none() -> None:
    entry = {"a": None, "b": 0, "c": 5}
    assert first(entry, "x", "a", "b", "c") == 0
    assert first(entry, "x", "a") is None


@pytest.mark.parametrize("value", [None, "", 5, [], "x" * 301])
def test_what_is_no_name_is_unknown(value: Any) -> None:
    assert text(value) is None
    assert text("llama") == "llama"


@pytest.mark.parametrize("value", [None, 3, [1], "x"])
def test_what_is_no_object_is_an_empty_one(value: Any) -> None:
    assert inner({"a": value}, "a") == {}
    assert inner({"a": {"b": 1}}, "a") == {"b": 1}
