from __future__ import annotations

from typing import Any

import pytest

from proxy.store import waste
from proxy.store.engine import Store
from tests.store.rows import anything, call, failed, plan

NOON = 1_735_732_800_000
CUT = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120, "cost_nano_usd": 1_000_001}


async def wasted(store: Store, **filters: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    async with store.reader() as connection:
        return await waste.waste(connection, anything(**filters))


async def test_nothing_is_wasted_where_all_went_well(either: Store) -> None:
    await either.write([call(), call(status="rejected", provider="", total_tokens=None)])
    totals, data = await wasted(either)
    assert data == []
    assert totals == dict.fromkeys(("all", "failed", "abandoned", "discarded"), waste.NOTHING)
    assert totals == waste.NO_KINDS


async def test_sums_that_no_integer_of_the_database_holds_are_told(either: Store) -> None:
    huge = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens", "cost_nano_usd"), 2**62)
    await either.write([failed(**huge) for _ in range(2)])
    totals, _ = await wasted(either)
    assert (totals["all"]["total_tokens"], totals["all"]["attempts"]) == (2**63, 2)


async def test_every_useless_attempt_is_of_one_kind(either: Store) -> None:
    await either.write(
        [
            failed("truncated", request_id="saved", is_final=False, response_time_ms=100.0, **CUT),
            failed(request_id="saved", attempt=2, is_final=False, response_time_ms=10.0),
            call(request_id="saved", attempt=3, provider="gemini"),
            failed(request_id="lost", is_final=False, response_time_ms=20.0, **CUT),
            failed("timeout", request_id="lost", attempt=2, response_time_ms=30.0),
            call(status="cancelled", response_time_ms=40.0, **CUT),
            call(),
        ]
    )
    totals, (groq,) = await wasted(either)
    assert totals["discarded"] == {
        **{"attempts": 2, "input_tokens": 100, "output_tokens": 20, "total_tokens": 120},
        **{"time_ms": 110.0, "cost_usd": 0.001000001, "unpriced": 1},
    }
    assert (totals["failed"]["attempts"], totals["failed"]["time_ms"]) == (2, 50.0)
    assert (totals["abandoned"]["attempts"], totals["abandoned"]["unpriced"]) == (1, 0)
    assert totals["all"] == {
        **{"attempts": 5, "input_tokens": 300, "output_tokens": 60, "total_tokens": 360},
        **{"time_ms": 200.0, "cost_usd": 0.003000003, "unpriced": 2},
    }
    assert groq == {"provider": "groq", "model": "llama", **totals}


async def test_what_is_known_of_no_attempt_is_not_zero(either: Store) -> None:
    await either.write([failed(response_time_ms=None, total_duration_ms=None)])
    totals, _ = await wasted(either)
    assert totals["failed"] == {
        "attempts": 1,
        **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens", "time_ms")),
        **{"cost_usd": None, "unpriced": 1},
    }


@pytest.mark.parametrize("status", ["cancelled", "error", "timeout"])
async def test_what_ended_before_any_attempt_cost_nothing(either: Store, status: str) -> None:
    never = {"response_time_ms": None, "total_duration_ms": 5.0, "total_tokens": None}
    await either.write([call(status=status, **never)])
    totals, data = await wasted(either)
    assert (totals["all"], data) == (waste.NOTHING, [])


async def test_models_are_told_apart_and_the_dearest_comes_first(either: Store) -> None:
    await either.write(
        [
            failed(model="slow", response_time_ms=9000.0),
            failed(model="fast", response_time_ms=1.0),
            failed(model="dear", response_time_ms=1.0, **CUT),
            call(model="dear", provider="lab", status="cancelled", **CUT | {"cost_nano_usd": 5}),
        ]
    )
    _, data = await wasted(either)
    assert [(row["provider"], row["model"]) for row in data] == [
        *(("groq", "dear"), ("lab", "dear"), ("groq", "slow"), ("groq", "fast")),
    ]
    assert data[0]["failed"]["attempts"] == data[1]["abandoned"]["attempts"] == 1
    assert data[0]["abandoned"] == data[1]["failed"] == waste.NOTHING


async def test_filters_and_the_window_are_about_the_attempt_that_was_wasted(either: Store) -> None:
    await either.write(
        [
            failed(request_id="r", timestamp=NOON, is_final=False),
            call(request_id="r", attempt=2, timestamp=NOON + 5000, provider="gemini"),
            failed(timestamp=NOON + 5000),
        ]
    )
    totals, _ = await wasted(either, end=NOON + 1000, provider=("groq",))
    assert (totals["discarded"]["attempts"], totals["all"]["attempts"]) == (1, 1)
    totals, _ = await wasted(either, provider=("gemini",))
    assert totals["all"]["attempts"] == 0


@pytest.mark.parametrize("status", ["error", "timeout"])
async def test_a_request_is_saved_by_its_final_attempt_alone(either: Store, status: str) -> None:
    rest = {"request_id": "r", "is_final": False}
    await either.write([failed(**rest), failed(request_id="r", attempt=2, status=status)])
    totals, _ = await wasted(either)
    assert (totals["failed"]["attempts"], totals["discarded"]["attempts"]) == (2, 0)


async def test_only_what_failed_in_the_window_is_read(store: Store) -> None:
    async with store.reader() as connection:
        steps = await plan(connection, waste._query(anything(start=NOON)))
    assert "api_calls USING INDEX ix_api_calls_unsuccessful (timestamp>? AND timestamp<?)" in steps
    assert "last USING INDEX sqlite_autoindex_api_calls_1 (request_id=?)" in steps
    assert "SCAN api_calls" not in steps
