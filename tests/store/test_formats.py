from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import AsyncIterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import insert, select

from proxy.clock import now_ms
from proxy.store import formats
from proxy.store.engine import Store
from proxy.store.formats import ExportError
from proxy.store.records import insert_calls
from proxy.store.tables import api_calls, daily_costs, metadata
from proxy.types import BESIDE, CallRecord
from tests.postgres_server import server
from tests.store.databases import REACHABLE, database, migrated
from tests.store.reading import AVAILABLE, read
from tests.store.rows import call
from tests.store.stories import MOVES, NOON, everything, let_in

HARD = [
    call(timestamp=NOON, model='say "hi",\r\nü \N{SNOWMAN} \x01', session_id="", trace_id=None),
    call(timestamp=NOON + 1, seed=2**63 - 1, temperature=0.1 + 0.2, top_p=5e-324, n=0),
    call(timestamp=NOON + 2, seed=-(2**63), cost_nano_usd=0, metadata='{"a":  [1.0, null]}'),
    call(timestamp=NOON + 3, cost_nano_usd=None, temperature=1e22, top_p=2.0, is_stream=False),
    call(timestamp=NOON + 4, agent_name="NULL", tool_name="null", session_id="1e5"),
]


@pytest.fixture(params=REACHABLE)
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Store]]:
    """A store with rows in every table, and an empty one."""
    kind = request.param
    like = migrated(kind)
    async with database(kind, tmp_path, like) as full, database(kind, tmp_path, like) as new:
        made = [Store(full), Store(new)]
        for store in made:
            await store.open()
        await made[0].write([*HARD, *everything(now_ms())], MOVES)
        await let_in(made[0])
        yield made
        for store in made:
            await store.close()


async def rows_of(store: Store, table: Any) -> list[dict[str, Any]]:
    async with store.reader() as connection:
        found = await connection.execute(select(table).order_by(*table.primary_key))
        return [dict(row) for row in found.mappings()]


def record(row: dict[str, Any]) -> CallRecord:
    """The record that becomes this row."""
    nano = {
        "cost_nano_usd": row["cost_estimate_usd"],
        "list_cost_nano_usd": row["list_cost_usd"],
    }
    values = row | {name: None if usd is None else round(usd * 1e9) for name, usd in nano.items()}
    return CallRecord(
        **{name: values[name] for name in CallRecord.__struct_fields__[: -len(BESIDE)]}
    )


def written(form: str, table: Any, *parts: list[dict[str, Any]]) -> bytes:
    stream = BytesIO()
    sink = formats.make(form, table, stream)
    for rows in parts:
        sink.write(rows)
    sink.close()
    return stream.getvalue()


@pytest.mark.parametrize("form", AVAILABLE)
async def test_what_is_exported_and_read_back_is_what_was_there(
    stores: list[Store], form: str
) -> None:
    full, new = stores
    for table in metadata.sorted_tables:
        there = await rows_of(full, table)
        assert there, table
        again = read(form, table, written(form, table, there[:2], there[2:]))
        assert again == there
        async with (await new.writer()).begin() as connection:
            if table is api_calls:
                await insert_calls(connection, [record(row) for row in again])
            else:
                await connection.execute(insert(table), again)
        assert await rows_of(new, table) == there
    assert len(await rows_of(new, api_calls)) == 7


async def test_a_csv_is_what_postgresql_copies_in(stores: list[Store]) -> None:
    full, new = stores
    there = await rows_of(full, api_calls)
    location = new.location or ""
    if location.startswith("postgresql"):
        connection = await asyncpg.connect(**server(), database=location.rpartition("/")[2])
        try:
            await connection.execute("CREATE TABLE copied AS TABLE api_calls WITH NO DATA")
            source = BytesIO(written("csv", api_calls, there))
            await connection.copy_to_table(
                "copied", source=source, columns=api_calls.c.keys(), format="csv", header=True
            )
            copied = [
                dict(row) for row in await connection.fetch("SELECT * FROM copied ORDER BY id")
            ]
        finally:
            await connection.close()
        assert [row["model"] for row in copied] == [row["model"] for row in there]
        for name in ("seed", "session_id", "cost_estimate_usd", "is_stream", "temperature"):
            assert [row[name] for row in copied] == [row[name] for row in there]


async def test_instants_are_for_people_and_the_rest_is_as_it_is(stores: list[Store]) -> None:
    there = await rows_of(stores[0], api_calls)
    first = json.loads(gzip.decompress(written("jsonl.gz", api_calls, there)).splitlines()[0])
    assert first["timestamp"] == "2025-01-01T12:00:00.123Z"
    assert list(first) == api_calls.c.keys()
    records = list(csv.DictReader(StringIO(written("csv", api_calls, there).decode(), newline="")))
    assert records[0]["timestamp"] == "2025-01-01T12:00:00.123Z"
    assert [record["model"] for record in records] == [row["model"] for row in there]
    metadata_of = {record["metadata"] for record in records}
    assert '{"a":  [1.0, null]}' in metadata_of


def test_null_is_not_an_empty_text() -> None:
    row = dict.fromkeys(daily_costs.c.keys()) | {"date": "2025-01-01", "provider": ""}
    line = written("csv", daily_costs, [row]).decode().splitlines()[1]
    assert line.startswith('"2025-01-01","",,')


@pytest.mark.parametrize("form", AVAILABLE)
def test_no_rows_make_a_file_all_the_same(form: str) -> None:
    data = written(form, api_calls)
    assert data
    assert read(form, api_calls, data) == []


def test_the_same_rows_are_the_same_bytes() -> None:
    row = dict.fromkeys(daily_costs.c.keys())
    assert written("jsonl.gz", daily_costs, [row]) == written("jsonl.gz", daily_costs, [row])
    assert b"\x00\x00\x00\x00" in written("jsonl.gz", daily_costs, [row])[:10]


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match=r"^parquet needs pyarrow: pip install 'tollkeeper\[par"):
        formats.make("parquet", api_calls, BytesIO())
