from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from proxy.clock import now_ms
from proxy.store import spans
from proxy.store.engine import Store
from proxy.store.spans import Span
from proxy.store.tables import api_calls, call_contents, daily_costs, metadata
from tests.store.rows import call, plan
from tests.store.stories import MOVES, NOON, content, everything, let_in

DAY = 86_400_000
EVER = 4_000_000_000_000


async def collected(store: Store, span: Span, size: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with store.reader() as connection:
        while rows := await spans.page(connection, span, found[-1] if found else None, size):
            assert len(rows) <= size
            found += rows
        assert await spans.count(connection, span) == len(found)
    return found


@pytest.mark.parametrize("name", metadata.tables)
async def test_every_table_comes_whole_in_pages(store: Store, name: str) -> None:
    await store.write(everything(now_ms()), MOVES)
    await let_in(store)
    table = metadata.tables[name]
    async with store.reader() as connection:
        whole = {tuple(row) for row in await connection.execute(select(table))}
    for size in (1, 2, 100):
        found = await collected(store, Span(table, 0, EVER), size)
        assert [tuple(row.values()) for row in found] != []
        assert len(found) == len(whole)
        assert {tuple(row.values()) for row in found} == whole


async def test_a_span_has_its_beginning_and_not_its_end(store: Store) -> None:
    await store.write([call(request_id=str(n), timestamp=NOON + n // 2) for n in range(10)])
    found = await collected(store, Span(api_calls, NOON + 1, NOON + 4), 4)
    assert [row["request_id"] for row in found] == ["2", "3", "4", "5", "6", "7"]
    assert await collected(store, Span(api_calls, NOON + 4, NOON + 1), 4) == []


async def test_days_count_whole(store: Store) -> None:
    await store.write([call(timestamp=NOON + n * DAY) for n in range(4)])
    found = await collected(store, Span(daily_costs, NOON + DAY, NOON + 2 * DAY), 1)
    assert [row["date"] for row in found] == ["2025-01-02", "2025-01-03"]


async def test_between_two_pages_nothing_is_held(store: Store) -> None:
    await store.write([call(timestamp=NOON + n) for n in range(3)])
    async with store.reader() as connection:
        (first,) = await spans.page(connection, Span(api_calls, 0, EVER), None, 1)
        assert not connection.in_transaction()
        await store.write([call(request_id="new", timestamp=NOON + 3)])
        rest = await spans.page(connection, Span(api_calls, 0, EVER), first)
    assert rest[-1]["request_id"] == "new"


async def test_a_page_is_found_by_the_index_and_needs_no_sorting(store: Store) -> None:
    await store.write([call(timestamp=NOON)])
    async with store.reader() as connection:
        span = Span(api_calls, NOON - DAY, NOON + DAY)
        (last,) = await spans.page(connection, span)
        query = select(api_calls).where(*span.conditions(last)).order_by(*span.key).limit(10)
        steps = await plan(connection, query)
    assert "ix_api_calls_timestamp" in steps
    assert "TEMP B-TREE" not in steps


async def test_large_rows_come_in_small_pages(store: Store) -> None:
    await store.write([content(f"r{n}", NOON + n) for n in range(60)])
    span = Span(call_contents, 0, EVER)
    async with store.reader() as connection:
        first = await spans.page(connection, span)
        rest = await spans.page(connection, span, first[-1])
    assert (len(first), len(rest)) == (50, 10)
    assert first[0]["request"] == "Hi"
