"""The tags of a row, in SQL: a JSON list becomes a table with a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, TableValuedAlias, Text, column, exists
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction


class elements(GenericFunction[str]):
    """The texts of a JSON list, none of NULL."""

    type = Text()
    inherit_cache = True


@compiles(elements, "sqlite")
def _sqlite(element: elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(elements, "postgresql")
def _postgresql(element: elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


def each(tags: ColumnElement[Any]) -> TableValuedAlias:
    """A table with the column ``value``, to be joined to the table that has the tags."""
    return elements(tags).table_valued(column("value", Text), name="each_tag")


def tagged(tags: ColumnElement[Any], wanted: Sequence[str]) -> ColumnElement[bool]:
    """Whether one of the tags is wanted."""
    found = each(tags)
    return exists().select_from(found).where(found.c.value.in_(wanted))
