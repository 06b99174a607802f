"""What the measures of calls are in SQL: over the rows of the calls, and over their rollups.

Both give the same names, so that whoever adds up the pieces of a window need not know which is
which. ``calls`` are the attempts that succeeded, and should have tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Label,
    Select,
    Table,
    and_,
    case,
    cast,
    func,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from proxy.store.buckets import bucket
from proxy.store.columns import FLOAT, nano_usd
from proxy.store.coverage import Piece, starts, window
from proxy.store.filters import Filters, where
from proxy.store.rollups import CALLERS, DIMENSIONS, TOTALS
from proxy.store.tables import api_calls, rollup_series
from proxy.store.tags import each

Only = Callable[[Any], Sequence[ColumnElement[bool]]]
"""Conditions on the columns (``table.c``) of whatever has the dimensions of calls."""

COUNTS = (
    *("requests", "attempts", "success", "errors", "cancelled", "rejected", "failovers"),
    *("unpriced", "calls"),
)
"""Measures that are never unknown."""
SUMS = ("input_tokens", "output_tokens", "total_tokens", "nano_usd")
"""Measures that are unknown where no row has a value."""


TAG = "tag"
"""A dimension of rows alone: a call is in the group of each of its tags, or in that of NULL."""


class Among(NamedTuple):
    """Which groups are meant: these keys of the dimensions, or all others."""

    by: Sequence[str]
    keys: Sequence[tuple[Any, ...]]
    inside: bool


class Asked(NamedTuple):
    """A question: the filters, the dimensions to group by, the length of the spans of time to
    group by before those (None: not by time), other conditions, and, of rows alone, which groups
    are meant."""

    filters: Filters
    by: Sequence[str] = ()
    bucket: int | None = None
    only: Only | None = None
    among: Among | None = None

    @property
    def width(self) -> int:
        """How many columns the key of a group has."""
        return len(self.by) + (self.bucket is not None)

    @property
    def of_somebody(self) -> bool:
        """Whether only the calls of some callers are meant."""
        return bool(self.filters.client or self.filters.agent or self.filters.tool)

    @property
    def scope(self) -> str:
        """Of which rollups are asked."""
        by_caller = not set(CALLERS).isdisjoint(self.by)
        return "caller" if by_caller or self.of_somebody else "service"

    @property
    def anonymous(self) -> Asked | None:
        """The question whose answer, less that of this one, is about the calls that no series of
        a caller counts; None where this question counts them, or does not mean them. Whatever is
        counted for a caller is counted for the service, too: in the same transaction."""
        if self.of_somebody or self.scope == "service":
            return None
        return self._replace(by=[name for name in self.by if name not in CALLERS])

    def nameless(self, key: Sequence[Any]) -> tuple[Any, ...]:
        """The key of such calls, from one of this question or of ``anonymous``."""
        width, known = self.width - len(self.by), len(key) == self.width
        parts = iter(key[width:])
        hidden = []
        for name in self.by:
            part = next(parts) if known or name not in CALLERS else None
            hidden.append(None if name in CALLERS else part)
        return (*key[:width], *hidden)

    def keys(
        self, columns: Mapping[str, ColumnElement[Any]], at: ColumnElement[int]
    ) -> list[Label[Any]]:
        """The columns to group by; ``at`` tells when a row is."""
        keys: list[Label[Any]] = [columns[name].label(name) for name in self.by]
        if self.bucket is None:
            return keys
        return [bucket(at, self.bucket).label("start"), *keys]


class thousandths(GenericFunction[int]):
    """What ``tally.thousandths`` makes of a value."""

    type = BigInteger()
    inherit_cache = True


@compiles(thousandths, "sqlite")
def _thousandths_sqlite(element: thousandths, compiler: SQLCompiler, **kw: Any) -> str:
    value = compiler.process(element.clauses, **kw)
    return f"CAST(min(max({value}, 0), 1e9) * 1000 + 0.5 AS INTEGER)"


@compiles(thousandths, "postgresql")
def _thousandths_postgresql(element: thousandths, compiler: SQLCompiler, **kw: Any) -> str:
    value = compiler.process(element.clauses, **kw)
    return f"CAST(floor(least(greatest({value}, 0), 1e9) * 1000 + 0.5) AS BIGINT)"


_c = api_calls.c
_FINAL = _c.is_final.is_(True)
_UNPRICED = and_(
    _c.cost_estimate_usd.is_(None),
    or_(_c.total_tokens.is_not(None), _c.status == "success"),
)

VALUES: Mapping[str, tuple[ColumnElement[float], ColumnElement[bool]]] = {
    "latency_ms": (_c.total_duration_ms, _FINAL),
    "ttft_ms": (_c.time_to_first_token_ms, _c.time_to_first_token_ms.is_not(None)),
    "tokens_per_second": (_c.tokens_per_second, _c.tokens_per_second.is_not(None)),
}
"""The column of each distribution in the rows, and the rows that count."""
SKETCHES = {"latency_ms": "latency", "ttft_ms": "ttft", "tokens_per_second": "speed"}
"""What the columns of each are called in rollups."""


def sums(piece: Piece, asked: Asked) -> Select[Any]:
    """Counts and sums by group: the groups' columns, then ``COUNTS`` and ``SUMS``."""
    if not piece.is_rolled:
        source, columns = rows(asked)
        keys = asked.keys(columns, _c.timestamp)
        chosen = select(*keys, *_of_rows()).select_from(source).where(*conditions(piece, asked))
    else:
        joined, series = _series(piece, asked)
        keys = asked.keys({**series.c}, piece.table.c.start)
        chosen = select(*keys, *_of_rollups(piece.table, series)).select_from(joined)
        chosen = chosen.where(*_rolled(piece, asked, series))
    return chosen.group_by(*keys)


