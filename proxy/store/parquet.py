"""Parquet, by pyarrow: 55 MB, loaded only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, BinaryIO

from sqlalchemy import Boolean, Column, Double, Integer, LargeBinary, Table

from proxy.store.columns import Instant
from proxy.store.pages import Row

_GROUP = 65_536  # rows that are compressed together; they wait in memory for it, packed


class Parquet:
    """Integers of 64 bits, doubles, texts, bytes; instants as timestamps in milliseconds, UTC."""

    def __init__(self, table: Table, stream: BinaryIO) -> None:
        """ImportError if pyarrow is not installed."""
        self._arrow = import_module("pyarrow")
        self._schema = self._arrow.schema([self._field(column) for column in table.c])
        parquet = import_module("pyarrow.parquet")
        self._writer = parquet.ParquetWriter(stream, self._schema, compression="zstd")
        self._waiting: list[Any] = []

    def write(self, rows: Sequence[Row]) -> None:
        self._waiting.append(self._arrow.RecordBatch.from_pylist(rows, schema=self._schema))
        if sum(batch.num_rows for batch in self._waiting) >= _GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(self._arrow.Table.from_batches(self._waiting))
            self._waiting.clear()

    def _field(self, column: Column[Any]) -> Any:
        kind = column.type
        if isinstance(kind, Instant):
            arrow = self._arrow.timestamp("ms", tz="UTC")
        elif isinstance(kind, Boolean):
            arrow = self._arrow.bool_()
        elif isinstance(kind, Integer):
            arrow = self._arrow.int64()
        elif isinstance(kind, Double):
            arrow = self._arrow.float64()
        elif isinstance(kind, LargeBinary):
            arrow = self._arrow.binary()
        else:
            arrow = self._arrow.string()
        return self._arrow.field(column.name, arrow, nullable=bool(column.nullable))
