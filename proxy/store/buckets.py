"""The span of time in which an instant lies, in either database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction


def bucket(at: ColumnElement[int], length: int) -> ColumnElement[int]:
    """The start of the bucket, of ``length`` milliseconds, in which an instant lies: UTC
    milliseconds."""
    # Written out, not bound: PostgreSQL takes two bound values for two expressions.
    return _bucket(at, literal_column(str(length), Integer()))


class _bucket(GenericFunction[int]):
    type = BigInteger()
    inherit_cache = True


@compiles(_bucket, "sqlite")
def _bucket_sqlite(element: _bucket, compiler: SQLCompiler, **kw: Any) -> str:
    instant, length = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({instant} - {instant} % {length})"


@compiles(_bucket, "postgresql")
def _bucket_postgresql(element: _bucket, compiler: SQLCompiler, **kw: Any) -> str:
    instant, length = (compiler.process(clause, **kw) for clause in element.clauses)
    milliseconds = f"CAST(extract(epoch FROM {instant}) * 1000 AS BIGINT)"
    return f"({milliseconds} - {milliseconds} % {length})"