def values(piece: Piece, asked: Asked, names: Sequence[str]) -> Select[Any]:
    """The groups' columns, then for each distribution the value of a row or None; of rollups, two
    columns: the total in thousandths and the sketch."""
    if not piece.is_rolled:
        source, columns = rows(asked)
        keys = asked.keys(columns, _c.timestamp)
        found = [case((counts, column)) for column, counts in map(VALUES.__getitem__, names)]
        return select(*keys, *found).select_from(source).where(*conditions(piece, asked))
    joined, series = _series(piece, asked)
    keys = asked.keys({**series.c}, piece.table.c.start)
    rolled = [
        piece.table.c[f"{SKETCHES[name]}_{part}"] for name in names for part in ("total", "sketch")
    ]
    return select(*keys, *rolled).select_from(joined).where(*_rolled(piece, asked, series))


def total(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A sum of whole numbers: exact up to 2^53, and never an error, as SQLite's sum of integers is
    where it is too large for one."""
    return func.sum(cast(column, FLOAT))


def conditions(piece: Piece, asked: Asked) -> list[ColumnElement[bool]]:
    """Which rows of a piece of calls are meant."""
    filters = msgspec.structs.replace(asked.filters, start=piece.start, end=piece.end)
    found = [*where(api_calls, filters), *(asked.only(_c) if asked.only else ())]
    if asked.among is not None:
        _, columns = rows(asked)
        found.append(_among(columns, asked.among))
    return found


def rows(asked: Asked) -> tuple[FromClause, Mapping[str, ColumnElement[Any]]]:
    """The calls with what they are grouped by."""
    if TAG not in asked.by and (asked.among is None or TAG not in asked.among.by):
        return api_calls, {**api_calls.c}
    return _tagged, {**api_calls.c, TAG: _tag.c.value}


_tag = each(_c.tags)
_tagged = api_calls.join(_tag, true(), isouter=True)


def _among(columns: Mapping[str, ColumnElement[Any]], among: Among) -> ColumnElement[bool]:
    # NULL is in no list: it is told by a column of its own.
    parts: list[ColumnElement[Any]] = []
    for name in among.by:
        parts += [func.coalesce(columns[name], ""), columns[name].is_(None)]
    keys = [[each for part in key for each in (part or "", part is None)] for key in among.keys]
    found = tuple_(*parts).in_(keys)
    return found if among.inside else ~found


def _of_rows() -> list[Label[Any]]:
    def final(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
        return func.count().filter(_FINAL, *conditions)

    measures: Mapping[str, ColumnElement[Any]] = {
        "requests": final(),
        "attempts": func.count(),
        "success": final(_c.status == "success"),
        "errors": final(_c.status.in_(("error", "timeout"))),
        "cancelled": final(_c.status == "cancelled"),
        "rejected": final(_c.status == "rejected"),
        "failovers": final(_c.attempt > 1),
        "unpriced": func.count().filter(_UNPRICED),
        "calls": func.count().filter(_c.status == "success"),
        **{name: total(_c[name]) for name in SUMS if name != "nano_usd"},
        "nano_usd": total(nano_usd(_c.cost_estimate_usd)),
    }
    return _labelled(measures)


def _of_rollups(table: Table, series: FromClause) -> list[Label[Any]]:
    c, status = table.c, series.c.status
    requests = func.sum(c.requests)
    measures: Mapping[str, ColumnElement[Any]] = {
        "requests": requests,
        "attempts": func.sum(c.attempts),
        "success": requests.filter(status == "success"),
        "errors": requests.filter(status.in_(("error", "timeout"))),
        "cancelled": requests.filter(status == "cancelled"),
        "rejected": requests.filter(status == "rejected"),
        "failovers": func.sum(c.failovers),
        "unpriced": func.sum(c.unpriced),
        "calls": func.sum(c.attempts).filter(status == "success"),
        **{name: total(c[name]) for name in SUMS},
    }
    return _labelled(measures)


def _labelled(measures: Mapping[str, ColumnElement[Any]]) -> list[Label[Any]]:
    counts = [func.coalesce(measures[name], 0).label(name) for name in COUNTS]
    return [*counts, *(measures[name].label(name) for name in SUMS)]


def _series(piece: Piece, asked: Asked) -> tuple[FromClause, FromClause]:
    """The rollups with what their series are, and the latter: NULL for none, as in the rows."""
    c = rollup_series.c
    none = {"provider", "model", "endpoint", "status"}
    named = [c[name] if name in none else func.nullif(c[name], "") for name in DIMENSIONS]
    labels = [column.label(name) for column, name in zip(named, DIMENSIONS, strict=True)]
    series = select(c.id, c.scope, *labels).subquery()
    return piece.table.join(series, series.c.id == piece.table.c.series_id), series


def _rolled(piece: Piece, asked: Asked, series: FromClause) -> list[ColumnElement[bool]]:
    c, filters = piece.table.c, asked.filters
    filtered = where(series, filters)
    plain = Filters(start=filters.start, end=filters.end, status=filters.status)
    if not asked.by and asked.only is None and filters == plain:
        return [starts(piece), c.series_id.in_(TOTALS), *filtered]
    only = asked.only(series.c) if asked.only else ()
    return [window(piece), series.c.scope == asked.scope, *filtered, *only]
