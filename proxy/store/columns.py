"""What columns are made of: their types, and makers for the kinds that come again and again."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Double,
    Integer,
    LargeBinary,
    Text,
    func,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from proxy.content import pack, unpack
from proxy.money import NANO

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Instant(TypeDecorator[int]):
    """UTC milliseconds: INTEGER on SQLite, ``timestamptz`` on PostgreSQL."""

    impl = Integer
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        return dialect.type_descriptor(Integer())

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "postgresql":
            return value
        return _EPOCH + value * _MILLISECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        if value is None or dialect.name != "postgresql":
            return value
        return int((value - _EPOCH) // _MILLISECOND)


class Packed(TypeDecorator[Any]):
    """A text that is stored packed. Bytes are packed already."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | bytes | None, dialect: Dialect) -> bytes | None:
        return pack(value) if isinstance(value, str) else value

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else unpack(value)


INT = BigInteger().with_variant(Integer(), "sqlite")
FLOAT: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")


def identity() -> Column[int]:
    """The row's own number."""
    return Column("id", INT, primary_key=True, autoincrement=True)


def texts(*names: str) -> list[Column[str]]:
    """Texts, or unknown."""
    return [Column(name, Text) for name in names]


def ints(*names: str) -> list[Column[int]]:
    """Whole numbers, or unknown."""
    return [Column(name, INT) for name in names]


def counts(*names: str) -> list[Column[int]]:
    """Whole numbers that begin at 0."""
    return [Column(name, INT, nullable=False, server_default="0") for name in names]


def required(kind: Any, *names: str) -> list[Column[Any]]:
    """Columns of a type that are always known."""
    return [Column(name, kind, nullable=False) for name in names]


def floats(*names: str) -> list[Column[float]]:
    """Numbers, or unknown."""
    return [Column(name, FLOAT) for name in names]


def instants(*names: str) -> list[Column[int]]:
    """Instants, or unknown."""
    return [Column(name, Instant) for name in names]


def nano_usd(usd: ColumnElement[float]) -> ColumnElement[float]:
    """A column of dollars in nano-dollars, which are whole, so that their sum is exact."""
    return func.round(usd * float(NANO))


def key(*names: str) -> list[Column[str]]:
    """Parts of a unique key: never NULL, since NULLs are never equal and would never conflict."""
    return [Column(name, Text, nullable=False, server_default="") for name in names]


def one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    """A check that a column has one of the values, or none."""
    # The frequent cases come first: SQLite builds a list for IN anew with every row, 2 µs each.
    first, *others = (f"'{value}'" for value in values)
    listed = f"{column} IS NULL OR {column} = {first} OR {column} IN ({', '.join(others)})"
    return CheckConstraint(listed, name=column)
