from __future__ import annotations

import pytest
from sqlalchemy import select

from proxy.store import calls
from proxy.store.engine import Store
from proxy.store.filters import where
from proxy.store.pages import BadCursor, encode
from proxy.store.tables import api_calls
from tests.store.rows import anything, call, failed, plan

NOON = 1_735_732_800_000


async def test_pages_hold_every_row_once_though_new_ones_come(store: Store) -> None:
    await store.write([call(request_id=str(n), timestamp=NOON + n // 3) for n in range(10)])
    seen: list[str] = []
    cursor = None
    async with store.reader() as connection:
        page, cursor = await calls.page(connection, anything(), 4, None)
    while True:
        seen += [row["request_id"] for row in page]
        await store.write([call(timestamp=NOON + 100)])
        if cursor is None:
            break
        async with store.reader() as connection:
            page, cursor = await calls.page(connection, anything(), 4, cursor)
    assert seen == [str(n) for n in reversed(range(10))]


async def test_a_row_has_its_columns_names_and_kinds(store: Store) -> None:
    await store.write([call(request_id="r", timestamp=NOON, metadata='{"eval_count": 7}')])
    async with store.reader() as connection:
        ((row,), _) = await calls.page(connection, anything(), 1, None)
    assert list(row) == [column.name for column in api_calls.c]
    assert row["timestamp"] == "2025-01-01T12:00:00.000Z"
    assert (row["is_final"], row["is_stream"], row["success"]) == (True, True, True)
    assert row["metadata"] == {"eval_count": 7}
    assert row["top_p"] is None


async def test_one_request_has_its_attempts_in_order(store: Store) -> None:
    await store.write([call(request_id="r", attempt=2), failed(request_id="r", is_final=False)])
    async with store.reader() as connection:
        attempts = await calls.request(connection, "r")
        assert [row["attempt"] for row in attempts] == [1, 2]
        assert await calls.request(connection, "other") == []


async def test_a_bad_cursor_is_told(store: Store) -> None:
    async with store.reader() as connection:
        with pytest.raises(BadCursor):
            await calls.page(connection, anything(), 1, "nonsense")


async def test_a_late_page_passes_no_earlier_rows_by(store: Store) -> None:
    await store.write([call(request_id=str(n), timestamp=NOON + n) for n in range(2000)])
    steps: list[int] = []

    async def page(cursor: str | None) -> str | None:
        steps.append(0)

        def count() -> None:
            steps[-1] += 1

        async with store.reader() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            await raw.set_progress_handler(count, 100)  # type: ignore[union-attr]
            _, following = await calls.page(connection, anything(end=NOON * 2), 10, cursor)
            await raw.set_progress_handler(None, 0)  # type: ignore[union-attr]
        return following

    await page(await page(None))
    await page(encode([NOON + 50, 51]))
    assert steps[2] <= steps[1] + 2


async def test_the_list_is_read_in_the_order_of_an_index(store: Store) -> None:
    query = (
        select(api_calls)
        .where(*where(api_calls, anything(start=1)))
        .order_by(api_calls.c.timestamp.desc(), api_calls.c.id.desc())
        .limit(100)
    )
    async with store.reader() as connection:
        steps = await plan(connection, query)
    assert "USING INDEX ix_api_calls_timestamp" in steps
    assert "TEMP B-TREE" not in steps
