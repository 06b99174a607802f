from __future__ import annotations

import logging
from pathlib import Path

import pytest

from proxy.bounds import MOST_SUM
from proxy.clock import now_ms
from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.store.salvage import mend
from proxy.store.tables import (
    api_calls,
    daily_costs,
    journal_positions,
    rollups_day,
    rollups_hour,
    rollups_minute,
    tps_metrics,
)
from tests.store.rows import call, read, rows

HUGE = {"input_tokens": 2**62, "output_tokens": 2**62, "total_tokens": 2**62}
HUGE |= {"cost_nano_usd": 8 * 10**18}


async def test_values_no_database_takes_cost_only_themselves(store: Store, path: Path) -> None:
    bad = call(request_id="bad", seed=2**70, finish_reason="half \ud800", output_tokens=7)
    await store.write([call() for _ in range(5)] + [bad] + [call() for _ in range(6)])
    assert len(rows(path, "SELECT * FROM api_calls")) == 12
    (kept,) = rows(path, "SELECT * FROM api_calls WHERE request_id = 'bad'")
    assert (kept["seed"], kept["finish_reason"], kept["output_tokens"]) == (None, "half ?", 7)
    assert store.refused == 0


async def test_a_row_that_cannot_be_is_left_out_and_counted(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        await store.write([call(), call(status="wonderful"), call()])
    assert len(rows(path, "SELECT * FROM api_calls")) == 2
    assert store.refused == 1
    assert "1 CallRecord cannot be stored: CHECK constraint failed" in caplog.text


async def test_calls_whose_sums_no_database_can_hold_are_kept_and_the_sums_stop(
    either: Store,
) -> None:
    now = {"timestamp": now_ms()}  # all in one minute
    huge = HUGE | now
    await either.write([call(**huge), call(**now), call(**huge)])
    await either.write([call(**now), call(**huge)])
    await either.write([call(**now)])
    assert len(await read(either, api_calls, "id")) == 6
    assert either.refused == 0
    [day] = await read(either, daily_costs, "date")
    assert [day[name] for name in ("invocations", "input_tokens", "total_tokens")] == [
        *(6, MOST_SUM, MOST_SUM)
    ]
    for table in (rollups_minute, rollups_hour, rollups_day):
        found = await read(either, table, "start")
        assert sum(row["attempts"] for row in found) == 12  # in the two series of each
        assert {row["output_tokens"] for row in found} == {MOST_SUM}
        assert {row["nano_usd"] for row in found} == {MOST_SUM}
    for row in await read(either, tps_metrics, "window_minutes"):
        assert (row["sample_count"], row["output_tokens"]) == (6, MOST_SUM)


async def test_a_sum_that_is_full_already_costs_no_call(either: Store) -> None:
    now = now_ms()
    await either.write([call(timestamp=now)])
    writer = await either.writer()
    async with writer.begin() as connection:
        for table in (daily_costs, rollups_minute, rollups_hour, rollups_day, tps_metrics):
            await connection.execute(table.update().values(output_tokens=2**63 - 1))
    await either.write([call(timestamp=now), call(timestamp=now)])
    assert len(await read(either, api_calls, "id")) == 3
    assert either.refused == 0
    [day] = await read(either, daily_costs, "date")
    assert (day["invocations"], day["output_tokens"]) == (3, MOST_SUM)


async def test_what_is_good_alone_is_kept_though_it_is_not_together(store: Store) -> None:
    # Names of two types, which no batch can put in order.
    odd = [call(agent_name=name) for name in ("a", 5, "b", 6, "c")]
    await store.write(odd, {"a.segment": (0, 70)})
    found = await read(store, api_calls, "id")
    assert {row["agent_name"] for row in found} == {"a", "5", "b", "6", "c"}
    assert (len(found), store.refused) == (5, 0)
    [place] = await read(store, journal_positions, "segment")
    assert place["position"] == 70


async def test_what_the_driver_cannot_bind_keeps_nothing_else_out(store: Store, path: Path) -> None:
    await store.write([call(), call(session_id={"a": 1}), call()])
    assert len(rows(path, "SELECT * FROM api_calls")) == 2
    assert store.refused == 1


async def test_what_is_sifted_is_taken_in_once_or_not_at_all(either: Store) -> None:
    batch = [call(), call(status="wonderful"), call()]
    await either.write(batch, {"a.segment": (0, 70)})
    with pytest.raises(StoreError):
        await either.write([call(status="wonderful"), call()], {"a.segment": (0, 70)})
    assert len(await read(either, api_calls, "id")) == 2
    [day] = await read(either, daily_costs, "date")
    assert day["invocations"] == 2
    assert either.refused == 1


async def test_rows_that_are_lost_for_one_reason_are_told_in_one_line(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        await store.write([call(status="wonderful") for _ in range(20)])
    [line] = caplog.messages
    assert line.startswith("20 CallRecord cannot be stored: CHECK constraint failed")


def test_a_good_record_is_not_copied() -> None:
    record = call()
    assert mend(record) is record
