"""pyarrow takes 55 MB and is not installed for tests; where it is, ``test_formats`` has parquet
too. Here a double keeps what it is given."""

from __future__ import annotations

import sys
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.store import parquet
from proxy.store.tables import api_calls


class Arrow:
    """As much of pyarrow as is used; ``groups`` has the rows of each write."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.closed = False
        self.RecordBatch = SimpleNamespace(from_pylist=self._batch)
        self.Table = SimpleNamespace(from_batches=lambda batches: [r for b in batches for r in b])

    def _batch(self, rows: list[Any], schema: list[Any]) -> Any:
        return type("Batch", (list,), {"num_rows": len(rows)})(rows)

    def schema(self, fields: list[Any]) -> list[Any]:
        return fields

    def field(self, name: str, kind: str, nullable: bool) -> tuple[str, str, bool]:
        return name, kind, nullable

    def timestamp(self, unit: str, tz: str) -> str:
        return f"{unit} {tz}"

    def __getattr__(self, name: str) -> Any:
        return lambda: name

    def ParquetWriter(self, stream: Any, schema: Any, compression: str) -> Any:
        self.fields = schema
        return self

    def write_table(self, table: list[Any]) -> None:
        self.groups.append(table)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def arrow(monkeypatch: pytest.MonkeyPatch) -> Arrow:
    double = Arrow()
    monkeypatch.setitem(sys.modules, "pyarrow", double)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", double)
    return double


def test_columns_have_their_types(arrow: Arrow) -> None:
    parquet.Parquet(api_calls, BytesIO())
    fields = {name: (kind, nullable) for name, kind, nullable in arrow.fields}
    assert list(fields) == api_calls.c.keys()
    assert fields["timestamp"] == ("ms UTC", False)
    assert fields["is_final"] == ("bool_", False)
    assert fields["seed"] == ("int64", True)
    assert fields["cost_estimate_usd"] == ("float64", True)
    assert fields["model"] == ("string", False)


def test_pages_are_gathered_to_groups(arrow: Arrow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_GROUP", 5)
    sink = parquet.Parquet(api_calls, BytesIO())
    for page in ([1, 2], [3, 4], [5, 6], [7]):
        sink.write(page)  # type: ignore[arg-type]
    assert (arrow.groups, arrow.closed) == ([[1, 2, 3, 4, 5, 6]], False)
    sink.close()
    assert (arrow.groups, arrow.closed) == ([[1, 2, 3, 4, 5, 6], [7]], True)
