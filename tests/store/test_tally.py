from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bounds import MOST_SUM
from proxy.store.tally import Tally, plus, thousandths
from tests.store.rows import call, failed

EMPTY: list[Any] = [None] * len(Tally.__struct_fields__)


def tally(*calls: Any) -> Tally:
    made = Tally()
    for each in calls:
        made.count(each)
    return made


CALLS = [
    call(input_tokens=3, total_duration_ms=5.25, time_to_first_token_ms=1.0),
    call(attempt=2, cost_nano_usd=7),
    failed(is_final=False),
    call(input_tokens=None, output_tokens=None, total_tokens=None, cost_nano_usd=None),
]


@pytest.mark.parametrize("at", range(len(CALLS) + 1))
def test_calls_can_be_counted_in_parts(at: int) -> None:
    first, rest = tally(*CALLS[:at]), tally(*CALLS[at:])
    row = rest.onto(first.onto(EMPTY))
    first.update(rest)
    assert first == tally(*CALLS)
    assert row == tally(*CALLS).onto(EMPTY)


def test_a_copy_is_another_one() -> None:
    whole = tally(*CALLS)
    other = whole.copy()
    assert other == whole
    other.count(CALLS[0])
    assert (other.attempts, whole.attempts) == (5, 4)
    assert other.latency_sketch != whole.latency_sketch


def test_what_no_call_tells_stays_unknown_and_nothing_is_not_0() -> None:
    silent = call(input_tokens=None, output_tokens=0, total_tokens=None, cost_nano_usd=None)
    row = dict(zip(Tally.__struct_fields__, tally(silent).onto(EMPTY), strict=True))
    assert (row["input_tokens"], row["output_tokens"], row["nano_usd"]) == (None, 0, None)
    assert (row["attempts"], row["unpriced"]) == (1, 1)
    held = tally(silent).onto([5 if name == "input_tokens" else None for name in row])
    assert dict(zip(row, held, strict=True))["input_tokens"] == 5


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_stops_where_databases_end(sign: int) -> None:
    row = Tally(nano_usd=sign * MOST_SUM).onto(Tally(nano_usd=sign * MOST_SUM).onto(EMPTY))
    assert dict(zip(Tally.__struct_fields__, row, strict=True))["nano_usd"] == sign * MOST_SUM


@pytest.mark.parametrize(
    ("one", "other", "sum_of_both"), [(None, None, None), (None, 0, 0), (2, None, 2), (2, 3, 5)]
)
def test_what_is_known_is_added(one: Any, other: Any, sum_of_both: Any) -> None:
    assert plus(one, other) == sum_of_both


@given(st.floats(0, 1e9))
def test_a_thousandth_is_what_remains_of_a_value(value: float) -> None:
    assert abs(thousandths(value) / 1000 - value) <= 0.0005 + value * 1e-15


@pytest.mark.parametrize(("value", "whole"), [(-5.0, 0), (1e300, 10**12), (float("inf"), 10**12)])
def test_what_is_beyond_counts_as_the_end(value: float, whole: int) -> None:
    assert thousandths(value) == whole
