from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from proxy.bounds import MOST_SUM
from proxy.clock import now_ms
from proxy.store.engine import Store
from proxy.store.metrics import known_sum, measure
from proxy.store.rollups import GRAINS
from proxy.store.tables import api_calls
from tests.store.rows import anything, call, failed


async def measures(store: Store, *by: str) -> list[dict[str, Any]]:
    async with store.reader() as connection:
        return await measure(connection, anything(), by)


@pytest.mark.parametrize("ago", [0, 3 * 86_400_000])  # of rows, and of rollups
async def test_sums_that_no_integer_of_the_database_holds_are_told(either: Store, ago: int) -> None:
    huge = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 2**62)
    at = now_ms() - ago
    await either.write([call(**huge, cost_nano_usd=2**62, timestamp=at + n) for n in range(3)])
    [whole] = await measures(either)
    assert whole["requests"] == 3
    assert whole["total_tokens"] in (3 * 2**62, MOST_SUM)
    assert whole["cost_usd"] in (3 * 2**62 / 1e9, MOST_SUM / 1e9)


async def test_an_empty_database_has_zeros_and_nulls(store: Store) -> None:
    (whole,) = await measures(store)
    nothing = {"avg": None, "p50": None, "p95": None, "p99": None}
    assert whole == {
        "requests": 0,
        "attempts": 0,
        "success": 0,
        "errors": 0,
        "cancelled": 0,
        "rejected": 0,
        "success_rate": None,
        "failovers": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "cost_usd": 0.0,
        "unpriced": 0,
        "latency_ms": nothing,
        "ttft_ms": nothing,
        "tokens_per_second": nothing,
    }
    assert await measures(store, "provider") == []


async def test_requests_are_counted_by_their_final_rows(store: Store) -> None:
    await store.write(
        [
            failed(request_id="r", is_final=False),
            failed(request_id="r", attempt=2, is_final=False, provider="gemini"),
            call(request_id="r", attempt=3, provider="gemini"),
            call(),
            failed("timeout"),
            call(status="cancelled", error_reason="client_closed", cost_nano_usd=None),
            call(status="rejected", provider="", total_tokens=None, cost_nano_usd=None),
        ]
    )
    (whole,) = await measures(store)
    counts = ("requests", "attempts", "success", "errors", "cancelled", "rejected", "failovers")
    assert [whole[name] for name in counts] == [5, 7, 2, 1, 1, 1, 1]
    assert whole["success_rate"] == pytest.approx(2 / 3)
    assert whole["unpriced"] == 1
    groq, gemini, none = await measures(store, "provider")
    assert (groq["provider"], groq["requests"], groq["attempts"]) == ("groq", 3, 4)
    assert (gemini["provider"], gemini["requests"], gemini["attempts"]) == ("gemini", 1, 2)
    assert (none["provider"], none["rejected"]) == ("", 1)


async def test_percentiles_lie_between_rows(store: Store) -> None:
    values = [10.0, 20.0, 30.0, 40.0]
    await store.write([call(total_duration_ms=value) for value in values])
    await store.write([failed(total_duration_ms=9999.0, is_final=False)])
    (whole,) = await measures(store)
    latency = whole["latency_ms"]
    assert (latency["avg"], latency["p50"]) == (25.0, 25.0)
    assert latency["p95"] == pytest.approx(38.5)
    assert latency["p99"] == pytest.approx(39.7)


async def test_one_value_is_every_percentile(store: Store) -> None:
    await store.write([call(tokens_per_second=7.0)])
    (whole,) = await measures(store)
    assert whole["tokens_per_second"] == {"avg": 7.0, "p50": 7.0, "p95": 7.0, "p99": 7.0}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(values=st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
async def test_percentiles_are_those_of_the_textbook(store: Store, values: list[float]) -> None:
    async with (await store.writer()).begin() as connection:
        for table in (api_calls, *(grain.table for grain in GRAINS)):
            await connection.execute(delete(table))
    await store.write([call(time_to_first_token_ms=value) for value in values])
    (whole,) = await measures(store)
    hundredths = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (50, 95, 99):
        assert whole["ttft_ms"][f"p{percent}"] == pytest.approx(hundredths[percent - 1])


async def test_dollars_are_summed_exactly(store: Store) -> None:
    await store.write([call(cost_nano_usd=100_000_001) for _ in range(30)])
    (whole,) = await measures(store)
    assert whole["cost_usd"] == 3.00000003


async def test_unknown_dollars_and_tokens_are_not_zero(store: Store) -> None:
    await store.write([call(cost_nano_usd=None, output_tokens=None)])
    (whole,) = await measures(store)
    assert (whole["cost_usd"], whole["output_tokens"], whole["unpriced"]) == (None, None, 1)
    assert whole["input_tokens"] == 1000


def test_a_sum_of_nothing_is_zero_only_where_nothing_is_missing() -> None:
    assert (known_sum(None, 0), known_sum(None, 2), known_sum(5, 2)) == (0, None, 5)
