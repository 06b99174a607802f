from __future__ import annotations

import base64

import pytest

from proxy.store.pages import BadCursor, blank, decode, encode, shown
from proxy.store.tables import api_calls, daily_costs, models

KEY = [api_calls.c.timestamp, api_calls.c.id]


def test_a_cursor_comes_back_as_it_was() -> None:
    assert decode(encode([1_735_732_800_000, 7]), KEY) == [1_735_732_800_000, 7]
    assert decode(encode(["2025-01-01"]), [daily_costs.c.date]) == ["2025-01-01"]


@pytest.mark.parametrize(
    "cursor",
    [
        "?",
        "eA",
        "é",
        encode([1]),
        encode([1, "2"]),
        encode([1, 2, 3]),
        encode([1, 2**60]),
        encode([True, 2]),
        base64.urlsafe_b64encode(b"7").decode(),
    ],
)
def test_what_is_no_cursor_of_the_list_is_refused(cursor: str) -> None:
    with pytest.raises(BadCursor):
        decode(cursor, KEY)


def test_a_row_is_shown_with_times_and_objects() -> None:
    row = blank(models) | {"first_seen": 1_735_732_800_001, "metadata": '{"a": [1]}'}
    seen = shown(models, row)
    assert seen["first_seen"] == "2025-01-01T12:00:00.001Z"
    assert (seen["last_seen"], seen["metadata"]) == (None, {"a": [1]})
    assert shown(models, row | {"metadata": "cut {"})["metadata"] == "cut {"
