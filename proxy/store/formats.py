"""Rows as files: gzipped JSON lines, CSV, Parquet. Reading one back gives the same values.

Instants are RFC 3339 in UTC to the millisecond, and numbers as short as they can be without loss.
In CSV texts are quoted and nothing else is, so that an empty field is NULL and ``""`` is a text
without characters: as PostgreSQL's COPY reads and writes it. Bytes are base64 in JSON and
hexadecimal behind a ``\\x`` in CSV.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Protocol

import msgspec
from sqlalchemy import Table

from proxy.clock import rfc3339
from proxy.store.columns import Instant
from proxy.store.pages import Row
from proxy.store.parquet import Parquet

_LEVEL = 6  # of zlib: 9 takes four times as long for 2 % less


class ExportError(Exception):
    """The rows cannot be written where or as they were asked for; one line."""


class Format(Protocol):
    """Writes rows of one table to a stream that somebody else closes."""

    def write(self, rows: Sequence[Row]) -> None: ...

    def close(self) -> None:
        """Write what is still due; the stream stays open."""


def make(name: str, table: Table, stream: BinaryIO) -> Format:
    """A format by its name; ExportError if what it needs is not installed."""
    try:
        return FORMATS[name](table, stream)
    except ImportError:
        needed = f"{name} needs pyarrow: pip install 'tollkeeper[{name}]'"
        raise ExportError(needed) from None


class JsonLines:
    """A row a line, gzipped."""

    def __init__(self, table: Table, stream: BinaryIO) -> None:
        self._table = table
        # Neither a name nor a time: the same rows are the same bytes.
        self._zipped = gzip.GzipFile("", "wb", _LEVEL, stream, mtime=0)

    def write(self, rows: Sequence[Row]) -> None:
        self._zipped.write(lines(self._table, rows))

    def close(self) -> None:
        self._zipped.close()


class Csv:
    """A line with the names, then a row a record."""

    def __init__(self, table: Table, stream: BinaryIO) -> None:
        self._table = table
        self._stream = stream
        self._stream.write(_record(table.c.keys()))

    def write(self, rows: Sequence[Row]) -> None:
        written = _written(self._table)
        self._stream.write(b"".join(_record(written(row).values()) for row in rows))

    def close(self) -> None:
        pass


FORMATS: dict[str, Callable[[Table, BinaryIO], Format]] = {
    "jsonl.gz": JsonLines,
    "csv": Csv,
    "parquet": Parquet,
}


def lines(table: Table, rows: Sequence[Row]) -> bytes:
    """The rows as JSON, one a line."""
    return msgspec.json.Encoder().encode_lines(map(_written(table), rows))


def _written(table: Table) -> Callable[[Row], Row]:
    """What makes instants of a row readable."""
    instants = [column.name for column in table.c if isinstance(column.type, Instant)]
    return lambda row: {**row, **{name: rfc3339(row[name]) for name in instants}}


def _record(values: Any) -> bytes:
    return (",".join(map(_field, values)) + "\n").encode()


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return repr(value)
