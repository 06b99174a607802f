from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proxy.store import calls
from proxy.store.engine import Store
from proxy.store.recent import Recent
from tests.store.rows import anything, call, failed

NOON = 1_735_732_800_000


def shown(recent: Recent, limit: int = 1000, **filters: Any) -> list[dict[str, Any]]:
    return [msgspec.json.decode(row) for row in recent.newest(anything(**filters), limit)]


def ids(recent: Recent, limit: int = 1000, **filters: Any) -> list[str]:
    return [row["request_id"] for row in shown(recent, limit, **filters)]


async def test_a_call_looks_as_its_row_will_but_for_its_id(either: Store) -> None:
    records = [call(metadata='{"a": [1]}'), failed(cost_nano_usd=1), call(status="cancelled")]
    recent = Recent()
    for record in records:
        recent.add(record)
    await either.write(records)
    async with either.reader() as connection:
        rows = [(await calls.request(connection, r.request_id))[0] for r in reversed(records)]
    assert shown(recent) == [row | {"id": None} for row in rows]
    assert [list(row) for row in shown(recent)] == [list(row) for row in rows]


def test_only_the_newest_are_held_and_the_last_that_ended_comes_first() -> None:
    recent = Recent(most=3)
    for number in range(5):
        recent.add(call(request_id=str(number)))
    assert ids(recent) == ["4", "3", "2"]
    assert ids(recent, limit=2) == ["4", "3"]


def test_the_attempts_of_a_request_are_calls_of_their_own() -> None:
    recent = Recent()
    recent.add(failed(request_id="r", is_final=False))
    recent.add(call(request_id="r", attempt=2))
    assert [row["attempt"] for row in shown(recent)] == [2, 1]


def test_a_price_that_came_late_is_put_in_where_the_call_stands() -> None:
    recent = Recent(most=2)
    first, second, third = (call(request_id=name, cost_nano_usd=None) for name in "abc")
    for record in (first, second, third):
        recent.add(record)
    for record in (first, second):
        recent.amend(msgspec.structs.replace(record, cost_nano_usd=5_000_000))
    assert [(row["request_id"], row["cost_estimate_usd"]) for row in shown(recent)] == [
        ("c", None),
        ("b", 0.005),
    ]


async def test_after_a_restart_it_holds_what_the_database_does(either: Store) -> None:
    long = call(request_id="long", timestamp=NOON, finished_at=NOON + 9000)
    quick = call(request_id="quick", timestamp=NOON + 1, finished_at=NOON + 2)
    await either.write([call(request_id="old", timestamp=NOON - 1), quick, long])
    recent = Recent(most=2)
    async with either.reader() as connection:
        await recent.load(connection)
        rows = [(await calls.request(connection, name))[0] for name in ("long", "quick")]
    assert shown(recent) == rows
    recent.add(call(request_id="new"))
    assert ids(recent) == ["new", "long"]


async def test_calls_that_ended_in_one_millisecond_keep_their_order(either: Store) -> None:
    ended = [call(request_id=name, timestamp=NOON, finished_at=NOON + 1) for name in "abc"]
    recent = Recent()
    await either.write(ended)
    async with either.reader() as connection:
        await recent.load(connection)
    assert ids(recent) == ["c", "b", "a"]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"provider": ("gemini", "lab")},
        {"model": ("flash",)},
        {"key": ("org-b",)},
        {"status": ("error", "timeout")},
        {"client": ("alice",)},
        {"agent": ("aider",)},
        {"tool": ("cli",)},
        {"endpoint": ("/v1/embeddings",)},
        {"min_latency_ms": 1000.25},
        {"min_latency_ms": 1500.0},
        {"min_tokens": 1501},
        {"provider": ("groq",), "status": ("success",)},
    ],
)
async def test_filters_pick_what_they_pick_in_the_database(
    store: Store, filters: dict[str, Any]
) -> None:
    who = {"client_id": "alice", "agent_name": "aider", "tool_name": "cli"}
    b = {"provider": "gemini", "model": "flash", "key_id": "org-b", "endpoint": "/v1/embeddings"}
    records = [
        call(request_id="a", **who),
        call(request_id="b", total_duration_ms=1500.0, total_tokens=2000, **b),
        failed(request_id="c", total_duration_ms=None, response_time_ms=1600.0),
        failed("timeout", request_id="d", total_duration_ms=None, response_time_ms=None),
    ]
    recent = Recent()
    for record in records:
        recent.add(record)
    await store.write(records)
    async with store.reader() as connection:
        page, _ = await calls.page(connection, anything(**filters), 100, None)
    assert sorted(ids(recent, **filters)) == sorted(row["request_id"] for row in page)


def test_the_window_does_not_apply_and_the_limit_counts_what_passed() -> None:
    recent = Recent()
    for number in range(4):
        recent.add(call(request_id=str(number), provider=("groq", "lab")[number % 2], timestamp=0))
    assert ids(recent, start=NOON, end=NOON) == ["3", "2", "1", "0"]
    assert ids(recent, limit=1, provider=("groq",)) == ["2"]


def test_what_no_database_would_take_is_shown_as_far_as_it_can_be() -> None:
    recent = Recent()
    recent.add(call(finish_reason="\ud800", seed=2**70))
    (row,) = shown(recent)
    assert (row["finish_reason"], row["seed"]) == ("?", None)
