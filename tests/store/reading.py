"""Exported files read back, as somebody would who knows nothing but the format."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from sqlalchemy import Boolean, Column, Double, Integer, LargeBinary, Table

from proxy.store.columns import Instant
from proxy.store.pages import Row

AVAILABLE = ["jsonl.gz", "csv", *(["parquet"] if find_spec("pyarrow") else [])]
"""The formats that can be written here; pyarrow is larger than all the rest and not required."""

_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\n]*))([,\n])')


def read(form: str, table: Table, data: bytes) -> list[Row]:
    """The rows as the store holds them."""
    rows = READERS[form](data)
    return [{name: _value(table.c[name], value) for name, value in row.items()} for row in rows]


def _jsonl(data: bytes) -> list[Row]:
    return [json.loads(line) for line in gzip.decompress(data).splitlines()]


def _csv(data: bytes) -> list[Row]:
    """Without quotes an empty field is NULL, with them it is a text."""
    records: list[list[str | None]] = [[]]
    for field in _FIELD.finditer(data.decode()):
        quoted, plain, end = field.groups()
        records[-1].append((plain or None) if quoted is None else quoted.replace('""', '"'))
        if end == "\n":
            records.append([])
    names, *rows = records[:-1]
    return [dict(zip(names, row, strict=True)) for row in rows]  # type: ignore[arg-type]


def _parquet(data: bytes) -> list[Row]:
    rows: list[Row] = import_module("pyarrow.parquet").read_table(BytesIO(data)).to_pylist()
    return rows


def _value(column: Column[Any], value: Any) -> Any:
    kind = column.type
    if value is None:
        return None
    if isinstance(kind, Instant):
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return round(moment.timestamp() * 1000)
    if isinstance(kind, LargeBinary) and isinstance(value, str):
        return bytes.fromhex(value[2:]) if value.startswith("\\x") else b64decode(value)
    if isinstance(value, str):  # CSV
        if isinstance(kind, Boolean):
            return {"true": True, "false": False}[value]
        if isinstance(kind, Integer):
            return int(value)
        if isinstance(kind, Double):
            return float(value)
    return value


READERS = {"jsonl.gz": _jsonl, "csv": _csv, "parquet": _parquet}
