from __future__ import annotations

import pytest
from sqlalchemy import delete

from proxy.clock import now_ms
from proxy.store.engine import Store
from proxy.store.series import METRICS, TooManyPoints, blank, series
from proxy.store.tables import api_calls
from tests.store.rows import anything, call, failed

MINUTE, HOUR = 60_000, 3_600_000
NOON = 1_735_732_800_000


async def points(store: Store, metric: str, bucket: str = "hour", hours: int = 3) -> list[dict]:
    window = anything(start=NOON + 1, end=NOON + hours * HOUR)
    async with store.reader() as connection:
        return await series(connection, window, metric, bucket)


async def test_empty_buckets_are_there(store: Store) -> None:
    await store.write([call(timestamp=NOON + 60_000), call(timestamp=NOON + 2 * HOUR)])
    assert await points(store, "requests") == [
        {"timestamp": NOON, "value": 1},
        {"timestamp": NOON + HOUR, "value": 0},
        {"timestamp": NOON + 2 * HOUR, "value": 1},
    ]
    latency = await points(store, "latency_ms")
    assert [point["value"] for point in latency] == [1000.25, None, 1000.25]
    assert (latency[0]["p95"], latency[1]["p95"]) == (1000.25, None)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("requests", 2),
        ("errors", 1),
        ("latency_ms", 1000.25),
        ("ttft_ms", 200.0),
        ("tokens_per_second", 100.0),
        ("input_tokens", 1000),
        ("output_tokens", 500),
        ("cost_usd", 0.000985),
    ],
)
async def test_every_metric_has_its_value(store: Store, metric: str, value: float) -> None:
    assert metric in METRICS
    await store.write([call(timestamp=NOON + 5), failed(timestamp=NOON + 6)])
    assert (await points(store, metric))[0]["value"] == value


@pytest.mark.parametrize("metric", METRICS)
async def test_a_blank_has_the_members_of_a_point(store: Store, metric: str) -> None:
    assert list(blank(metric)) == list((await points(store, metric))[0])


async def test_minutes_and_days_are_aligned(store: Store) -> None:
    minutes = await points(store, "requests", "minute")
    assert (len(minutes), minutes[0]["timestamp"]) == (180, NOON)
    (day,) = await points(store, "requests", "day")
    assert day["timestamp"] == NOON - 12 * HOUR


@pytest.mark.parametrize(("days", "length"), [(9, HOUR), (500, 24 * HOUR)])
async def test_what_was_deleted_is_unknown_where_only_something_longer_counts_it(
    either: Store, days: int, length: int
) -> None:
    midnight = now_ms() // (24 * HOUR) * 24 * HOUR - days * 24 * HOUR
    kept, gone = midnight + 2 * HOUR, midnight + 3 * HOUR
    await either.write([call(timestamp=at) for at in (kept, gone, gone + MINUTE)])
    async with (await either.writer()).begin() as connection:
        await connection.execute(delete(api_calls).where(api_calls.c.timestamp == gone))
    window = anything(start=kept, end=gone + 2 * HOUR)
    async with either.reader() as connection:
        told = [
            [point["value"] for point in await series(connection, window, "requests", bucket)]
            for bucket in ("minute", "hour", "day")
        ]
        latency = await series(connection, window, "latency_ms", "minute")
    if length == HOUR:
        assert told == [[1] + [0] * 59 + [None] * 60 + [0] * 60, [1, 2, 0], [3]]
    else:
        assert told == [[None] * 180, [None] * 3, [None]]
    assert [latency[61][name] for name in ("value", "p95")] == [None, None]


async def test_too_many_points_are_refused(store: Store) -> None:
    with pytest.raises(TooManyPoints):
        await points(store, "requests", "minute", hours=24 * 30)
