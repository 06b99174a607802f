from __future__ import annotations

from pathlib import Path

from proxy.store.engine import Store
from proxy.store.sizes import sizes
from proxy.store.tables import metadata
from tests.store.rows import call, rows

_OPTIONS = "SELECT * FROM pragma_compile_options"


async def test_rows_and_bytes_are_counted_by_table(store: Store, path: Path) -> None:
    async with store.reader() as connection:
        assert (await sizes(connection))["oldest"] is None
    await store.write([call(timestamp=1_735_732_800_000) for _ in range(3)])
    async with store.reader() as connection:
        found = await sizes(connection)
    assert found["oldest"] == "2025-01-01T12:00:00.000Z"
    tables = {table["name"]: table for table in found["tables"]}
    assert set(tables) == set(metadata.tables)
    assert tables["api_calls"]["rows"] == 3
    measurable = any("DBSTAT" in row["compile_options"] for row in rows(path, _OPTIONS))
    assert tables["api_calls"]["bytes"] == (6 * 4096 if measurable else None)
    assert found["bytes"] % 4096 == 0
    assert found["bytes"] > sum(table["bytes"] or 0 for table in found["tables"])
