from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select

from proxy.clock import now_ms
from proxy.store import coverage, metrics, rollups
from proxy.store.address import StoreError
from proxy.store.coverage import Piece
from proxy.store.engine import Store
from proxy.store.filters import Filters
from proxy.store.rollups import DAY, GRAINS, HOUR, MINUTE
from proxy.store.sources import Asked
from proxy.store.tables import api_calls, rollup_series, rollups_day, rollups_hour, rollups_minute
from proxy.store.tally import Tally
from proxy.types import CallRecord
from tests.store.rows import OPTIONAL, anything, call, failed, read

TABLES = (rollups_minute, rollups_hour, rollups_day)
NOW = now_ms()


def known(low: float, high: float) -> Any:
    return st.none() | st.floats(low, high, width=32)


TOKENS = st.none() | st.integers(0, 2**40)
CALLS = st.builds(
    CallRecord,
    **{name: st.none() for name in OPTIONAL}
    | {
        "request_id": st.uuids().map(lambda made: made.hex[:26]),
        "attempt": st.integers(1, 3),
        "is_final": st.booleans(),
        "is_stream": st.booleans(),
        # Calls near each other and to the edges of minutes, hours and days; some long ago.
        "timestamp": st.one_of(
            st.integers(NOW - 3 * HOUR, NOW - 1),
            st.integers(0, 70).map(lambda hours: (NOW // HOUR - hours) * HOUR - 1),
            st.integers(0, 500).map(lambda days: (NOW // DAY - days) * DAY),
        ),
        "finished_at": st.just(NOW),
        "endpoint": st.sampled_from(["/v1/chat/completions", "/v1/embeddings"]),
        "provider": st.sampled_from(["", "groq", "gemini"]),
        "model": st.sampled_from(["llama", "flash"]),
        "key_id": st.sampled_from([None, "a", "b"]),
        "client_id": st.sampled_from([None, "c"]),
        "agent_name": st.sampled_from([None, "x", "y"]),
        "tool_name": st.sampled_from([None, "t"]),
        "status": st.sampled_from(["success", "error", "timeout", "cancelled", "rejected"]),
        "error_reason": st.sampled_from([None, "rate_limit", "server_error"]),
        "total_duration_ms": known(0, 1e6),
        "time_to_first_token_ms": known(0, 1e6),
        "tokens_per_second": known(0, 1e4),
        "input_tokens": TOKENS,
        "output_tokens": TOKENS,
        "total_tokens": TOKENS,
        "cost_nano_usd": st.none() | st.integers(0, 10**12),
        "usage_source": st.just("provider"),
        "cost_source": st.just("catalog"),
        "privacy_level": st.just("metadata"),
    },
)
INSTANTS = st.one_of(
    st.integers(NOW - 4 * HOUR, NOW + MINUTE),
    st.integers(NOW - 500 * DAY, NOW + DAY),
    st.integers(0, 500).map(lambda days: (NOW // DAY - days) * DAY),
)
FILTERS = st.builds(
    lambda instants, **values: Filters(start=min(instants), end=max(instants), **values),
    st.tuples(INSTANTS, INSTANTS),
    provider=st.sampled_from([(), ("groq",), ("groq", "gemini"), ("",)]),
    model=st.sampled_from([(), ("flash",)]),
    key=st.sampled_from([(), ("a",), ("none",)]),
    status=st.sampled_from([(), ("success",), ("error", "timeout")]),
    client=st.sampled_from([(), (), ("c",)]),
    agent=st.sampled_from([(), (), ("x", "y")]),
    tool=st.sampled_from([(), (), ("t",)]),
    endpoint=st.sampled_from([(), (), ("/v1/embeddings",)]),
)
BY = st.sampled_from([(), ("provider",), ("provider", "model"), ("provider", "error_reason")])


async def emptied(store: Store) -> None:
    async with (await store.writer()).begin() as connection:
        for table in (api_calls, rollup_series, *TABLES):
            await connection.execute(delete(table))


async def told(
    store: Store, asked: Asked, pieces: list[Piece] | None = None
) -> tuple[dict[Any, Any], dict[str, Any]]:
    """What the measures are, by the pieces given or those that are chosen."""
    async with store.reader() as connection:
        if pieces is None:
            pieces = await coverage.cover(connection, asked.filters, asked.bucket or DAY)
        totals = await metrics.totals(connection, asked, pieces)
        found = await metrics.distributions(connection, asked, pieces, metrics.DISTRIBUTIONS)
    return totals, found


async def compared(store: Store, asked: Asked) -> None:
    """Rollups with the rows at their edges tell what all the rows do."""
    scan = [Piece(api_calls, asked.filters.start, asked.filters.end)]
    totals, found = await told(store, asked)
    exact, spreads = await told(store, asked, scan)
    assert totals == exact
    for name, groups in spreads.items():
        assert found[name].keys() == groups.keys()
        for key, values in groups.items():
            assert found[name][key]["avg"] == values["avg"]
            assert found[name][key] == pytest.approx(values, rel=0.0201, abs=2e-4)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """No window has so few calls that its rows are looked at instead."""
    monkeypatch.setattr(coverage, "FEW", -1)


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=12, deadline=None, suppress_health_check=QUIET)
@given(st.lists(CALLS, max_size=40), st.lists(FILTERS, min_size=1, max_size=3), BY, st.data())
async def test_rollups_are_what_a_scan_of_all_rows_finds(
    store: Store, few: None, calls: list[CallRecord], filters: list[Filters], by: Any, data: Any
) -> None:
    await emptied(store)
    middle = data.draw(st.integers(0, len(calls)))
    await store.write(calls[:middle])
    await store.write(calls[middle // 2 :])  # some of them again
    for each in filters:
        await compared(store, Asked(each, by))
        for length in (HOUR, DAY):
            await compared(store, Asked(each, bucket=length))


@settings(max_examples=4, deadline=None, suppress_health_check=QUIET)
@given(st.lists(CALLS, max_size=20), st.lists(FILTERS, min_size=1, max_size=4), BY)
async def test_they_are_on_either_database(
    either: Store, few: None, calls: list[CallRecord], filters: list[Filters], by: Any
) -> None:
    await emptied(either)
    for part in (calls[::2], calls[1::2], calls):
        await either.write(part)
    for each in (anything(), *filters):
        await compared(either, Asked(each, by))
        await compared(either, Asked(each, bucket=MINUTE))


async def counted(store: Store) -> list[dict[str, Any]]:
    """What each grain counts of all calls together."""
    found = []
    async with store.reader() as connection:
        for table in TABLES:
            query = select(
                func.count().label("rows"), *(func.sum(table.c[name]) for name in NUMBERS)
            ).where(table.c.series_id.in_(rollups.TOTALS))
            rows, *sums = (await connection.execute(query)).one()
            numbers = [None if total is None else int(total) for total in sums]
            found.append({"rows": rows, **dict(zip(NUMBERS, numbers, strict=True))})
    return found


NUMBERS = ("attempts", "requests", "unpriced", "total_tokens", "nano_usd", "latency_total")


async def test_every_measure_of_a_row_is_added_to(either: Store) -> None:
    """Sketches too, which a scan does not tell exactly."""
    calls = [
        call(
            request_id=str(n),
            timestamp=NOW,
            total_duration_ms=10.0 * n,
            time_to_first_token_ms=2.0 * n,
            tokens_per_second=3.0 * n,
        )
        for n in range(1, 7)
    ]
    whole = Tally()
    for first in (0, 2, 4):
        await either.write(calls[first : first + 2])
        for each in calls[first : first + 2]:
            whole.count(each)
    measures = whole.onto([None] * len(Tally.__struct_fields__))
    wanted = dict(zip(Tally.__struct_fields__, measures, strict=True))
    for table in TABLES:
        for row in await read(either, table):
            assert {name: row[name] for name in wanted} == wanted


async def test_two_writers_of_the_same_series_lose_nothing(either: Store) -> None:
    """Both write the same series, in opposite order."""
    other = Store(either_url(either))
    await other.open()
    models = [f"m{n}" for n in range(8)]

    async def busy(store: Store, names: list[str]) -> None:
        for _ in range(10):
            batch = [call(timestamp=NOW, model=name) for name in names]
            for _ in range(100):
                try:
                    await store.write(batch)
                    break
                except StoreError:  # SQLite lets one of them wait for a second only
                    await asyncio.sleep(0.01)

    await asyncio.gather(busy(either, models), busy(other, models[::-1]))
    await other.close()
    minute, hour, day = await counted(either)
    assert minute == hour == day
    assert (day["attempts"], day["total_tokens"]) == (160, 160 * 1500)
    series = await read(either, rollups_minute, "series_id")
    assert sorted(row["attempts"] for row in series) == [20] * 8 + [160]


def either_url(store: Store) -> str:
    where = store.location or ""
    return where if where.startswith("postgresql") else f"sqlite+aiosqlite:///{where}"


async def test_a_new_price_changes_dollars_and_nothing_else(either: Store) -> None:
    long_ago = NOW - 3 * DAY  # so that its minute is not kept
    calls = [
        call(timestamp=NOW, cost_nano_usd=None),
        call(timestamp=NOW, cost_nano_usd=5),
        call(timestamp=long_ago, cost_nano_usd=None),
        failed(timestamp=NOW),
    ]
    await either.write(calls)
    async with either.reader() as connection:
        query = select(api_calls).order_by(api_calls.c.id)
        rows = (await connection.execute(query)).mappings().all()
    new = [100, 7, 1000, 0]
    changes = [(row, c.cost_nano_usd, n) for row, c, n in zip(rows, calls, new, strict=True)]
    before = await counted(either)
    async with (await either.writer()).begin() as connection:
        await rollups.reprice(connection, changes)
    for was, now, (dollars, unpriced) in zip(
        before, await counted(either), ((107, 0), (1107, 0), (1107, 0)), strict=True
    ):
        assert now == was | {"nano_usd": dollars, "unpriced": unpriced}
    async with (await either.writer()).begin() as connection:
        await rollups.reprice(connection, [(row, n, old) for row, old, n in changes])
    assert [was["unpriced"] for was in await counted(either)] == [1, 2, 2]


async def test_what_was_not_committed_is_not_counted(store: Store) -> None:
    again = [call(timestamp=NOW), failed(timestamp=NOW)]
    async with (await store.writer()).connect() as connection:
        await rollups.add(connection, again)
        await connection.rollback()
    assert await read(store, rollup_series) == []
    for _ in range(2):
        await store.write(again)
    assert [grain["attempts"] for grain in await counted(store)] == [2, 2, 2]


async def test_minutes_are_written_for_as_long_as_they_are_kept(store: Store) -> None:
    await store.write([call(timestamp=NOW - hours * HOUR) for hours in (0, 47, 49, 401 * 24)])
    assert [grain["attempts"] for grain in await counted(store)] == [2, 3, 4]


async def test_series_are_told_by_what_calls_have_in_common(either: Store) -> None:
    who = {"client_id": "c", "agent_name": "a", "tool_name": "t"}
    await either.write([call(timestamp=NOW, **who), call(timestamp=NOW + 1, **who)])
    await either.write([call(timestamp=NOW + DAY, **who)])
    found = await read(either, rollup_series, "scope")
    service = {
        "provider": "groq",
        "model": "llama",
        "key_id": "org-a",
        "endpoint": "/v1/chat/completions",
        "status": "success",
    }
    nobody = dict.fromkeys(("client_id", "agent_name", "tool_name", "error_reason"), "")
    seen = {"first_seen": NOW - NOW % DAY}
    assert found == [
        {"scope": "all", **dict.fromkeys(service, ""), **nobody, "status": "success", **seen},
        {"scope": "caller", **service, **nobody, **who, **seen},
        {"scope": "service", **service, **nobody, **seen},
    ]


async def test_what_nobody_asked_for_has_no_caller(store: Store) -> None:
    await store.write([call()])
    assert {row["scope"] for row in await read(store, rollup_series)} == {"all", "service"}


def test_every_grain_is_kept_longer_than_the_one_before_it() -> None:
    assert [grain.length for grain in GRAINS] == [MINUTE, HOUR, DAY]
    assert [grain.kept for grain in GRAINS] == sorted(grain.kept for grain in GRAINS)
